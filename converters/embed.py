"""The preparation of images put into an ONNX model, which then takes the bytes of images.

    image      uint8, (N, H, W, C): pixels in the order RGB, BGR or GRAY
    resized    if that is asked for; else images must have the size before the crop, or without a crop that
               of the net's input
    prepared   (pixel - mean) * scale of a window in the centre: (N, C, h, w), the net's own input, whose name
               this value keeps

Crop, mean and scale are those of Caffe's transformer, bit for bit. The resizing is bilinear, with half-pixel
centres and without antialiasing, rounded to whole grey levels. OpenCV's cv2.resize does the same in fixed
point and loses some bits: the two differ by one grey level in about one of eight values of noise, and nowhere
by more. Where a value lies half-way between two levels, runtimes may round it to either.

Only operators that ONNX has had since opset 13 and that OpenCV, OpenVINO and the web runtime have: Cast,
Transpose, Shape, Slice, Concat, Resize, Add, Floor, Gather, Sub, Mul; for FIT_LARGE_SIZE_AND_PAD also Div,
Greater, Where and Pad.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray
from onnx import TensorProto, helper

from imae.converters.check_onnx import ALLOWED, BATCHES, Check, check_batch, open_axes
from imae.converters.model_parts import preparation, split_model
from imae.converters.onnx_values import value_shape
from imae.converters.preprocessing import (
    GRAY,
    NHWC,
    PREFIX,
    TRANSFORM_KEY,
    UINT8,
    Preprocessing,
    Size,
    size_text,
)
from imae.converters.resize import resize_bilinear
from imae.files.errors import ExportError, first_line
from imae.layers.data.image_transform import resize_image
from imae.layers.layer import Layer
from imae.net.net import Net
from imae.prototxt import TransformationParameter
from imae.prototxt.caffe_pb2 import ResizeParameter

LARGEST_STEP = 1.001  # grey levels between the model's resizing and OpenCV's: 1, and the rounding of float32
HINT = "leave --embed-preprocess out"


@dataclass(frozen=True)
class Embedding:
    """What is put into a model.

    channels   of the images that it takes: RGB, BGR or GRAY
    resize     whether it resizes images, and so takes any size
    """

    channels: str
    resize: bool = False


@dataclass(frozen=True)
class Embedded:
    """A model that prepares images itself.

    model           the model
    preprocessing   what is left to do to its images
    own             what it does: the preparation of the net's images
    resized         (height, width) that it resizes images to; None: it does not
    """

    model: onnx.ModelProto
    preprocessing: Preprocessing
    own: Preprocessing
    resized: Size | None


def embed_preprocessing(
    model: onnx.ModelProto, preprocessing: Preprocessing | None, embedding: Embedding
) -> Embedded:
    """The model with its preparation of images in front; ExportError where that is not possible."""
    graph = model.graph
    if preprocessing is None:
        raise ExportError(
            "nothing says how the net's images are prepared, so it cannot be put into the model; give "
            "--transform or --mean with --embed-preprocess; --transform '' stands for pixels as they are"
        )
    if len(graph.input) != 1:
        names = ", ".join(value.name for value in graph.input)
        raise ExportError(f"--embed-preprocess needs a net with one input, of images; it has {names}; {HINT}")
    shape = value_shape(graph.input[0]) or []
    if len(shape) != 4 or not isinstance(shape[1], int):
        raise ExportError(f"--embed-preprocess needs an input (N, C, H, W) of images, it is {shape}; {HINT}")
    channels, own = shape[1], preprocessing.fitted(shape)
    _check_order(own, embedding)
    size = _size_before_crop(own, shape)
    if problem := _problem(own, embedding, size):
        raise ExportError(f"--embed-preprocess: {problem}")
    front = _Front(model, graph.input[0].name)
    front.cast(shape, None if embedding.resize else size)
    if embedding.resize and _pads(own):
        front.resize_and_pad(own.transform.resize_param, channels)
    elif embedding.resize and size is not None:
        front.resize(front.ints(size), channels)
    if embedding.channels != own.channels:
        front.node("Gather", [front.ints([2, 1, 0])], axis=1)
    window, mean = size or (0, 0), own.mean_image
    if size is not None and (crop := own.crop) is not None and crop != size:
        excluded = int(own.transform.exclude_last_crop)
        top, left = ((side - cut - excluded) // 2 for side, cut in zip(size, crop, strict=True))
        front.crop(top, left, crop)
        window = crop
        if mean is not None:
            mean = mean[:, top : top + crop[0], left : left + crop[1]]
    values = np.array(own.transform.mean_value, np.float32)
    if mean is not None:
        front.node("Sub", [front.floats(mean[None])])
    elif values.any():
        front.node("Sub", [front.floats(_of_channels(values, channels))])
    if own.transform.scale != 1:
        scale = np.array([own.transform.scale], np.float32)
        front.node("Mul", [front.floats(_of_channels(scale, channels))])
    left_over = _left_over(own, embedding, None if embedding.resize else size)
    left_over = replace(
        left_over,
        name=front.image,
        prepared=front.prepared,
        embedded=_words(own, size if embedding.resize else None),
    )
    made = front.model([shape[0], shape[1], *(window if size is not None else shape[2:])], left_over)
    return Embedded(made, left_over, own, size if embedding.resize else None)


def _check_order(own: Preprocessing, embedding: Embedding) -> None:
    if (own.channels == GRAY) != (embedding.channels == GRAY):
        choices = "gray" if own.channels == GRAY else "rgb or bgr"
        raise ExportError(
            f"--embed-preprocess must be {choices} for a net of {own.channels} images, got "
            f"{embedding.channels.lower()}"
        )


def _size_before_crop(own: Preprocessing, shape: Sequence[int | str]) -> Size | None:
    """(height, width) of images before the crop; None where the net takes any."""
    if own.resizes_itself:
        return own.transform.resize_param.height, own.transform.resize_param.width
    if not all(isinstance(side, int) for side in shape[2:]) and own.crop is None and own.mean_image is None:
        return None
    return own.resize_for(shape)


def _pads(own: Preprocessing) -> bool:
    resize = own.transform.resize_param
    return own.resizes_itself and resize.resize_mode == ResizeParameter.FIT_LARGE_SIZE_AND_PAD


def _problem(own: Preprocessing, embedding: Embedding, size: Size | None) -> str | None:
    """Why this preparation cannot be put into a model."""
    transform = own.transform
    if own.other_fields:
        return f"transform_param has {', '.join(own.other_fields)}, which is no part of a model; {HINT}"
    if not transform.crop_size and bool(transform.crop_h) != bool(transform.crop_w):
        return f"transform_param has only one of crop_h and crop_w; {HINT}"
    if size is not None and own.crop is not None and (own.crop[0] > size[0] or own.crop[1] > size[1]):
        return f"{size_text(own.crop)} cannot be cut out of {size_text(size)}; give --resize"
    channels = own.num_channels
    if len(transform.mean_value) not in (0, 1, channels):
        return f"mean_value must be one number, or one for each of {channels} channels; {HINT}"
    if own.mean_image is not None and size is not None and own.mean_image.shape != (channels, *size):
        shape, whole = size_text(own.mean_image.shape), size_text((channels, *size))
        return f"the mean image is {shape}, images before the crop are {whole}; {HINT}"
    if embedding.resize and size is None:
        return "nothing says a size that images are resized to; give --resize, or no --embed-resize"
    if not own.resizes_itself:
        return None
    resize = transform.resize_param
    mode = ResizeParameter.Resize_mode.Name(resize.resize_mode)
    if resize.resize_mode == ResizeParameter.FIT_SMALL_SIZE:
        return f"resize_param has {mode}, after which each image has a size of its own; {HINT}"
    if not embedding.resize:
        return None
    if _pads(own) and (resize.pad_mode != ResizeParameter.CONSTANT or len(set(resize.pad_value)) > 1):
        return "resize_param pads with something else than one number; leave --embed-resize out"
    names = [ResizeParameter.Interp_mode.Name(mode) for mode in resize.interp_mode] or ["LINEAR"]
    if names != ["LINEAR"]:
        why = "ONNX Resize is the same as OpenCV's for LINEAR alone"
        return f"resize_param has interp_mode {', '.join(names)}, and {why}; leave --embed-resize out"
    return None


def _left_over(own: Preprocessing, embedding: Embedding, size: Size | None) -> Preprocessing:
    """What is still to be done to images of the model."""
    transform = TransformationParameter()
    transform.CopyFrom(own.transform)
    for field, _ in own.transform.ListFields():
        decodes = field.name in ("force_color", "force_gray")
        if not decodes and (field.name != "resize_param" or embedding.resize):
            transform.ClearField(field.name)
    return Preprocessing(
        transform,
        resize=None if transform.HasField("resize_param") else size,
        channels=embedding.channels,
        layout=NHWC,
        dtype=UINT8,
        net_channels=own.channels if own.channels != embedding.channels else "",
    )


def _words(own: Preprocessing, resized: Size | None) -> str:
    """What the model does to an image, in words."""
    if own.resizes_itself and resized is not None:
        return own.steps()
    return replace(own, transform=_unresized(own), resize=resized).steps()


def _unresized(own: Preprocessing) -> TransformationParameter:
    transform = TransformationParameter()
    transform.CopyFrom(own.transform)
    transform.ClearField("resize_param")
    return transform


def _of_channels(values: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """One number for each channel, (1, C, 1, 1)."""
    return np.broadcast_to(values, channels).reshape(1, channels, 1, 1).copy()


class _Front:
    """The nodes in front of a model; each reads what the last one has made."""

    def __init__(self, model: onnx.ModelProto, prepared: str) -> None:
        self._model, self.prepared = model, prepared
        graph = model.graph
        taken = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
        taken.update(tensor.name for tensor in graph.initializer)
        taken.update(value.name for value in (*graph.input, *graph.output))
        self.image = "image"
        while self.image in taken:
            self.image += "_"
        self._prefix = "prepare"
        while any(name.startswith(f"{self._prefix}/") for name in taken):
            self._prefix += "_"
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._current = self.image
        self._image_shape: list[int | str] = []

    def node(self, op_type: str, others: Iterable[str] = (), **attributes: Any) -> None:
        """A node that reads the current value and `others`, and makes the next one."""
        self._current = self._add(op_type, [self._current, *others], **attributes)

    def cast(self, shape: Sequence[int | str], size: Size | None) -> None:
        """Bytes (N, H, W, C) -> float32 (N, C, H, W)."""
        sides: Sequence[int | str] = ("image_height", "image_width") if size is None else size
        self._image_shape = [shape[0], *sides, shape[1]]
        self.node("Cast", to=TensorProto.FLOAT)
        self.node("Transpose", perm=[0, 3, 1, 2])

    def resize(self, size: str, channels: int) -> None:
        """Resized as by cv2.resize, which rounds halves up; `size` holds height and width."""
        batch = self._add("Slice", [self._add("Shape", [self._current]), self.ints([0]), self.ints([1])])
        sizes = self._add("Concat", [batch, self.ints([channels]), size], axis=0)
        mode = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        self.node("Resize", ["", "", sizes], **mode)
        self.node("Add", [self.floats(np.full((1, channels, 1, 1), 0.5, np.float32))])
        self.node("Floor")

    def resize_and_pad(self, param: ResizeParameter, channels: int) -> None:
        """FIT_LARGE_SIZE_AND_PAD, with the arithmetic of image_transform.py, in float32."""
        shape = self._add("Shape", [self._current])
        height, width = (
            self._add(
                "Cast",
                [self._add("Slice", [shape, self.ints([axis]), self.ints([axis + 1])])],
                to=TensorProto.FLOAT,
            )
            for axis in (2, 3)
        )
        new_height, new_width = (
            self.floats(np.array([side], np.float32)) for side in (param.height, param.width)
        )
        old = self._add("Div", [width, height])
        new = self.floats(np.array([np.float32(param.width) / np.float32(param.height)]))
        is_wider = self._add("Greater", [old, new])
        lower = self._add("Floor", [self._add("Div", [new_width, old])])
        narrower = self._add("Floor", [self._add("Mul", [old, new_height])])
        sides = [
            self._add("Where", [is_wider, lower, new_height]),
            self._add("Where", [is_wider, new_width, narrower]),
        ]
        size = self._add("Cast", [self._add("Concat", sides, axis=0)], to=TensorProto.INT64)
        self.resize(size, channels)
        room = self._add("Sub", [self.ints([param.height, param.width]), size])
        before = self._add("Div", [room, self.ints([2, 2])])
        none = self.ints([0, 0])
        pads = self._add("Concat", [none, before, none, self._add("Sub", [room, before])], axis=0)
        value = np.rint([*param.pad_value, 0])[0].clip(0, 255)
        self.node("Pad", [pads, self.floats(np.array(value))])

    def crop(self, top: int, left: int, size: Size) -> None:
        """The window of this size."""
        bounds = [top, left], [top + size[0], left + size[1]], [2, 3]
        self.node("Slice", [self.ints(numbers) for numbers in bounds])

    def floats(self, values: NDArray[np.float32]) -> str:
        """A constant."""
        return self._constant(np.ascontiguousarray(values, np.float32))

    def ints(self, values: Sequence[int]) -> str:
        """A constant of int64."""
        return self._constant(np.array(values, np.int64))

    def model(self, prepared_shape: Sequence[int | str], preprocessing: Preprocessing) -> onnx.ModelProto:
        """The whole model; its metadata says what is left to do."""
        self._nodes[-1].output[0] = self.prepared
        made = onnx.ModelProto()
        made.CopyFrom(self._model)
        graph = made.graph
        nodes, initializers = [*self._nodes, *graph.node], [*self._initializers, *graph.initializer]
        del graph.node[:], graph.input[:], graph.initializer[:]
        graph.node.extend(nodes)
        graph.initializer.extend(initializers)
        graph.input.append(helper.make_tensor_value_info(self.image, TensorProto.UINT8, self._image_shape))
        graph.value_info.append(
            helper.make_tensor_value_info(self.prepared, TensorProto.FLOAT, list(prepared_shape))
        )
        kept = {p.key: p.value for p in made.metadata_props if not _is_own_key(p.key)}
        helper.set_model_props(made, kept | preprocessing.metadata())
        try:
            onnx.checker.check_model(made, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(
                f"the model that prepares images itself is not valid: {first_line(error)}"
            ) from error
        return made

    def _add(self, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{self._prefix}/{op_type}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def _constant(self, values: NDArray[Any]) -> str:
        name = f"{self._prefix}/const_{len(self._initializers)}"
        self._initializers.append(onnx.numpy_helper.from_array(values, name))
        return name


def _is_own_key(key: str) -> bool:
    return key == TRANSFORM_KEY or key.startswith(PREFIX)


# -- the check -----------------------------------------------------------------------------------------------


def check_embedded(
    embedded: Embedded,
    net: Net,
    outputs: list[str],
    size: int,
    softmax: Collection[str],
    dynamic: bool,
    decisions: Mapping[Layer, str],
) -> tuple[Check, float]:
    """Run the model on bytes, and Caffe's transformer and the net; ExportError where they differ.

    size      images of a batch
    dynamic   whether the model takes batches of any size
    softmax, decisions
              as for check_onnx.check_model

    Returns the comparison of the outputs, and the share of prepared values that another resizing than
    OpenCV's has moved by a grey level.
    """
    front, _ = split_model(embedded.model, embedded.preprocessing)
    blob_shape = net.blob_shapes[embedded.preprocessing.prepared]
    open_outputs = {name: axes for name, axes in open_axes(net).items() if axes and name in outputs}
    shares = []

    def prepared_batch(number: int, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        generator = np.random.default_rng([size, number])
        images = generator.integers(0, 256, (size, height, width, blob_shape[1]), np.uint8)
        prepared = preparation(front)(images)
        shares.append(_compare_prepared(embedded, images, prepared))
        return images, prepared

    *others, last = _image_sizes(embedded, blob_shape[2:])
    for number, other in enumerate(others):
        prepared_batch(BATCHES + number, *other)
    for number in range(BATCHES if open_outputs else 1):
        images, prepared = prepared_batch(number, *last)
        check = check_batch(
            embedded.model,
            net,
            outputs,
            size,
            {embedded.preprocessing.prepared: prepared},
            softmax,
            dynamic,
            open_outputs,
            decisions,
            {embedded.preprocessing.name: images},
        )
        if check.difference <= ALLOWED * max(check.largest, 1):
            break
    if check.difference > ALLOWED * max(check.largest, 1):
        raise ExportError(
            f"net {net.name!r}: with its preparation of images the ONNX model's outputs are "
            f"{check.difference:.3g} away from the net's, whose largest value is {check.largest:.3g}; "
            "nothing is written"
        )
    return check, max(shares)


def _image_sizes(embedded: Embedded, input_size: Sequence[int]) -> list[Size]:
    """The sizes of images that are tried."""
    if embedded.resized is not None:
        height, width = embedded.resized
        return [(height, width), (height // 2 + 1, width // 3 + 1), (height + height // 2 + 3, 2 * width + 1)]
    fixed = embedded.preprocessing.prepared_size(value_shape(embedded.model.graph.input[0]) or [])
    return [fixed or (input_size[0], input_size[1])]


def _compare_prepared(embedded: Embedded, images: NDArray[np.uint8], prepared: NDArray[np.float32]) -> float:
    """The share of values that are a grey level away from Caffe's; ExportError where that may not be."""
    own, resized = embedded.own, embedded.resized
    if own.channels != embedded.preprocessing.channels:
        images = images[..., ::-1]
    if resized is not None and not own.resizes_itself:
        images = np.stack([resize_bilinear(np.ascontiguousarray(image), *resized) for image in images])
    elif resized is not None:
        param = own.transform.resize_param
        images = np.stack(
            [resize_image(np.ascontiguousarray(image), param, cv2.INTER_LINEAR) for image in images]
        )
    if own.resizes_itself:
        own = replace(own, transform=_unresized(own))
    transformer = own.transformer("the check of the export")
    expected = transformer.transform_list([*images.transpose(0, 3, 1, 2)], str)
    if expected.shape != prepared.shape:
        raise ExportError(
            f"the model prepares images as {list(prepared.shape)}, Caffe's transformer as "
            f"{list(expected.shape)}; nothing is written"
        )
    differing = prepared != expected
    steps = np.abs(prepared - expected) / abs(own.transform.scale or 1)
    if steps.max(initial=0) > (LARGEST_STEP if resized is not None else 0):
        raise ExportError(
            f"the model prepares images otherwise than Caffe's transformer: by up to {steps.max():.3g} grey "
            "levels; nothing is written"
        )
    return float((steps > LARGEST_STEP / 2).mean()) if differing.any() else 0.0
