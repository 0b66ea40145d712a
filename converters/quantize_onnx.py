"""An ONNX model in half precision, or in 8-bit integers whose ranges are calibrated on an LMDB.

int8: weights per channel, symmetric, in 7 of the 8 bits; activations per blob, between the smallest and the
largest value on the calibration records. Inputs and outputs stay float32, so programs that run the model do
not change. Softmax stays float32 as well: 8 bits are too few for its exponentials. So does what detectors
compute from the scores and places of boxes, and so do biases: OpenCV refuses these in 32-bit integers. ONNX
Runtime's own tools do both conversions.

Seven bits, because processors without VNNI add two 8-bit products in 16 bits, which can overflow: with 8 bits
one of a ResNet-20's scores was wrong by 5.3 instead of 0.7. int8 is for CPUs. fp16 is for GPUs; a CPU
computes such a model in float32, as fast as before.
"""

import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from imae.converters.check_onnx import session_errors
from imae.converters.describe_model import QUANTIZED
from imae.converters.model_parts import join_models, preparation, split_model
from imae.converters.preprocessing import NOTHING, PREFIX, Preprocessing, PreprocessingOptions
from imae.converters.run_onnx import (
    UNKNOWN,
    Batch,
    check_shape,
    lmdb_batches,
    model_preprocessing,
    open_session,
)
from imae.files.atomic import write_atomically
from imae.files.errors import DataError, ExportError, first_line
from imae.files.read import AnyPath

BATCH = 100
IN_FLOAT32 = ("Softmax", "LogSoftmax")
WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with half-precision weights and arithmetic; inputs and outputs stay float32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    half: onnx.ModelProto = convert_float_to_float16(
        model, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *IN_FLOAT32]
    )
    _remove_round_trips(half.graph)
    OnnxModel(half).topological_sort()
    return half


def _remove_round_trips(graph: onnx.GraphProto) -> None:
    """Remove the casts of a Softmax's float32 values to float16 and back to an output."""
    makers = {name: node for node in graph.node for name in node.output}
    read = Counter(name for node in graph.node for name in node.input)
    for back in [
        node for node in graph.node if node.op_type == "Cast" and _target_type(node) == TensorProto.FLOAT
    ]:
        cast = makers.get(back.input[0])
        if cast is None or cast.op_type != "Cast" or read[back.input[0]] > 1 or read[cast.input[0]] > 1:
            continue
        source = makers.get(cast.input[0])
        if source is not None and source.op_type in IN_FLOAT32:
            source.output[0] = back.output[0]
            graph.node.remove(cast)
            graph.node.remove(back)


def _target_type(cast: onnx.NodeProto) -> int:
    """The type that a Cast casts to."""
    return next(attribute.i for attribute in cast.attribute if attribute.name == "to")


def to_int8(model: onnx.ModelProto, batches: Iterator[Batch]) -> onnx.ModelProto:
    """The model with 8-bit weights and activations, whose ranges are calibrated on these batches."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = model.graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no type stubs
        def get_next(self) -> dict[str, Any] | None:
            images, _ = next(batches, (None, None))
            return None if images is None else {name: images}

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(None):
        paths = [Path(folder, f"{stage}.onnx") for stage in ("float32", "prepared", "int8")]
        onnx.save(model, paths[0])
        quant_pre_process(paths[0], paths[1], skip_symbolic_shape=True)
        quantize_static(
            paths[1],
            paths[2],
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in _in_float32(onnx.load(paths[1]).graph) if node.name],
            extra_options={"QuantizeBias": False},
        )
        return onnx.load(paths[2])


def _in_float32(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that 8 bits are too few for.

    Besides IN_FLOAT32 these are the nodes that are linked with a NonMaxSuppression, by values that no layer
    with weights has made or reads: the decoding of boxes, the choice among them, what is gathered by it.
    """
    neighbours = defaultdict[str, list[onnx.NodeProto]](list)
    for node in graph.node:
        for name in (*node.input, *node.output):
            if node.op_type not in WITH_WEIGHTS:
                neighbours[name].append(node)
    reached = [node for node in graph.node if node.op_type == "NonMaxSuppression"]
    seen = {node.output[0] for node in reached}
    for node in reached:  # which grows
        for name in (*node.input, *node.output):
            for other in neighbours.pop(name, ()):
                if other.output[0] not in seen:
                    seen.add(other.output[0])
                    reached.append(other)
    return [*reached, *(node for node in graph.node if node.op_type in IN_FLOAT32)]


