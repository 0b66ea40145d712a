"""Run an ONNX model in ONNX Runtime on an LMDB or on image files: accuracy, classes, images per second.

Images are prepared as the model's metadata says, which `export_file` has written (preprocessing.py), or as
the caller says.

On CUDA and TensorRT a batch is copied to the device once, and only the scores are copied back; CUDA computes
float32 models in float32, not TF32. On the CPU ONNX Runtime reads a batch in place. Its defaults are kept:
binding, threads, spinning, arena, memory patterns and denormals were tried, and none made ResNet-20 faster.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from imae.converters.byte_images import runs_of_one_size
from imae.converters.check_onnx import session_errors
from imae.converters.detections import are_rows
from imae.converters.images import decode_picture
from imae.converters.onnx_builds import warn_of_two_builds
from imae.converters.preprocessing import (
    NOTHING,
    RGB,
    Preprocessing,
    PreprocessingOptions,
    from_metadata,
    make_preprocessing,
)
from imae.converters.resize import resize_bilinear
from imae.converters.size_steps import size_advice
from imae.files.errors import DataError, DeviceError, ExportError, check_utf8, first_line
from imae.files.file_kinds import FileKind, mistaken_file
from imae.files.limits import blob_problem, within_free_memory
from imae.files.read import AnyPath, is_own_pipe
from imae.layers.data.data import DatumReader
from imae.layers.data.data_resources import DataResources, most_threads
from imae.layers.data.datum import read_file
from imae.layers.data.lmdb_source import open_lmdb
from imae.prototxt import TransformationParameter

if TYPE_CHECKING:
    import onnxruntime

logger = logging.getLogger(__name__)

SPEED_BATCHES, SPEED_SECONDS = 50, 2.0  # what a speed is measured on

Array = NDArray[Any]
Key = TypeVar("Key")
UNKNOWN = (
    "the model does not say how its images are prepared (mean, scale, crop, channels): its answers may be "
    "wrong; give --transform or --mean, here or when it is exported"
)
# Prepared images (N, C, H, W) in float32, or the bytes of images (N, H, W, C) for a model that prepares them;
# and their labels where they are known.
Batch = tuple[Array, NDArray[np.int64] | None]
# ONNX Runtime's name for the memory of a provider; for other providers it copies by itself.
DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
DTYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}


class Speed(NamedTuple):
    """How fast a model is, by itself: images per batch, images per second, the median time of a batch."""

    batch: int
    rate: float
    median: float

    def __str__(self) -> str:
        return (
            f"{self.rate:.0f} images/s of the model alone, a batch of {self.batch} in "
            f"{1e3 * self.median:.3g} ms"
        )


@dataclass
class Result:
    """The results of a model on images.

    accuracy     in [0, 1]; None without labels
    classes      the best class of each image
    seconds      of each batch, for the model alone
    batch_size   images per batch, though the last may have fewer; None for batches of any size
    preprocessing
                 of the images; None where the caller has prepared them
    speed        where it was asked for
    """

    accuracy: float | None
    classes: list[int]
    seconds: list[float]
    batch_size: int | None = None
    preprocessing: Preprocessing | None = None
    speed: Speed | None = None


def open_session(
    path: str | os.PathLike[str], provider: str = "CPU", threads: int = 0, device: int | None = None
) -> onnxruntime.InferenceSession:
    """A session on the named provider (CPU, CUDA, TensorRT, ...); DeviceError if it is not available.

    device   which of several GPUs computes; None leaves it to the provider

    ONNX Runtime falls back to the CPU silently, so the provider of the session is checked.
    """
    warn_of_two_builds()
    import onnxruntime

    if is_own_pipe(path):
        raise ExportError(f"{path}: it is a pipe; ONNX Runtime reads a model from a file only")
    if not os.path.isfile(path):
        raise ExportError(f"{path}: no such file")
    check_utf8(os.fsdecode(path), f"{path}: ONNX Runtime cannot open it; rename the file or folder")
    providers = {
        name.removesuffix("ExecutionProvider").lower(): name for name in onnxruntime.get_all_providers()
    }
    name = providers.get(provider.lower())
    available = [p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers()]
    if name is None or name.removesuffix("ExecutionProvider") not in available:
        raise DeviceError(
            f"provider {provider!r} is not to be had here (available: {', '.join(available)}); install the "
            f"ONNX Runtime build that has it, or use --provider CPU"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised anyway
    try:
        with _limited_memory(name):
            session = onnxruntime.InferenceSession(
                os.fspath(path),
                options,
                providers=[(name, _provider_options(name, device))],
            )
        for value in (*session.get_inputs(), *session.get_outputs(), session.get_modelmeta()):
            for text in ("name", "shape", "custom_metadata_map"):  # to read them raises unless they are UTF-8
                getattr(value, text, None)
    except session_errors() as error:
        mistaken = mistaken_file(path, FileKind.ONNX)
        raise ExportError(
            f"{path}: ONNX Runtime cannot load it{mistaken or f': {first_line(error)}'}"
        ) from error
    if name not in session.get_providers():
        raise DeviceError(
            f"provider {provider!r} could not be started for {path}: ONNX Runtime fell back to "
            f"{', '.join(session.get_providers())}; mend the driver, or use --provider CPU"
        )
    return session


def _provider_options(name: str, device: int | None) -> dict[str, str]:
    options = {} if device is None else {"device_id": str(device)}
    if name == "CUDAExecutionProvider":
        options["use_tf32"] = "0"  # its default is 1: products with 10 bits
    return options


def run_model(
    session: onnxruntime.InferenceSession,
    batches: Iterator[Batch],
    output: str | None = None,
    speed: bool = False,
) -> Result:
    """Run all batches; the class of an image is the largest value of `output`, by default the only one.

    speed   measure it, on the first batch run again where the batches are too few
    """
    output = output_name(session, output)
    _check_no_boxes(session, output)
    classes: list[int] = []
    right = labelled = 0
    timed: list[tuple[int, float]] = []
    first: Array | None = None
    for images, labels in batches:
        scores, spent = run_batch(session, images, output)
        timed.append((len(images), spent))
        if first is None:
            first = images
        best = scores.reshape(len(images), -1).argmax(1)
        classes.extend(best.tolist())
        if labels is not None:
            labelled += len(labels)
            right += int((best == labels).sum())
    return Result(
        right / labelled if labelled else None,
        classes,
        [spent for _, spent in timed],
        speed=speed_of(timed, session, first, output) if speed else None,
    )


def speed_of(
    timed: Sequence[tuple[int, float]],
    session: onnxruntime.InferenceSession,
    batch: Array | None,
    output: str,
) -> Speed | None:
    """The speed, by the images and seconds of batches; None where too little was run to tell it.

    batch  one that is run again until there is enough; None: none is

    The first batch is a warm-up, and a smaller one takes another time for each image.
    """
    counted = [entry for entry in timed[1:] if entry[0] == timed[0][0]]
    while batch is not None and not _is_enough(counted):
        counted.append((len(batch), run_batch(session, batch, output)[1]))
    if not _is_enough(counted):
        return None
    seconds = [spent for _, spent in counted]
    size = counted[0][0]
    return Speed(size, size * len(seconds) / sum(seconds), statistics.median(seconds))


def _is_enough(counted: Sequence[tuple[int, float]]) -> bool:
    return len(counted) >= SPEED_BATCHES or sum(seconds for _, seconds in counted) >= SPEED_SECONDS


def _check_no_boxes(session: onnxruntime.InferenceSession, output: str) -> None:
    """ExportError for an output of SSD's rows, as many as there are boxes: it has no scores of classes."""
    shape = next(value.shape for value in session.get_outputs() if value.name == output)
    if are_rows(shape) and not isinstance(shape[2], int):
        raise ExportError(
            f"output {output!r} holds boxes (rows of image, label, score, xmin, ymin, xmax, ymax), no scores "
            "of classes; read them with ONNX Runtime or OpenCV"
        )


