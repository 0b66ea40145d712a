"""Run an ONNX model on images, and read its output as what it is, by its shape.

classes  (N, C) or (N, C, 1, 1): a score for each of C > 1 classes
boxes    (1, 1, K, 7): SSD's rows (detections.py)
map      (N, C, H, W): C scores for each pixel; with C = 1 a number, or the class, of each pixel
values   all else, such as features; also scores that are no classes': straight after a ReLU or the like, or
         of another number than the model has names
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from imae.converters.detections import Box, are_rows, boxes_in_pixels
from imae.converters.images import decode_picture
from imae.converters.labels import labels_of
from imae.converters.preprocessing import NOTHING, Preprocessing, PreprocessingOptions, Size
from imae.converters.run_onnx import (
    check_run_options,
    chosen_preprocessing,
    image_shape,
    lmdb_batches,
    open_session,
    output_name,
    prepared_batches,
    run_batch,
    speed_of,
)
from imae.converters.run_sources import ImageFile
from imae.files.errors import DataError, ExportError
from imae.files.read import AnyPath, read_bytes
from imae.layers.data.lmdb_source import open_lmdb
from imae.prototxt.caffe_pb2 import ResizeParameter

Array = NDArray[Any]

# Operators after which there are features, not scores, and those that change no value.
OF_FEATURES = (
    *("Relu", "LeakyRelu", "PRelu", "Elu", "ThresholdedRelu", "Clip", "Tanh"),
    *("MaxPool", "LRN", "LpNormalization"),
)
IDLE = ("Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Dropout", "Cast")
NUMBERS = [f"tensor({kind})" for kind in ("float", "float16", "double")]
NUMBERS += [f"tensor({sign}int{bits})" for sign in ("", "u") for bits in (8, 16, 32, 64)]
LARGEST_READ = 1 << 30  # bytes of a model that is read to look at its operators
# Sums of 1000 probabilities in half precision are as far from 1.
OF_ONE = 1e-2


class Kind(Enum):
    """What an output holds."""

    CLASSES = "classes"
    BOXES = "boxes"
    MAP = "map"
    VALUES = "values"


@dataclass(frozen=True)
class Prediction:
    """What a model has computed for one image.

    source  the image; of an LMDB the record's key
    size    (height, width) of the image in its file; None for a record of an LMDB
    values  of the output: (C,) of classes, (K, 7) of boxes, (C, H, W) of a map
    boxes   for Kind.BOXES: those whose score reaches the threshold, the best first
    """

    source: ImageFile
    size: Size | None
    values: Array
    boxes: tuple[Box, ...] = ()


@dataclass
class ImageModel:
    """A model that is ready to run on images; `open_model` makes it.

    path           of the .onnx file
    output         the name of the output that is read
    provider       as it was asked for
    shape          of the input (N, C, H, W); free axes have names
    preprocessing  of the images
    names          of the classes; empty where they are not known
    names_of_user  whether the caller has given them
    threshold      the least score of a box
    kind           of the output; None until the first image where its shape is free
    probabilities  whether the scores of classes are probabilities; None until the first image
    bad            the images that were skipped, and why
    seconds        images and seconds of each batch, of the model alone
    """

    path: AnyPath
    session: Any
    output: str
    provider: str
    shape: Sequence[int | str]
    preprocessing: Preprocessing
    names: Mapping[int, str]
    names_of_user: bool
    batch_size: int
    threshold: float
    softmax: bool
    output_shape: Sequence[Any]
    kind: Kind | None = None
    probabilities: bool | None = None
    bad: list[tuple[str, str]] = field(default_factory=list)
    seconds: list[tuple[int, float]] = field(default_factory=list)
    _first_batch: NDArray[np.float32] | None = None

    @property
    def may_have_classes(self) -> bool:
        """Whether the output may hold scores of classes, by its shape."""
        sides = self.output_shape[2:]
        return self.kind in (None, Kind.CLASSES) and all(side == 1 for side in sides if isinstance(side, int))

    @property
    def num_classes(self) -> int | None:
        """The number of classes, if the output's shape says it."""
        count = self.output_shape[1] if self.may_have_classes and len(self.output_shape) > 1 else None
        return count if isinstance(count, int) else None

    @property
    def shows_all(self) -> bool:
        """Whether the prepared image is the whole image, stretched: nothing is cropped, nothing padded."""
        resize = self.preprocessing.transform.resize_param
        warped = not self.preprocessing.resizes_itself or resize.resize_mode == ResizeParameter.WARP
        return self.preprocessing.crop in (None, self.preprocessing.resize_for(self.shape)) and warped

    def predict(self, images: Iterable[ImageFile], skip_bad: bool = False) -> Iterator[Prediction]:
        """Run on image files, in batches of images that have one size when they are prepared.

        skip_bad  go on where a file cannot be read or decoded, and note it in `bad`

        DataError for such a file otherwise, and for images that do not fit the model.
        """
        most = 1 if self.kind is Kind.BOXES else self.batch_size
        pixels = self._read(images, skip_bad)
        for sources, batch in prepared_batches(pixels, self.preprocessing, self.shape, most):
            yield from self._run(sources, batch)

    def _read(
        self, images: Iterable[ImageFile], skip_bad: bool
    ) -> Iterator[tuple[tuple[ImageFile, Size], str, Array]]:
        """Each image with its size, its path and its pixels."""
        gray = self.preprocessing.input_channels(self.shape) == 1
        for image in images:
            try:
                pixels = read_pixels(image.path, gray=gray)
            except DataError as error:
                if not skip_bad:
                    raise
                self.bad.append((image.path, str(error)))
                continue
            yield (image, (pixels.shape[0], pixels.shape[1])), image.path, pixels

    def predict_lmdb(self, path: AnyPath) -> Iterator[Prediction]:
        """Run on the records of an LMDB; the boxes of a detector need image files."""
        if self.kind is Kind.BOXES:
            raise ExportError(
                f"output {self.output!r} holds boxes (rows of image, label, score, xmin, ymin, xmax, ymax), "
                "no scores of classes, which an LMDB's labels could be compared with; give image files"
            )
        with open_lmdb(path) as source:
            keys = iter(source.keys())
        for images, labels in lmdb_batches(path, self.preprocessing, self.batch_size):
            assert labels is not None
            records = [(ImageFile(os.fsdecode(next(keys)), label), None) for label in labels.tolist()]
            yield from self._run(records, images)

    def _run(
        self, images: Sequence[tuple[ImageFile, Size | None]], batch: NDArray[np.float32]
    ) -> Iterator[Prediction]:
        values, seconds = run_batch(self.session, batch, self.output)
        self.seconds.append((len(batch), seconds))
        if self._first_batch is None:
            self._first_batch = batch
        if self.kind is None:
            self.kind = self._kind_of(values.shape)
        if self.kind is Kind.BOXES:
            source, size = images[0]
            assert size is not None
            where = source.path
            boxes = boxes_in_pixels(values, size, self.preprocessing, self.shape, self.threshold, where)
            yield Prediction(source, size, values, tuple(boxes))
            return
        if self.kind is Kind.CLASSES:
            values = self._scores(values.reshape(len(values), -1))
        for (source, size), mine in zip(images, values, strict=True):
            yield Prediction(source, size, mine)

    def _kind_of(self, shape: Sequence[int]) -> Kind:
        if len(shape) not in (2, 4):
            return Kind.VALUES
        count, is_map = shape[1], len(shape) == 4 and shape[2] * shape[3] > 1
        scored = Kind.MAP if is_map else Kind.CLASSES
        if count < 2:
            return Kind.MAP if is_map else Kind.VALUES
        if not self.names:
            return Kind.VALUES if _maker(self.path, self.output) in OF_FEATURES else scored
        if max(self.names) + 1 == count:
            return scored
        if self.names_of_user:
            raise DataError(
                f"--labels has names for {max(self.names) + 1} classes, output {self.output!r} has {count}; "
                "give the names of this model's classes"
            )
        return Kind.VALUES

    def _scores(self, scores: Array) -> Array:
        """The scores (N, C) as they are, or by softmax."""
        if self.probabilities is None:
            sums = scores.sum(1, dtype=np.float64)
            self.probabilities = bool((scores >= 0).all() and (abs(sums - 1) < OF_ONE).all())
            if self.probabilities and self.softmax:
                raise ExportError(
                    f"--softmax: output {self.output!r} holds probabilities already; leave it out"
                )
        if not self.softmax:
            return scores
        with np.errstate(invalid="ignore"):
            powers = np.exp(scores - scores.max(1, keepdims=True))
        made: Array = powers / powers.sum(1, keepdims=True)
        return made

    def preparation(self, lmdb: bool = False) -> str:
        """How the images are prepared, in words; of an LMDB's records, which are not resized."""
        if lmdb:
            return replace(self.preprocessing, resize=None).steps()
        return self.preprocessing.steps_for(self.shape)

    def describe(self) -> str:
        """What the output holds, in words; after the first image."""
        free = "N", *["?"] * len(self.output_shape)
        sides = [
            str(side) if isinstance(side, int) else name
            for side, name in zip(self.output_shape, free, strict=False)
        ]
        shape = f"output {self.output!r}, ({', '.join(sides)})"
        if self.kind is Kind.BOXES:
            what = f"boxes with a score of {self.threshold:g} or more"
            columns = "label, score, then xmin, ymin, xmax and ymax in pixels of the image"
            return f"output {self.output!r}, (1, 1, N, 7): {what}: {columns}"
        if self.kind is Kind.MAP:
            return f"{shape}: a map; of several channels the largest is a pixel's class"
        if self.kind is Kind.VALUES:
            return f"{shape}: values, no scores of classes"
        if self.softmax:
            return f"{shape}: the softmax of the model's scores"
        if self.probabilities:
            return f"{shape}: probabilities"
        return f"{shape}: scores as the model gives them, no probabilities (--softmax makes them such)"

    def speed(self, measure: bool = False) -> str | None:
        """Images per second and the median time of a batch, of the model alone.

        None where too little was run to say it: the first batch is a warm-up.

        measure  run the first batch again until there is enough
        """
        speed = speed_of(self.seconds, self.session, self._first_batch if measure else None, self.output)
        return None if speed is None else str(speed)