def calibration(path: AnyPath, preprocessing: Preprocessing, records: int, feed: Any) -> Iterator[Batch]:
    """The first `records` records of an LMDB in batches for the model's input `feed`; they may be short.

    Records of several sizes come in more batches, of one size each.
    """
    fixed = feed.shape[0] if isinstance(feed.shape[0], int) else None
    for images, labels in lmdb_batches(path, preprocessing, fixed or min(BATCH, records)):
        check_shape(feed, (fixed or len(images), *images.shape[1:]))
        yield images[:records], labels
        records -= len(images)
        if records <= 0:
            return


def _counted(batches: Iterator[Batch], counts: list[int]) -> Iterator[Batch]:
    """The batches; their sizes are appended to `counts`."""
    for images, labels in batches:
        counts.append(len(images))
        yield images, labels


def _filled(batches: Iterator[Batch], feed: Any) -> Iterator[Batch]:
    """The batches; where the model's batch is fixed, short ones repeat their last image: ranges stay."""
    for images, labels in batches:
        missing = feed.shape[0] - len(images) if isinstance(feed.shape[0], int) else 0
        yield np.pad(images, [(0, missing), *[(0, 0)] * (images.ndim - 1)], "edge"), labels


def read_model(path: AnyPath) -> onnx.ModelProto:
    """The model in a file; ExportError where the file holds none."""
    try:
        model = onnx.load(os.fspath(path))
        onnx.checker.check_model(model)
    except OSError as error:
        raise ExportError(f"cannot read '{path}': {error.strerror or error}") from error
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        raise ExportError(f"'{path}' is not an ONNX model: {first_line(error)}") from error
    return model


def quantize_file(
    model: AnyPath,
    output: AnyPath,
    to: Literal["fp16", "int8"],
    calibrate: AnyPath | None = None,
    records: int = 1000,
    preprocessing: PreprocessingOptions = NOTHING,
) -> None:
    """Write a model with fewer bits; the file is written atomically.

    It keeps names and metadata; `imae.quantized` says to what and how it was made.

    calibrate      for int8: an LMDB of typical records, of which the first `records` are read
    preprocessing  of these records, where the model says nothing or otherwise; the new model will say it

    ExportError for a model that cannot be read or quantized, DataError for records that do not fit it.
    """
    if to not in ("fp16", "int8"):
        raise DataError(f"a model is quantized to fp16 or int8, got '{to}'")
    if (to == "int8") != bool(calibrate):
        raise DataError("--to int8 needs --calibrate LMDB, and --to fp16 takes none")
    if records < 1:
        raise DataError(f"--records must be at least 1, got {records}")
    session = open_session(model)
    feed = session.get_inputs()[0]
    prepared = preprocessing.apply(model_preprocessing(session, model), feed.shape)
    if calibrate and prepared is None:
        raise ExportError(
            f"{model}: its ranges would be calibrated on other values than it will see: {UNKNOWN}; "
            "--transform '' stands for pixels as they are"
        )
    if len(session.get_inputs()) != 1:
        raise ExportError(f"{model}: a model with one input is needed, got {len(session.get_inputs())}")
    original = net_alone = read_model(model)
    front = None
    if prepared is not None and prepared.is_embedded:  # its arithmetic on images stays float32
        front, net_alone = split_model(original, prepared)
    counts: list[int] = []
    try:
        if calibrate and prepared is not None:
            batches = _filled(_counted(calibration(calibrate, prepared, records, feed), counts), feed)
            if front is not None:
                prepare = preparation(front)
                batches = ((prepare(images), labels) for images, labels in batches)
            result = to_int8(net_alone, batches)
        else:
            result = to_fp16(net_alone)
        if front is not None:
            result = join_models(front, result)
    except session_errors() as error:
        raise ExportError(f"{model}: {first_line(error)}") from error
    metadata = {p.key: p.value for p in original.metadata_props}
    if preprocessing.given and prepared is not None:
        kept = {key: value for key, value in metadata.items() if not key.startswith(PREFIX)}
        metadata = kept | prepared.metadata()
    metadata[QUANTIZED] = to
    if calibrate:
        database = os.path.basename(os.path.normpath(os.fspath(calibrate)))
        metadata[QUANTIZED] += f", calibrated on {sum(counts)} records of {database}"
    onnx.helper.set_model_props(result, metadata)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(result, field, getattr(original, field))
    result.graph.name, result.graph.doc_string = original.graph.name, original.graph.doc_string
    write_atomically(output, result.SerializeToString())
