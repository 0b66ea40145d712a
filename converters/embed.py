"""The preparation of images put into an ONNX model, which then takes the bytes of images.

    image      uint8, (N, H, W, C): pixels in the order RGB, BGR or GRAY
    resized    if that is asked for; else images must have the size before the crop, or without a crop that
               of the net's input
    prepared   (pixel - mean) * scale of a window in the centre: (N, C, h, w), the net's own input, whose name
               this value keeps

Crop, mean and scale are those of Caffe's transformer, bit for bit. The resizing is bilinear, with half-pixel
centres and without antialiasing, rounded to whole grey levels. OpenCV's cv2.resize does the same in fixed
point and loses some bits: the two differ by one grey level in about one of eight values of noise, less in
smooth images, and nowhere by more.

Only operators that ONNX has had since opset 13 and that OpenCV, OpenVINO and the web runtime have: Cast,
Transpose, Shape, Slice, Concat, Resize, Add, Floor, Gather, Sub, Mul.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray
from onnx import TensorProto, helper

from imae.converters.check_onnx import ALLOWED, Check, check_batch, open_axes, session_errors
from imae.converters.preprocessing import (
    GRAY,
    NHWC,
    PREFIX,
    PREPARED,
    TRANSFORM_KEY,
    UINT8,
    Preprocessing,
    Size,
)
from imae.converters.resize import resize_bilinear
from imae.files.errors import ExportError
from imae.layers.layer import Layer
from imae.net.net import Net
from imae.prototxt import TransformationParameter
from imae.prototxt.caffe_pb2 import ResizeParameter

# Fields of a transform_param that can be put into a model, and those that say how a record is decoded.
KNOWN = (
    "scale", "crop_size", "crop_h", "crop_w", "exclude_last_crop", "mean_value", "resize_param",
    "force_color", "force_gray",
)  # fmt: skip
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
    shape = _shape(graph.input[0])
    own = preprocessing.fitted(shape)
    _check_order(own, embedding)
    size = _size_before_crop(own, shape)
    if problem := _problem(own, embedding, size):
        raise ExportError(f"--embed-preprocess: {problem}; {HINT}")
    front = _Front(model, graph.input[0].name)
    front.cast(shape, None if embedding.resize else size)
    if embedding.resize and size is not None:
        front.resize(size, int(shape[1]))
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
        front.node("Sub", [front.floats(_of_channels(values, int(shape[1])))])
    if own.transform.scale != 1:
        scale = np.array([own.transform.scale], np.float32)
        front.node("Mul", [front.floats(_of_channels(scale, int(shape[1])))])
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


def _problem(own: Preprocessing, embedding: Embedding, size: Size | None) -> str | None:
    """Why this preparation cannot be put into a model."""
    transform = own.transform
    if others := [field.name for field, _ in transform.ListFields() if field.name not in KNOWN]:
        return f"transform_param has {', '.join(others)}, which is no part of a model"
    if not transform.crop_size and bool(transform.crop_h) != bool(transform.crop_w):
        return "transform_param has only one of crop_h and crop_w"
    if size is not None and own.crop is not None and (own.crop[0] > size[0] or own.crop[1] > size[1]):
        return f"{own.crop[0]}x{own.crop[1]} cannot be cut out of {size[0]}x{size[1]}; give --resize"
    channels = 1 if own.channels == GRAY else 3
    if own.mean_image is not None and size is not None and own.mean_image.shape != (channels, *size):
        shape = "x".join(map(str, own.mean_image.shape))
        return f"the mean image is {shape}, images before the crop are {channels}x{size[0]}x{size[1]}"
    if embedding.resize and size is None:
        return "nothing says a size that images are resized to; give --resize, or no --embed-resize"
    if not own.resizes_itself:
        return None
    resize = transform.resize_param
    mode = ResizeParameter.Resize_mode.Name(resize.resize_mode)
    if resize.resize_mode == ResizeParameter.FIT_SMALL_SIZE:
        return f"resize_param has {mode}, after which each image has a size of its own"
    if not embedding.resize:
        return None
    names = [ResizeParameter.Interp_mode.Name(mode) for mode in resize.interp_mode] or ["LINEAR"]
    if resize.resize_mode != ResizeParameter.WARP:
        return (
            f"resize_param has {mode}, whose padding depends on each image; leave --embed-resize out: the "
            "model then takes images that are resized and padded"
        )
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
    if not own.resizes_itself:
        return replace(own, resize=resized).steps()
    return (
        own.steps() if resized is not None else replace(own, transform=_unresized(own), resize=None).steps()
    )


def _unresized(own: Preprocessing) -> TransformationParameter:
    transform = TransformationParameter()
    transform.CopyFrom(own.transform)
    transform.ClearField("resize_param")
    return transform


def _of_channels(values: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    """One number for each channel, (1, C, 1, 1)."""
    return np.broadcast_to(values, channels).reshape(1, channels, 1, 1).copy()


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in dims]


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

    def resize(self, size: Size, channels: int) -> None:
        """Resized as by cv2.resize, which rounds halves up."""
        batch = self._add("Slice", [self._add("Shape", [self._current]), self.ints([0]), self.ints([1])])
        sizes = self._add("Concat", [batch, self.ints([channels, *size])], axis=0)
        mode = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        self.node("Resize", ["", "", sizes], **mode)
        self.node("Add", [self.floats(np.full((1, channels, 1, 1), 0.5, np.float32))])
        self.node("Floor")

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
                f"the model that prepares images itself is not valid: {str(error).splitlines()[0]}"
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
    worst, shares = Check(), []
    for number, (height, width) in enumerate(_image_sizes(embedded, blob_shape[2:])):
        generator = np.random.default_rng([size, number])
        images = generator.integers(0, 256, (size, height, width, blob_shape[1]), np.uint8)
        prepared = prepare(front, images)
        shares.append(_compare_prepared(embedded, images, prepared))
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
        if check.difference > ALLOWED * max(check.largest, 1):
            raise ExportError(
                f"net {net.name!r}: with its preparation of images the ONNX model's outputs are "
                f"{check.difference:.3g} away from the net's, whose largest value is {check.largest:.3g}; "
                "nothing is written"
            )
        worst.difference = max(worst.difference, check.difference)
        worst.largest = max(worst.largest, check.largest)
    return worst, max(shares)


def _image_sizes(embedded: Embedded, input_size: Sequence[int]) -> list[Size]:
    """The sizes of images that are tried."""
    if embedded.resized is not None:
        height, width = embedded.resized
        return [(height, width), (height + height // 2 + 3, 2 * width + 1), (height // 2 + 1, width // 3 + 1)]
    fixed = embedded.preprocessing.prepared_size(_shape(embedded.model.graph.input[0]))
    return [fixed or (input_size[0], input_size[1])]


def _compare_prepared(embedded: Embedded, images: NDArray[np.uint8], prepared: NDArray[np.float32]) -> float:
    """The share of values that are a grey level away from Caffe's; ExportError where that may not be."""
    own, resized = embedded.own, embedded.resized
    if own.channels != embedded.preprocessing.channels:
        images = images[..., ::-1]
    if resized is not None:
        images = np.stack([resize_bilinear(np.ascontiguousarray(image), *resized) for image in images])
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
    if steps.max(initial=0) > (0 if resized is None else LARGEST_STEP):
        raise ExportError(
            f"the model prepares images otherwise than Caffe's transformer: by up to {steps.max():.3g} grey "
            "levels; nothing is written"
        )
    return float((steps > LARGEST_STEP / 2).mean()) if differing.any() else 0.0


