"""What the page of an ONNX model knows of it (html_page.py): what it shows, and how an image is prepared.

Shapes of layers are those that ONNX's shape inference finds.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.shape_inference
from google.protobuf.message import DecodeError

from imae.converters.describe_model import FROM_FILLERS, QUANTIZED, difference_of, parameter_counts
from imae.converters.labels import labels_of
from imae.converters.onnx_values import Shape, element_type, value_shape
from imae.converters.preprocessing import (
    BGR,
    GRAY,
    MEAN_IMAGE,
    NCHW,
    NHWC,
    Preprocessing,
    from_metadata,
)
from imae.converters.size_steps import size_advice
from imae.files.errors import DataError, ExportError
from imae.prototxt import TransformationParameter
from imae.prototxt.caffe_pb2 import ResizeParameter

LONGEST = 300  # characters of a metadata value that the page shows
# Fields of a transform_param that the page's script honours.
HONOURED = (
    "scale", "crop_size", "crop_h", "crop_w", "mean_value", "resize_param", "exclude_last_crop",
    "force_color", "force_gray",
)  # fmt: skip
UNKNOWN = (
    "This model does not say how its images are prepared (mean, scale, crop, channels). The page gives it "
    "pixels from 0 to 255, as Caffe decodes them: its answers may be wrong. Export it with --transform or "
    "--mean."
)


def facts(data: bytes, title: str, measured: Sequence[str] = ()) -> dict[str, Any]:
    """What the page's script knows of the model; see page.js."""
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, UnicodeDecodeError) as error:
        reason = next(iter(str(error).strip().splitlines()), "it cannot be read")
        raise ExportError(f"page of {title!r}: it is not an ONNX model: {reason}") from error
    graph = model.graph
    if not all(isinstance(text, str) for text in _texts(model)):  # protobuf then gives the bytes
        raise ExportError(f"page of {title!r}: it is not an ONNX model: a name in it is not UTF-8")
    if any(map(onnx.external_data_helper.uses_external_data, graph.initializer)):
        raise ExportError(
            f"page of {title!r}: the model's weights are in another file; save it with its weights inside"
        )
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [_value(info) for info in graph.input if info.name not in stored]
    outputs = [_value(info) for info in graph.output]
    warnings, steps, plan = list[str](), list[str](), None
    problem = _no_images(inputs)
    if problem is None:
        prepared = from_metadata(metadata, title)
        if prepared is None:
            warnings.append(UNKNOWN)
            prepared = _as_it_is(inputs[0])
        warnings += _not_done(prepared)
        problem = _misfit(prepared, inputs[0])
        if problem is None:
            plan = preparation(prepared, inputs[0]["shape"])
            steps = in_words(plan, prepared.embedded)
    names, bad_names = _names(metadata)
    warnings += [*_untrained(metadata), *bad_names]
    return {
        "title": graph.name or title,
        "file": f"{title}.onnx",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "producer": " ".join(word for word in (model.producer_name, model.producer_version) if word),
        "description": model.doc_string or graph.doc_string,
        "opset": max((entry.version for entry in model.opset_import if not entry.domain), default=0),
        "inputs": inputs,
        "outputs": outputs,
        "parameters": sum(parameter_counts(model).values()),
        "layers": _layers(model),
        "metadata": [[key, _shortened(key, value)] for key, value in sorted(metadata.items())],
        "names": names,
        "measured": list(measured) or _measured(metadata),
        "plan": plan,
        "steps": steps,
        "warnings": warnings,
        "advice": size_advice(metadata),
        "problem": problem,
    }


def _texts(model: onnx.ModelProto) -> Iterator[object]:
    """The strings of a model that come into its page."""
    graph = model.graph
    yield from (model.producer_name, model.producer_version, model.doc_string, graph.name, graph.doc_string)
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    for node in graph.node:
        yield from (node.name, node.op_type, *node.input, *node.output)
    for info in (*graph.input, *graph.output, *graph.value_info):
        yield from (info.name, *(dim.dim_param for dim in info.type.tensor_type.shape.dim))
    yield from (tensor.name for tensor in graph.initializer)


def _value(info: onnx.ValueInfoProto) -> dict[str, Any]:
    return {"name": info.name, "dtype": element_type(info), "shape": value_shape(info)}


