"""A model card: what an exported model is and how it is run, in Markdown, from the model alone.

The first lines are the YAML that model hubs read. The lines of Python need onnxruntime, numpy and OpenCV.
They prepare an image as the model's metadata says, and compute the numbers of `imae run`. Where a line of
OpenCV cannot do this, they feed zeros, and the card says why.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from imae.converters.describe_model import (
    FROM_FILLERS,
    LICENSE,
    MODEL,
    QUANTIZED,
    SHA256,
    VERSION,
    WEIGHTS,
    difference_of,
    parameter_counts,
)
from imae.converters.detections import are_rows
from imae.converters.labels import labels_of
from imae.converters.onnx_values import Shape, element_type, value_shape
from imae.converters.preprocessing import GRAY, NHWC, PREFIX, RGB, Preprocessing, from_metadata
from imae.files.atomic import write_atomically
from imae.files.errors import printable
from imae.files.read import AnyPath
from imae.prototxt import TransformationParameter
from imae.prototxt.caffe_pb2 import ResizeParameter

FEW = 5  # classes that are listed
# A licence that hubs have an identifier for, such as bsd-2-clause.
IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
IMAGE_FILE = "image.jpg"
INTERPOLATIONS = {
    ResizeParameter.LINEAR: "",
    ResizeParameter.AREA: ", interpolation=cv2.INTER_AREA",
    ResizeParameter.NEAREST: ", interpolation=cv2.INTER_NEAREST",
    ResizeParameter.CUBIC: ", interpolation=cv2.INTER_CUBIC",
    ResizeParameter.LANCZOS4: ", interpolation=cv2.INTER_LANCZOS4",
}


def write_card(model: onnx.ModelProto, path: AnyPath, model_path: AnyPath) -> None:
    """Write the card of a model that lies, or will lie, in the file `model_path`."""
    write_atomically(path, card_text(model, os.path.basename(os.fsdecode(model_path))).encode())


def card_text(model: onnx.ModelProto, file_name: str) -> str:
    """The card of a model in a file of this name; DataError where its metadata is damaged."""
    return _Card(model, file_name).text()


@dataclass(frozen=True)
class _Value:
    """An input or output: its name, element type and shape, with names for free axes."""

    name: str
    dtype: str
    shape: Shape

    @classmethod
    def of(cls, info: onnx.ValueInfoProto) -> _Value:
        return cls(info.name, element_type(info), value_shape(info) or [])

    @property
    def holds_boxes(self) -> bool:
        return are_rows(self.shape)

    @property
    def holds_classes(self) -> bool:
        shape = self.shape
        return len(shape) in (2, 4) and shape[1] != 1 and all(axis == 1 for axis in shape[2:])

    @property
    def holds_map(self) -> bool:
        return len(self.shape) == 4 and not self.holds_boxes and not self.holds_classes

    @property
    def example(self) -> tuple[int, ...]:
        """Its shape with 1 for free axes."""
        return tuple(axis if isinstance(axis, int) else 1 for axis in self.shape)


class _Card:
    def __init__(self, model: onnx.ModelProto, file_name: str) -> None:
        self.model, self.file_name = model, file_name
        self.metadata = {prop.key: prop.value for prop in model.metadata_props}
        constants = {value.name for value in model.graph.initializer}
        self.inputs = [_Value.of(value) for value in model.graph.input if value.name not in constants]
        self.outputs = [_Value.of(value) for value in model.graph.output]
        self.names = labels_of(self.metadata, file_name)
        self.preprocessing = from_metadata(self.metadata, file_name)
        self.prepared = self.preprocessing or Preprocessing(TransformationParameter())

    def text(self) -> str:
        parts = [
            self._front_matter(),
            f"# {_plain(self.model.graph.name)}",
            self._about(),
            "## Input",
            self._input(),
            "## Output",
            self._output(),
            "## How it is run",
            self._how_to_run(),
            "## Where it is from",
            self._source(),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    @property
    def task(self) -> str:
        """What hubs call the task; empty where the outputs do not say it."""
        if self._image_input() is None or len(self.outputs) != 1:
            return ""
        (output,) = self.outputs
        if output.holds_boxes:
            return "object-detection"
        if output.holds_classes and (self.names or self._ends_with_softmax()):
            return "image-classification"
        return "image-segmentation" if output.holds_map and self.names else ""

    def _ends_with_softmax(self) -> bool:
        return any(
            node.op_type == "Softmax" and self.outputs[0].name in node.output
            for node in self.model.graph.node
        )

    def _image_input(self) -> _Value | None:
        """The only input, if it takes images."""
        if len(self.inputs) != 1 or len(self.inputs[0].shape) != 4:
            return None
        channels = self.prepared.input_channels(self.inputs[0].shape)
        return self.inputs[0] if channels in (1, 3) else None

    def _front_matter(self) -> str:
        lines = ["---"]
        if text := self.metadata.get(LICENSE, ""):
            if IDENTIFIER.fullmatch(text):
                lines.append(f"license: {text.lower()}")
            else:
                lines += ["license: other", f"license_name: {json.dumps(text, ensure_ascii=False)}"]
        lines.append("library_name: onnx")
        if self.task:
            lines.append(f"pipeline_tag: {self.task}")
        return "\n".join([*lines, "tags:", "- onnx", "- caffe", "---"])

    def _about(self) -> str:
        graph = self.model.graph
        opset = next(entry.version for entry in self.model.opset_import if not entry.domain)
        what = f"A model for {self.task.replace('-', ' ')}" if self.task else "A model"
        parameters = sum(parameter_counts(self.model).values())
        lines = [
            f"{what} in ONNX: the file {_code(self.file_name)}. {_plain(self.model.doc_string)}.",
            f"It has {len(graph.node)} nodes of opset {opset}, {parameters:,} parameters and "
            f"{self.model.ByteSize():,} bytes.",
        ]
        if self.names:
            first = "; ".join(f"{number}: {_plain(name)}" for number, name in [*self.names.items()][:FEW])
            more = "; ..." if len(self.names) > FEW else ""
            lines.append(f"It has names for {len(self.names)} classes: {first}{more}")
        lines.append(self._measured())
        license_text = self.metadata.get(LICENSE, "")
        lines.append(f"Licence: {_plain(license_text) if license_text else 'not stated'}.")
        return "\n\n".join(lines)

    def _measured(self) -> str:
        made = difference_of(self.metadata)
        if made is None:
            return "How far its outputs are from those of the net was not measured."
        sizes = " and ".join(map(str, made.batch_sizes))
        words = (
            f"On random inputs, in batches of {sizes}, its outputs in ONNX Runtime are at most "
            f"{made.difference:.3g} away from those of the net, whose largest value is {made.largest:.3g}."
        )
        if QUANTIZED not in self.metadata:
            return words
        return f"It is quantized: {_plain(self.metadata[QUANTIZED])}. Before that: {words}"

    def _input(self) -> str:
        table = _table(("input", "type", "shape"), [_row(value) for value in self.inputs])
        prepared = self.preprocessing
        if prepared is None and self._image_input() is None:
            return table
        if prepared is None:
            return (
                f"{table}\n\nThe model does not say how an image becomes its input (mean, scale, crop, order "
                "of the channels). Below, the pixels go in as they are: the answers are right only if it was "
                "trained so."
            )
        keys = {
            key.removeprefix(PREFIX): value
            for key, value in self.metadata.items()
            if key.startswith(PREFIX) and key != f"{PREFIX}mean_image"
        }
        rows = [(_code(key), _code(value)) for key, value in keys.items()]
        image = self._image_input()
        steps = prepared.steps() if image is None else prepared.steps_for(image.shape)
        words = f"An image is prepared so: {_plain(steps)}."
        about = f"The model's metadata says the same, each key after {_code(PREFIX)}:"
        return "\n\n".join([table, words, about, _table(("key", "value"), rows)])

    def _output(self) -> str:
        table = _table(("output", "type", "shape"), [_row(value) for value in self.outputs])
        words = []
        for value in self.outputs:
            if value.holds_boxes:
                words.append(
                    f"{_code(value.name)} has a row for each box: number of the image, label, score, xmin, "
                    "ymin, xmax, ymax; the image's sides are 0 to 1."
                )
            elif value.holds_classes and self.task:
                what = "probability" if self._ends_with_softmax() else "score"
                words.append(f"{_code(value.name)} has a {what} for each class.")
        return "\n\n".join([table, *words])

    def _how_to_run(self) -> str:
        code, problem = self._lines()
        fence = "```"
        parts = [f"{fence}python\n" + "\n".join(code) + f"\n{fence}"]
        if problem:
            parts.insert(0, problem)
        return "\n\n".join(parts)

    def _lines(self) -> tuple[list[str], str]:
        """The lines of Python, and what they cannot do."""
        session = f"session = onnxruntime.InferenceSession({_literal(self.file_name)})"
        image = self._image_input()
        prepared = self.prepared
        problem = "" if image is None else _problem(prepared)
        if image is None or problem:
            feeds = ", ".join(
                f"{_literal(value.name)}: np.zeros({value.example}, np.{value.dtype})"
                for value in self.inputs
            )
            lines = ["import numpy as np", "import onnxruntime", "", session, f"feeds = {{{feeds}}}"]
            if problem:
                problem = f"These lines feed zeros: {problem}. `imae run` prepares images so."
            else:
                problem = "These lines feed zeros in place of its inputs."
            return [*lines, "outputs = session.run(None, feeds)", *self._results("")], problem
        has_mean_image, has_names = prepared.mean_image is not None, self._uses_names()
        lines = ["import base64"] * has_mean_image + ["import json"] * has_names
        lines += ["import cv2", "import numpy as np", "import onnxruntime", "", session]
        if has_mean_image or has_names:
            lines.append("metadata = session.get_modelmeta().custom_metadata_map")
        lines += self._prepare(prepared, image)
        lines.append(f"outputs = session.run(None, {{{_literal(image.name)}: x}})")
        return [*lines, *self._results('json.loads(metadata["names"])' if has_names else "")], ""

    def _uses_names(self) -> bool:
        first = self.outputs[0]
        return bool(self.names) and len(self.outputs) == 1 and (first.holds_boxes or first.holds_classes)

    def _prepare(self, prepared: Preprocessing, image: _Value) -> list[str]:
        """From a file to x, the input."""
        gray = prepared.channels == GRAY or prepared.input_channels(image.shape) == 1
        lines = [f'image = cv2.imread("{IMAGE_FILE}"{", cv2.IMREAD_GRAYSCALE" * gray})']
        size = prepared.resize_for(image.shape)
        interpolation = ""
        if prepared.resizes_itself:
            resize = prepared.transform.resize_param
            size = resize.height, resize.width
            interpolation = INTERPOLATIONS[[*resize.interp_mode, ResizeParameter.LINEAR][0]]
        x = "image"
        if size is not None:
            x = f"cv2.resize(image, ({size[1]}, {size[0]}){interpolation})"
        x += "[:, :, None]" if gray else "[:, :, ::-1]" * (prepared.channels == RGB)
        if prepared.is_embedded:
            lines.append(f"x = {x}")
        else:
            lines.append(f"x = {x}.astype(np.float32)")
            lines += _arithmetic(prepared, size)
        last = "x[None]" if prepared.layout == NHWC else "x.transpose(2, 0, 1)[None]"
        batch = image.shape[0]
        if isinstance(batch, int) and batch > 1:
            last = f"np.repeat({last}, {batch}, axis=0)"
        return [*lines, f"x = np.ascontiguousarray({last})"]

    def _results(self, names: str) -> list[str]:
        """What is printed of the outputs; `names`: the expression of the classes' names."""
        if len(self.outputs) > 1 or self._image_input() is None:
            return [
                "for output, values in zip(session.get_outputs(), outputs):",
                "    print(output.name, values.shape)",
            ]
        (output,) = self.outputs
        lines = [f"names = {names}"] if names else []
        if output.holds_boxes:
            name = "names.get(str(int(label)), int(label))" if names else "int(label)"
            return [
                *lines,
                "for number, label, score, xmin, ymin, xmax, ymax in outputs[0][0, 0]:",
                f"    print({name}, score, xmin, ymin, xmax, ymax)",
            ]
        if output.holds_classes:
            name = 'names.get(str(number), "")' if names else '""'
            return [
                *lines,
                "scores = outputs[0][0].ravel()",
                f"for number in scores.argsort()[::-1][:{FEW}]:",
                f"    print(number, {name}, scores[number])",
            ]
        if output.holds_map and output.shape[1] != 1:
            return ["print(outputs[0][0].argmax(0))  # the class of each pixel"]
        return ["print(outputs[0][0])"]

    def _source(self) -> str:
        rows = []
        for word, key in (("net", MODEL), ("weights", WEIGHTS)):
            if key in self.metadata:
                rows.append(
                    (word, _code(self.metadata[key]), _code(self.metadata.get(key + SHA256, "not known")))
                )
        untrained = []
        if FROM_FILLERS in self.metadata:
            text = self.metadata[FROM_FILLERS]
            untrained.append(
                f"No weights were given for these layers, which have their fillers' values: {_code(text)}."
            )
        made = f"Made by imae {_plain(self.metadata.get(VERSION, self.model.producer_version))}."
        table = [_table(("", "file", "SHA-256"), rows)] if rows else []
        return "\n\n".join([made, *table, *untrained])