def run_batch(session: onnxruntime.InferenceSession, images: Array, output: str) -> tuple[Array, float]:
    """The values of `output` for each of the images, a Batch's, and the seconds spent in ONNX Runtime."""
    feed = session.get_inputs()[0]
    dtype = DTYPES.get(feed.type)
    if dtype is None or len(session.get_inputs()) > 1:
        raise ExportError(
            "a model with one input of images is needed, floating-point numbers or bytes; "
            f"got {', '.join(f'{i.name}: {i.type}' for i in session.get_inputs())}"
        )
    count = len(images)
    if isinstance(feed.shape[0], int) and count < feed.shape[0]:  # the last batch of a fixed size
        images = np.pad(images, [(0, feed.shape[0] - count), *[(0, 0)] * (images.ndim - 1)])
    check_shape(feed, images.shape)
    images = images.astype(dtype, copy=False)
    try:
        with _limited_memory(session.get_providers()[0]):
            begun = time.perf_counter()
            scores = _scores(session, feed.name, images, output)
            seconds = time.perf_counter() - begun
    except session_errors() as error:
        advice = size_advice(session.get_modelmeta().custom_metadata_map)
        raise ExportError(f"ONNX Runtime cannot run it: {first_line(error)}{advice}") from error
    if not scores.ndim or len(scores) != len(images) or not scores.size:
        raise ExportError(
            f"output {output!r} has shape {list(scores.shape)} for {len(images)} images; it must hold "
            f"values for each image; choose another output"
        )
    return scores[:count], seconds