def open_model(
    path: AnyPath,
    *,
    output: str | None = None,
    provider: str = "CPU",
    threads: int = 0,
    batch_size: int = 128,
    preprocessing: PreprocessingOptions = NOTHING,
    names: Mapping[int, str] | None = None,
    threshold: float = 0.5,
    softmax: bool = False,
) -> ImageModel:
    """Open a model with one input of images.

    output         its name, if there are several and not just one of SSD's rows
    provider       CPU, CUDA, TensorRT, ...
    threads        of the CPU provider; 0: all cores
    batch_size     images per batch, where the model does not fix it
    preprocessing  of the images, where the model says nothing or otherwise
    names          of the classes; None: those that the model has
    threshold      the least score of a box
    softmax        make probabilities of the scores of classes

    ExportError for a model that cannot be run on images, DeviceError for a provider that is not available.
    """
    check_run_options(batch_size, threads)
    session = open_session(path, provider, threads)
    _refuse_several_inputs(session, path)
    shape = image_shape(session)
    rows = [value.name for value in session.get_outputs() if are_rows(value.shape)]
    name = output_name(session, rows[0] if output is None and len(rows) == 1 else output)
    kind = next(value.type for value in session.get_outputs() if value.name == name)
    if kind not in NUMBERS:
        raise ExportError(f"{path}: output {name!r} is a {kind}; numbers are needed, choose another output")
    fixed = shape[0] if isinstance(shape[0], int) else None
    if name in rows and fixed not in (None, 1):
        raise ExportError(
            f"{path}: a detector with batches of {fixed} images; export it without --fixed-batch"
        )
    metadata = session.get_modelmeta().custom_metadata_map
    return ImageModel(
        path=path,
        session=session,
        output=name,
        output_shape=next(value.shape for value in session.get_outputs() if value.name == name),
        provider=provider,
        shape=shape,
        preprocessing=chosen_preprocessing(session, path, shape, preprocessing),
        names=labels_of(metadata, os.fspath(path)) if names is None else names,
        names_of_user=names is not None,
        batch_size=fixed or batch_size,
        threshold=threshold,
        softmax=softmax,
        kind=Kind.BOXES if name in rows else None,
    )