def _problem(prepared: Preprocessing) -> str:
    """Why OpenCV does not prepare images so in a line; empty where it does."""
    if f"{PREFIX}other" in (metadata := prepared.metadata()):
        return f"the preparation has {_code(metadata[f'{PREFIX}other'])}"
    if not prepared.resizes_itself:
        return ""
    resize = prepared.transform.resize_param
    if resize.resize_mode != ResizeParameter.WARP:
        return f"images are resized by {_code(metadata[f'{PREFIX}resize_mode'])}"
    if len(resize.interp_mode) > 1 or resize.prob != 1:
        return "images are resized at random"
    return ""


def _arithmetic(prepared: Preprocessing, size: tuple[int, int] | None) -> list[str]:
    """The mean, the crop and the scale of x, (H, W, C)."""
    lines = []
    if prepared.mean_image is not None:
        shape = prepared.mean_image.shape
        lines.append(
            f'mean = np.frombuffer(base64.b64decode(metadata["{PREFIX}mean_image"]), "<f4").reshape{shape}'
        )
        lines.append("x = x - mean.transpose(1, 2, 0)")
    elif prepared.transform.mean_value:
        values = prepared.metadata()[f"{PREFIX}mean"].split()
        lines.append(f"x = x - np.array([{', '.join(values)}], np.float32)")
    if prepared.crop is not None and prepared.crop != size:
        height, width = prepared.crop
        if size is None:
            lines.append(f"top, left = (x.shape[0] - {height}) // 2, (x.shape[1] - {width}) // 2")
            lines.append(f"x = x[top : top + {height}, left : left + {width}]")
        else:
            top, left = (size[0] - height) // 2, (size[1] - width) // 2
            lines.append(f"x = x[{top}:{top + height}, {left}:{left + width}]")
    if prepared.transform.scale != 1:
        lines.append(f"x = x * np.float32({prepared.metadata()[f'{PREFIX}scale']})")
    return lines


def _literal(text: str) -> str:
    """A string of Python, in double quotes where they need no escape."""
    quoted = repr(text)
    return quoted if '"' in text or "'" in text else f'"{quoted[1:-1]}"'


def _row(value: _Value) -> tuple[str, str, str]:
    shape = " x ".join(str(axis) for axis in value.shape) or "a number"
    return _code(value.name), value.dtype, _code(shape)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text of a stranger in Markdown, where it must not make links, tables or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#!&])", r"\\\1", printable(text))


def _code(text: str) -> str:
    """The same as code; a backquote, which would end it, becomes an apostrophe."""
    return f"`{printable(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"