# -- models that are taken apart -----------------------------------------------------------------------------


def split_model(
    model: onnx.ModelProto, preprocessing: Preprocessing
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A model that prepares images itself as two: from bytes to prepared images, and from these to outputs.

    ExportError where the model is not made so: its metadata is damaged.
    """
    graph, prepared = model.graph, preprocessing.prepared
    makers = {name: node for node in graph.node for name in node.output}
    needed, open_names = set[int](), [prepared]
    while open_names:
        node = makers.get(open_names.pop())
        if node is not None and id(node) not in needed:
            needed.add(id(node))
            open_names.extend(node.input)
    front_nodes = [node for node in graph.node if id(node) in needed]
    rest_nodes = [node for node in graph.node if id(node) not in needed]
    made_in_front = {name for node in front_nodes for name in node.output}
    between = made_in_front | {value.name for value in graph.input}
    read = {name for node in rest_nodes for name in node.input} | {value.name for value in graph.output}
    if not front_nodes or not rest_nodes or read & between != {prepared}:
        raise ExportError(
            f"metadata: {PREPARED} must be the value that holds the prepared images, from which alone the "
            f"model goes on; got {prepared!r}; export it again"
        )
    infos = {value.name: value for value in graph.value_info}
    info = infos.get(prepared) or helper.make_tensor_value_info(prepared, TensorProto.FLOAT, [None] * 4)
    return (
        _part(model, front_nodes, graph.input, [info]),
        _part(model, rest_nodes, [info], graph.output),
    )


def _part(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A model of these nodes, with the constants that they read."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    read = dict.fromkeys(name for node in nodes for name in _names_read(node))
    part = onnx.ModelProto()
    part.CopyFrom(model)
    for field in ("node", "input", "output", "initializer", "value_info"):
        del getattr(part.graph, field)[:]
    part.graph.node.extend(nodes)
    part.graph.input.extend(inputs)
    part.graph.output.extend(outputs)
    part.graph.initializer.extend(constants[name] for name in read if name in constants)
    return part


def _names_read(node: onnx.NodeProto) -> Iterator[str]:
    """The values that a node reads, also in the body of a Loop."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _names_read(inner)


def join_models(front: onnx.ModelProto, rest: onnx.ModelProto) -> onnx.ModelProto:
    """What `split_model` has taken apart, as one model; `rest` may have changed inside."""
    model = onnx.ModelProto()
    model.CopyFrom(rest)
    graph = model.graph
    nodes, initializers = list(graph.node), list(graph.initializer)
    del graph.node[:], graph.input[:], graph.initializer[:]
    graph.node.extend([*front.graph.node, *nodes])
    graph.initializer.extend([*front.graph.initializer, *initializers])
    graph.input.extend(front.graph.input)
    graph.value_info.extend(front.graph.output)
    return model


def prepare(front: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the first part of a model makes of bytes (N, H, W, C): (N, C, h, w)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            front.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        prepared: NDArray[np.float32] = session.run(None, {front.graph.input[0].name: images})[0]
    except session_errors() as error:
        raise ExportError(
            f"ONNX Runtime cannot prepare images by the model: {str(error).strip().splitlines()[0]}"
        ) from error
    return prepared