def read_pixels(path: str, gray: bool = False) -> NDArray[np.uint8]:
    """The pixels (H, W, C), BGR, of an image file; DataError where it cannot be read or decoded."""
    try:
        data = read_bytes(path)
    except OSError as error:
        raise DataError(
            f"cannot read the image '{path}': {error.strerror or error}; --skip-bad leaves it out"
        ) from None
    return decode_picture(data, path, gray=gray)


def _refuse_several_inputs(session: Any, path: AnyPath) -> None:
    inputs, outputs = (
        [value.name for value in values] for values in (session.get_inputs(), session.get_outputs())
    )
    if len(inputs) < 2:
        return
    what = "run feeds one input, of images"
    if "im_info" in inputs or {"cls_prob", "bbox_pred"} <= set(outputs):
        what = (
            "a detector of Faster R-CNN's kind, whose boxes are computed from its outputs outside of the "
            "model; run reads SSD's rows (1, 1, N, 7) alone"
        )
    raise ExportError(
        f"{path} has the inputs {', '.join(inputs)} and the outputs {', '.join(outputs)}: {what}; call it "
        "with ONNX Runtime"
    )


def _maker(path: AnyPath, output: str) -> str | None:
    """The operator that has computed an output, through those that change no value; None: not known."""
    import onnx

    if os.path.getsize(path) > LARGEST_READ:
        return None
    try:
        graph = onnx.load(os.fspath(path), load_external_data=False).graph
    except DecodeError:  # ONNX Runtime reads another format of its own
        return None
    makers = {name: node for node in graph.node for name in node.output}
    while (node := makers.pop(output, None)) is not None and node.op_type in IDLE and node.input:
        output = node.input[0]
    return None if node is None else node.op_type
