"""What a model says of itself besides its inputs: where it is from, how well it was checked, its classes.

    producer_name, producer_version     imae and its version
    doc_string                          one line: the net, and the files that it is from
    imae.version                        the version again, for programs that read the metadata only
    imae.source.model                   the prototxt's file name without its folder; pipe: it came by one
    imae.source.model_sha256            its SHA-256, in hexadecimal digits
    imae.source.weights, .weights_sha256
                                        the same of the weights; absent: none were given
    imae.source.from_fillers            JSON: the layers whose values are those of their fillers, as there are
                                        no weights for them
    imae.difference                     JSON: `difference`, the largest absolute difference of ONNX Runtime's
                                        outputs from the net's, on random inputs; `largest`, the largest
                                        absolute value there; `batch_sizes`, those that were compared.
                                        Absent: nothing could be compared. It is that of the export: who
                                        quantizes the model adds imae.quantized
    imae.license                        as the user gave it
    names                               JSON: {"0": "tench, Tinca tinca", ...} (labels.py)

The same files and options give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import onnx
from onnx import TensorProto

from imae.converters.check_onnx import batch_axes
from imae.converters.labels import NAMES_KEY, Labels, labels_metadata
from imae.files.errors import DataError, ExportError
from imae.files.read import AnyPath, is_own_pipe, open_to_read
from imae.layers.forks.detection_output import DetectionOutput
from imae.layers.forks.yolo_detection_output import YoloDetectionOutput
from imae.layers.forks.yolov3_detection_output import Yolov3DetectionOutput
from imae.layers.layer import Layer, Shape
from imae.layers.utility.argmax import ArgMax
from imae.layers.utility.softmax import Softmax
from imae.net.net import Net

if TYPE_CHECKING:
    from imae.converters.export_onnx import Export

VERSION, DIFFERENCE, LICENSE = "imae.version", "imae.difference", "imae.license"
MODEL, WEIGHTS = "imae.source.model", "imae.source.weights"
FROM_FILLERS = "imae.source.from_fillers"
SHA256 = "_sha256"
QUANTIZED = "imae.quantized"  # what `imae quantize` has made of the model
LONGEST_LICENSE = 1000  # characters
READ_AT_ONCE = 1 << 20

NUMBERS = {
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8,
    TensorProto.UINT8,
}  # fmt: skip


@dataclass(frozen=True)
class About:
    """What is written into a model about it.

    model     the prototxt that it is made from; None: it is not known
    weights   its caffemodel; None: the fillers' values
    labels    the names of its classes; empty: none are given
    license   one line; empty: none is given
    """

    model: AnyPath | None = None
    weights: AnyPath | None = None
    labels: Labels = field(default_factory=list)
    license: str = ""

    def __post_init__(self) -> None:
        if self.license != self.license.strip() or not self.license.isprintable():
            raise DataError(f"--license must be one line of text, such as BSD-2-Clause; got {self.license!r}")
        if len(self.license) > LONGEST_LICENSE:
            raise DataError(
                f"--license has {len(self.license)} characters, at most {LONGEST_LICENSE} fit; give the name "
                "of the licence, and put its text beside the model"
            )


def describe(result: Export, net: Net, about: About) -> None:
    """Write all this into the exported model; what its metadata has already stays.

    ExportError for labels that do not fit the classes of an output.
    """
    if about.labels:
        _check_labels(about.labels, class_counts(net, result.outputs))
    model = result.model
    model.producer_name, model.producer_version = "imae", version("imae")
    metadata = source_metadata(about.model, about.weights)
    if result.from_fillers:
        metadata[FROM_FILLERS] = json.dumps(result.from_fillers, ensure_ascii=False)
    if len(result.not_compared) < len(result.outputs):
        measured = {"difference": _short(result.difference), "largest": _short(result.largest)}
        metadata[DIFFERENCE] = json.dumps(measured | {"batch_sizes": [*result.batch_sizes]})
    if about.license:
        metadata[LICENSE] = about.license
    if about.labels:
        metadata[NAMES_KEY] = labels_metadata(about.labels)
    sources = " and ".join(metadata[key] for key in (MODEL, WEIGHTS) if key in metadata)
    name = f"Caffe's net {net.name!r}" if net.name else "A net of Caffe's"
    model.doc_string = f"{name}, made from {sources}" if sources else name
    own = {prop.key: prop.value for prop in model.metadata_props}
    onnx.helper.set_model_props(model, own | metadata)


def source_metadata(model: AnyPath | None, weights: AnyPath | None) -> dict[str, str]:
    """imae's version; the names and the SHA-256 of the prototxt and the caffemodel, where they are given.

    DataError where one of them cannot be read.
    """
    metadata = {VERSION: version("imae")}
    for key, path in ((MODEL, model), (WEIGHTS, weights)):
        if path is not None:
            metadata |= {key: _file_name(path), key + SHA256: file_sha256(path)}
    return metadata


class Difference(NamedTuple):
    """What `imae.difference` holds."""

    difference: float
    largest: float
    batch_sizes: tuple[int, ...]


def difference_of(metadata: Mapping[str, str]) -> Difference | None:
    """How far a model's outputs were from its net's when it was exported; None where nothing says it.

    What this program has not written says nothing either.
    """
    try:
        made = json.loads(metadata[DIFFERENCE])
        sizes = tuple(int(size) for size in made["batch_sizes"])
        return Difference(float(made["difference"]), float(made["largest"]), sizes)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def file_sha256(path: AnyPath) -> str:
    """The SHA-256 of a file's content; DataError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open_to_read(path) as file:
            while data := file.read(READ_AT_ONCE):
                digest.update(data)
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}") from None
    return digest.hexdigest()