def _scores(session: onnxruntime.InferenceSession, name: str, images: Array, output: str) -> Array:
    provider = session.get_providers()[0]
    device = DEVICES.get(provider)
    if device is None:
        scores: Array = session.run([output], {name: images})[0]
        return scores
    options = session.get_provider_options()[provider]
    return run_bound(session, name, images, output, device, int(options.get("device_id", 0)))


def run_bound(
    session: onnxruntime.InferenceSession, name: str, images: Array, output: str, device: str, number: int = 0
) -> Array:
    """As `session.run`, with input and output bound to memory of the device: one copy there, one back."""
    import onnxruntime

    # A variable, so that it lives until the run is over: on the CPU the value shares the array's memory, and
    # not every release of ONNX Runtime keeps the array alive.
    contiguous = np.ascontiguousarray(images)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(contiguous, device, number)
    binding = session.io_binding()
    binding.bind_ortvalue_input(name, value)
    binding.bind_output(output, device, number)
    session.run_with_iobinding(binding)
    scores: Array = binding.get_outputs()[0].numpy()
    return scores


def _limited_memory(provider: str) -> AbstractContextManager[None]:
    """A model may ask for any amount of memory; on the CPU it gets what is free. (A GPU has a limit.)"""
    return within_free_memory() if provider == "CPUExecutionProvider" else nullcontext()


def output_name(session: onnxruntime.InferenceSession, name: str | None, option: str = "--output") -> str:
    """`name`, or the only output; ExportError where the model has no such output."""
    names: list[str] = [output.name for output in session.get_outputs()]
    if name is None and len(names) == 1:
        return names[0]
    if name not in names:
        problem = "it has several" if name is None else f"there is no {name!r}"
        raise ExportError(
            f"one output of the model is needed, {problem}; use {option} with {', '.join(names)}"
        )
    return name


def image_shape(session: onnxruntime.InferenceSession) -> list[int | str]:
    """The input's N, C, H, W, with names for free axes; ExportError where it takes no images."""
    shapes = [feed.shape for feed in session.get_inputs()]
    if len(shapes) == 1 and len(shapes[0]) == 4:
        fixed = [size for size in shapes[0] if isinstance(size, int)]
        if 0 not in fixed and blob_problem(fixed) is None:
            return list(shapes[0])
    raise ExportError(f"a model with one input of images (N, C, H, W) is needed; it has {shapes}")