def _layers(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """The nodes, in the order in which they run: name, type, outputs with their shapes, number of weights."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, ValueError):  # ValueError: more than 2 GiB
        graph = model.graph
    shapes = {info.name: value_shape(info) for info in (*graph.value_info, *graph.output)}
    sizes = parameter_counts(model)
    return [
        {
            "name": node.name,
            "type": node.op_type,
            "outputs": [{"name": name, "shape": shapes.get(name)} for name in node.output if name],
            # A blob that two layers share is counted for the first of them.
            "parameters": sum(sizes.pop(name, 0) for name in node.input),
        }
        for node in model.graph.node
        if node.op_type != "Constant"
    ]


def _shortened(key: str, value: str) -> str:
    if key == MEAN_IMAGE:
        return f"{len(value)} characters of base64"
    return value if len(value) <= LONGEST else f"{value[:LONGEST]} … ({len(value)} characters)"


def _names(metadata: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Class -> name, and what is wrong with the metadata's names, if anything."""
    try:
        return {str(number): name for number, name in labels_of(metadata).items()}, []
    except DataError as error:
        return {}, [f"The classes have numbers only: {error}."]


def _untrained(metadata: Mapping[str, str]) -> list[str]:
    layers = _json_of(metadata, FROM_FILLERS)
    if not isinstance(layers, list) or not layers:
        return []
    names = ", ".join(map(str, layers))
    return [f"No trained weights: {names} have the values of their fillers, so the answers mean nothing."]


def _measured(metadata: Mapping[str, str]) -> list[str]:
    """The difference that the export has measured, in a sentence."""
    made = difference_of(metadata)
    if made is None:
        return []
    before = "Before the model was quantized, the" if QUANTIZED in metadata else "The"
    return [
        f"{before} largest difference from the net's outputs was {made.difference:.3g}, where the largest "
        f"value is {made.largest:.3g}: on random inputs, in ONNX Runtime."
    ]


def _json_of(metadata: Mapping[str, str], key: str) -> Any:
    """The JSON of a key; None where it is none."""
    try:
        return json.loads(metadata.get(key, "null"))
    except (ValueError, RecursionError):
        return None


# -- how images are prepared ---------------------------------------------------------------------------------


def _no_images(inputs: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the page cannot run a model with these inputs on an image; None where it can."""
    shapes = [feed["shape"] for feed in inputs]
    if len(inputs) != 1 or shapes[0] is None or len(shapes[0]) != 4:
        return "This page runs models with one input of images, (N, C, H, W) or (N, H, W, C)."
    if inputs[0]["dtype"] not in ("float32", "uint8"):
        return f"This page gives a model float32 or uint8; its input is {inputs[0]['dtype']}."
    return None


def _as_it_is(feed: Mapping[str, Any]) -> Preprocessing:
    """Pixels as Caffe decodes them, in the form that the input has."""
    shape = feed["shape"]
    layout = NHWC if shape[3] in (1, 3) and shape[1] not in (1, 3) else NCHW
    channels = GRAY if shape[3 if layout == NHWC else 1] == 1 else BGR
    return Preprocessing(TransformationParameter(), channels=channels, layout=layout, dtype=feed["dtype"])


def _misfit(prepared: Preprocessing, feed: Mapping[str, Any]) -> str | None:
    """Why the page cannot prepare images so for this input; None where it can."""
    if prepared.dtype != feed["dtype"]:
        return f"The metadata prepares images as {prepared.dtype}, and the input is {feed['dtype']}."
    channels = prepared.num_channels
    size = prepared.input_channels(feed["shape"])
    if isinstance(size, int) and size != channels:
        return f"The metadata prepares images of {channels} channels; those of the input are {size}."
    numbers = prepared.transform.mean_value
    if len(numbers) not in (0, 1, channels):
        return f"The metadata has {len(numbers)} means for {channels} channels."
    pad = prepared.transform.resize_param.pad_value
    if not np.isfinite([*numbers, *pad, prepared.transform.scale]).all():
        return "A number of the metadata (mean, scale, pad_value) is not finite."
    if len(pad) not in (0, 1, channels):
        return f"The metadata has {len(pad)} values of padding for {channels} channels."
    return None


def preparation(prepared: Preprocessing, shape: Shape) -> dict[str, Any]:
    """The plan by which prepare.js makes the model's input; see there. `shape` is that of the input."""
    transform, resize = prepared.transform, None
    if prepared.resizes_itself:
        own = transform.resize_param
        resize = {
            "mode": ResizeParameter.Resize_mode.Name(own.resize_mode),
            "height": own.height,
            "width": own.width,
            "pad": np.rint(np.clip(own.pad_value or [0], 0, 255)).tolist(),
        }
    elif (size := prepared.resize_for(shape)) is not None:
        resize = {"mode": "WARP", "height": size[0], "width": size[1], "pad": []}
    mean = prepared.mean_image
    return {
        "layout": prepared.layout,
        "dtype": prepared.dtype,
        "channels": prepared.channels,
        "resize": resize,
        "crop": None
        if prepared.crop is None
        else {
            "height": prepared.crop[0],
            "width": prepared.crop[1],
            "excluded": int(transform.exclude_last_crop),
        },
        "mean": [float(value) for value in transform.mean_value],
        "mean_image": None
        if mean is None
        else {
            "channels": mean.shape[0],
            "height": mean.shape[1],
            "width": mean.shape[2],
            "data": base64.b64encode(mean.astype("<f4").tobytes()).decode("ascii"),
        },
        "scale": float(transform.scale),
    }


def in_words(plan: Mapping[str, Any], embedded: str = "") -> list[str]:
    """The steps of a plan, in their order, each a sentence; `embedded` is what the model then does itself."""
    resize, crop, mean = plan["resize"], plan["crop"], plan["mean_image"]
    order = {
        "BGR": "blue, green and red (BGR, as Caffe has them)",
        "RGB": "red, green and blue (RGB)",
        "GRAY": "one channel of gray",
    }
    lines = [f"Decode the image to bytes, 0 to 255: {order[plan['channels']]}."]
    if resize is None:
        lines.append("Keep its size.")
    else:
        lines.append(RESIZES[resize["mode"]].format(size=f"{resize['height']} × {resize['width']}"))
    subtract = None
    if mean is not None:
        subtract = f"Subtract the mean image, {mean['channels']} × {mean['height']} × {mean['width']}."
    elif len(plan["mean"]) == 1:
        subtract = f"Subtract {plan['mean'][0]:.7g} from each number."
    elif plan["mean"]:
        subtract = f"Subtract {', '.join(f'{value:.7g}' for value in plan['mean'])}, one for each channel."
    if subtract:
        lines.append(subtract)
    if crop is not None:
        lines.append(f"Cut {crop['height']} × {crop['width']} pixels from the centre.")
    if plan["scale"] != 1:
        lines.append(f"Multiply by {plan['scale']:.7g}.")
    axes = {"NCHW": "channel by channel (NCHW)", "NHWC": "pixel by pixel (NHWC)"}[plan["layout"]]
    lines.append(f"Give it to the model as {plan['dtype']}, {axes}.")
    if embedded:
        lines.append(f"The model does the rest itself: {embedded}.")
    return lines


RESIZES = {
    "WARP": "Resize it to {size} pixels (height × width), each side by itself, from the nearest four pixels.",
    "FIT_SMALL_SIZE": "Resize it, with its aspect, so that it just covers {size} pixels (height × width).",
    "FIT_LARGE_SIZE_AND_PAD": "Resize it, with its aspect, to fit into {size} pixels (height × width); fill "
    "the rest.",
}


def _not_done(prepared: Preprocessing) -> list[str]:
    """What the metadata asks for and the page's script does not do."""
    transform = prepared.transform
    missing = prepared.other_fields
    resize = transform.resize_param
    if prepared.crop is None and (transform.crop_h or transform.crop_w):
        missing.append("crop_h or crop_w, one without the other")
    modes = [ResizeParameter.Interp_mode.Name(mode) for mode in resize.interp_mode]
    if modes not in ([], ["LINEAR"]):
        missing.append(f"resize_param.interp_mode {', '.join(modes)} (it resizes by LINEAR)")
    if resize.resize_mode == ResizeParameter.FIT_LARGE_SIZE_AND_PAD and resize.pad_mode:
        missing.append(f"resize_param.pad_mode {ResizeParameter.Pad_mode.Name(resize.pad_mode)}")
    if not missing:
        return []
    return [f"This page leaves out {', '.join(missing)} of the transform_param: its answers differ."]