def class_counts(net: Net, outputs: Sequence[str]) -> dict[str, int]:
    """The number of classes of each output for which the net says it.

    An output has a score for each class, the index of a class (ArgMax), or rows of detections with a label.
    A single value is no class.
    """
    axes, counts = batch_axes(net), dict[str, int]()
    for step in net.steps:
        bottoms = [net.blob_shapes[name] for name in step.bottoms]
        for top in step.tops:
            if step.layer.type == "Split" or step.layer.idle_in_test:
                counts[top] = counts.get(step.bottoms[0], 0)
            else:
                counts[top] = _class_count(step.layer, bottoms, net.blob_shapes[top], axes[top])
    return {name: counts[name] for name in outputs if counts.get(name, 0) > 1}


def _class_count(layer: Layer, bottoms: Sequence[Shape], top: Shape, batch_axis: int) -> int:
    """The classes of a top; 0 where they are not known."""
    if isinstance(layer, DetectionOutput):
        return layer.param.detection_output_param.num_classes
    if isinstance(layer, YoloDetectionOutput | Yolov3DetectionOutput):
        return layer.classes + 1  # labels begin at 1
    if isinstance(layer, ArgMax):
        argmax, values = layer.param.argmax_param, bottoms[0]
        if argmax.HasField("axis"):
            return values[argmax.axis]
        return values[1] if prod(values[2:]) == 1 < len(values) else 0
    if layer.open_axes:
        return 0
    if isinstance(layer, Softmax):
        return top[layer.param.softmax_param.axis]
    if len(top) > batch_axis + 1 and (batch_axis == 1 or len(top) in (2, 4)):
        return top[batch_axis + 1]
    return 0


def _check_labels(labels: Labels, counts: Mapping[str, int]) -> None:
    """ExportError unless the labels fit an output, if the classes of any are known."""
    if isinstance(labels, list):
        what = f"{len(labels)} names"
        fits = [count == len(labels) for count in counts.values()]
    else:
        what = f"{len(labels)} names, the last for label {max(labels)}"
        # A label map may leave out the background.
        fits = [max(labels) < count <= len(labels) + 1 for count in counts.values()]
    if counts and not any(fits):
        known = ", ".join(f"{name!r} has {count} classes" for name, count in counts.items())
        raise ExportError(
            f"--labels has {what}, but output {known}; give a name for each class, or leave --labels out"
        )


def _file_name(path: AnyPath) -> str:
    if is_own_pipe(path):
        return "pipe"
    return os.path.basename(os.fsdecode(path)).encode("utf-8", "replace").decode()


def _short(value: float) -> float:
    """A number with three digits."""
    return float(f"{value:.3g}")


def parameter_counts(model: onnx.ModelProto) -> dict[str, int]:
    """The number of values of each parameter: the blobs, which have names such as conv1.weight (graph.py).

    Constants, such as the boxes of a PriorBox layer, and the scales of quantized blobs are none. In the model
    of another program, whose names say nothing, all tensors of numbers count.
    """
    sizes = {v.name: prod(v.dims) for v in model.graph.initializer if v.data_type in NUMBERS}
    blobs = {
        name: size
        for name, size in sizes.items()
        if "." in name and "/constant" not in name and not name.endswith(("_scale", "_zero_point"))
    }
    return blobs or sizes