def check_shape(feed: Any, shape: tuple[int, ...]) -> None:
    """DataError where a batch of this shape does not fit the model's input."""
    expected = feed.shape
    if len(expected) != len(shape) or any(
        isinstance(size, int) and size != actual for size, actual in zip(expected, shape, strict=True)
    ):
        instead = "a transform with another crop_size"
        if feed.type == "tensor(uint8)":
            instead = "a model that was exported with --embed-resize"
        raise DataError(
            f"the model's input {feed.name!r} is {expected}, a batch of these images is {list(shape)}; use "
            f"images of that size, or {instead}"
        )


def run_file(
    model: AnyPath,
    *,
    lmdb: AnyPath | None = None,
    images: Sequence[str] = (),
    output: str | None = None,
    provider: str = "CPU",
    batch_size: int = 128,
    threads: int = 0,
    preprocessing: PreprocessingOptions = NOTHING,
    speed: bool = False,
) -> Result:
    """Run a model on the records of an LMDB, or on image files: one of the two.

    output         the output with the scores, if there are several
    provider       CPU, CUDA, TensorRT, ...
    batch_size     images per batch, where the model does not fix it
    threads        of the CPU provider; 0: all cores
    preprocessing  of the images, where the model says nothing or otherwise
    speed          measure it: at least 50 batches or 2 seconds, besides the first batch

    ExportError for a model that cannot be run on images, DeviceError for a provider that is not available,
    DataError for images that do not fit the model.
    """
    if (lmdb is None) == (not images) or isinstance(images, str):
        raise DataError("a model runs on an lmdb or on a list of images; give one of the two")
    check_run_options(batch_size, threads)
    session = open_session(model, provider, threads)
    shape = image_shape(session)
    prepared = chosen_preprocessing(session, model, shape, preprocessing)
    size = shape[0] if isinstance(shape[0], int) else batch_size
    if lmdb is not None:
        batches = lmdb_batches(lmdb, prepared, size)
    else:
        batches = image_batches(images, prepared, size, shape)
    result = run_model(session, batches, output, speed)
    result.batch_size = size
    result.preprocessing = prepared
    return result


def check_run_options(batch_size: int, threads: int) -> None:
    """DataError or DeviceError for a batch without images, and for more threads than there can be."""
    if batch_size < 1:
        raise DataError(f"--batch-size must be at least 1, got {batch_size}")
    most = most_threads()
    if not 0 <= threads <= most:
        raise DeviceError(f"--threads must be 0 to {most} on this machine, got {threads}")


def chosen_preprocessing(
    session: onnxruntime.InferenceSession,
    model: AnyPath,
    shape: Sequence[int | str],
    options: PreprocessingOptions,
) -> Preprocessing:
    """How images are prepared, by the options and the model; a warning where neither says it."""
    prepared = options.apply(model_preprocessing(session, model), shape)
    if prepared is None:
        prepared = pixels_as_they_are(model, shape)
    if not options.given:
        try:
            prepared.fitted(shape)
        except DataError as error:
            raise DataError(f"{os.fspath(model)}: metadata: {error}") from None
    return prepared


def pixels_as_they_are(model: AnyPath, shape: Sequence[int | str]) -> Preprocessing:
    """The preprocessing for a model with an input of this shape that does not say it; logs a warning."""
    prepared = make_preprocessing(TransformationParameter(), num_channels=1 if shape[1] == 1 else 3)
    logger.warning(
        "%s: %s. The pixels go in as they are, 0..255, %s", os.fspath(model), UNKNOWN, prepared.channels
    )
    return prepared


def lmdb_batches(path: AnyPath, preprocessing: Preprocessing, size: int) -> Iterator[Batch]:
    """The records of a database in order, in batches of `size`; the last one may be shorter."""
    transform = preprocessing.transform
    with open_lmdb(path) as source:
        resources = DataResources(budget=0)  # each record is needed once
        reader = DatumReader(source, transform.force_color, transform.force_gray, resources)
        transformer = preprocessing.transformer(f"lmdb '{path}'", resources.map_indices, of_records=True)
        transformer.output_size(reader.first_size, reader.first_name)
        for begin in tqdm(range(0, len(source), size), unit="batch", disable=None):
            rows = np.arange(begin, min(begin + size, len(source)))
            images, places, labels = reader.read(rows)
            if isinstance(images, np.ndarray):
                yield transformer.transform_rows(images, places), labels
            elif preprocessing.is_embedded:
                decoded = [images(i) for i in range(len(rows))]
                for run in runs_of_one_size(decoded):
                    names = reader.names(rows[run.start : run.stop])
                    yield transformer.transform_list(decoded[run.start : run.stop], names), labels[run]
            else:
                yield transformer.transform_made(images, len(rows), reader.names(rows)), labels


def image_batches(
    paths: Sequence[str], preprocessing: Preprocessing, size: int, shape: Sequence[int | str]
) -> Iterator[Batch]:
    """Image files in batches of at most `size`, for an input of this shape."""
    gray = preprocessing.input_channels(shape) == 1
    images = ((path, path, decode_picture(read_file(path), path, gray=gray)) for path in paths)
    for _, batch in prepared_batches(images, preprocessing, shape, size):
        yield batch, None


def prepared_batches(
    images: Iterable[tuple[Key, str, Array]],
    preprocessing: Preprocessing,
    shape: Sequence[int | str],
    most: int,
) -> Iterator[tuple[list[Key], Array]]:
    """Images in batches of at most `most`, each of one prepared size, for an input of this shape.

    images   of each what the caller knows it by, its name in errors, and its pixels (H, W, C), BGR

    DataError for an image that cannot be prepared so.
    """
    transformer = preprocessing.transformer("image")
    keys: list[Key] = []
    batch: list[Array] = []
    for key, name, pixels in images:
        whole = resized(pixels, preprocessing, shape)
        prepared = transformer.transform_list([whole], [name].__getitem__)
        if batch and (len(batch) == most or prepared.shape != batch[0].shape):
            yield keys, np.concatenate(batch)
            keys, batch = [], []
        keys.append(key)
        batch.append(prepared)
    if batch:
        yield keys, np.concatenate(batch)


def resized(pixels: Array, preprocessing: Preprocessing, shape: Sequence[int | str]) -> Array:
    """Decoded pixels (H, W, C), BGR, as (C, h, w) in the model's order, of the size before the crop."""
    size = preprocessing.resize_for(shape)
    if size is not None and pixels.shape[:2] != size:
        pixels = resize_bilinear(pixels, *size)
    if preprocessing.channels == RGB:
        pixels = pixels[:, :, ::-1]
    return pixels.transpose(2, 0, 1)


def model_preprocessing(session: onnxruntime.InferenceSession, model: AnyPath) -> Preprocessing | None:
    """How images are prepared for a model, by its metadata; None where it does not say so.

    DataError where the metadata is damaged, or says something else than the model's input.
    """
    own = from_metadata(session.get_modelmeta().custom_metadata_map, os.fspath(model))
    feeds = session.get_inputs()
    takes_bytes = [feed.name for feed in feeds if feed.type == "tensor(uint8)"]
    if own is None and takes_bytes:
        raise DataError(
            f"{os.fspath(model)}: its input {takes_bytes[0]!r} takes bytes, and its metadata does not say of "
            "what; models of imae export --embed-preprocess say it"
        )
    if own is None or not (own.is_embedded or takes_bytes):
        return own
    fits = takes_bytes == [own.name] and len(feeds) == 1 and feeds[0].shape[3:] == [own.num_channels]
    if not own.is_embedded or not fits:
        inputs = ", ".join(f"{feed.name!r}: {feed.type} {feed.shape}" for feed in feeds)
        raise DataError(
            f"{os.fspath(model)}: metadata: {own.layout} images of {own.dtype} and {own.channels} for the "
            f"input {own.name!r}, and the model has {inputs}; export it again"
        )
    return own
