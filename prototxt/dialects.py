"""Nets and solver states of forks whose fields or blobs are not Caffe's, as Caffe's messages.

    nvidia  NVIDIA Caffe 0.15 to 0.17. BlobProto has raw_data_type = 10, raw_diff_type = 11, raw_data = 12 and
            raw_diff = 13 (numbers as bytes: double, float or half). LayerParameter 145 to 148 are its
            forward_type ... backward_math instead of parameter_param, recurrent_param, swish_param and
            clip_param; its recurrent_param is 151. BatchNorm with scale and bias has five blobs:
                0.16, 0.17   mean, variance, a correction that is 1, scale, bias
                0.15         scale, bias, mean, variance, one that is reserved and has one number
            It becomes a BatchNorm with Caffe's three blobs and a Scale after it. Its mean and variance are
            not sums. In a prototxt, a BatchNorm with scale_bias, scale_filler, bias_filler or a fourth
            `param` becomes such a pair as well. In 0.15 every BatchNorm has scale and bias; only the order
            of the blobs in the weights shows that version. 0.16 and 0.17 set lr_mult and decay_mult
            themselves, 0 for statistics and 1 for scale and bias, use an eps of at least 1e-5, and let the
            phase decide instead of use_global_stats. NVIDIA_TEXT lists the fields that are read and left out.
            loss_param.label_smoothing and data_param.shuffle have other meanings than in Intel's fork.
            A solver does not test before the first iteration, and its delta is at least 1e-4 (Adam, RMSProp)
            or 1e-3 (AdaGrad, AdaDelta).
    other   any fork's binary files: only the name, type, bottoms, tops and blobs of each layer are read, so
            that no other field can be misread. Prototxts are read as Caffe's.

Fields that Caffe's messages lack are left out, and a line in the log lists them.

Weights need no dialect, unless their blobs are NVIDIA's: `read_weights` reads names and blobs alone, whose
numbers all forks share. A binary net that is used as a net is refused where a fork's number was misread
(`check_numbers`).

Source: caffe.proto, blob.cpp, net.cpp and batch_norm_layer.cpp of NVIDIA/caffe, branches 0.15, 0.16 and 0.17.
As its own loader does, the order of 0.15 is recognised by a last blob of one number.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from imae.files.errors import CaffemodelError, PrototxtError, SnapshotError
from imae.files.read import AnyPath
from imae.prototxt import caffe_pb2
from imae.prototxt.caffe_pb2 import (
    BlobProto,
    BlobShape,
    LayerParameter,
    NetParameter,
    SolverParameter,
    SolverState,
)
from imae.prototxt.schema import POOL, message_class
from imae.prototxt.text import M, parse_binary, read_binary, read_content, read_text
from imae.prototxt.upgrade import SOLVER_TYPES, complete_snapshot_prefix, upgrade_net, upgrade_solver

DIALECTS = ("nvidia", "other")
TEXT_DIALECTS = ("nvidia",)  # dialects that a prototxt can have

logger = logging.getLogger(__name__)

# Numbers of fields of NVIDIA Caffe, and its enum Type.
RAW_DATA_TYPE, RAW_DIFF_TYPE, RAW_DATA, RAW_DIFF = 10, 11, 12, 13
RAW_NUMBERS = (
    "its numbers are in the fields 10 to 13 of its blobs, where NVIDIA Caffe puts them, and OpenCV for half "
    "precision; --dialect nvidia reads these"
)
RECURRENT_PARAM = 151
SCALE_FILLER, BIAS_FILLER, SCALE_BIAS = 5, 6, 7  # of BatchNormParameter
FILLERS = (SCALE_FILLER, BIAS_FILLER)
CONVERTED = {
    f"LayerParameter.{RECURRENT_PARAM}",
    *(f"BatchNormParameter.{number}" for number in (SCALE_FILLER, BIAS_FILLER, SCALE_BIAS)),
}
RAW_TYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f8"), 1: np.dtype("<f4"), 2: np.dtype("<f2")}
SMALLEST_EPS = np.float32(1e-5)  # of its BatchNorm
SMALLEST_DELTAS = {"Adam": 1e-4, "RMSProp": 1e-4, "AdaGrad": 1e-3, "AdaDelta": 1e-3}  # of its solvers

# The fields of NVIDIA's prototxts that Caffe lacks: about speed, precision, memory and the order of records.
# NAME:TYPE; the enums' values are in NVIDIA_ENUMS.
NVIDIA_TEXT = {
    "NetParameter": """default_forward_type:Type default_backward_type:Type default_forward_math:Type
        default_backward_math:Type default_cudnn_math_override:int32 default_conv_algos_override:string
        global_grad_scale:float global_grad_scale_adaptive:bool reduce_buckets:int32
        eltwise_mem_sharing:bool""",
    "LayerParameter": """forward_type:Type backward_type:Type forward_math:Type backward_math:Type
        cudnn_math_override:int32 debug:bool""",
    "BatchNormParameter": "engine:Engine",
    "ConvolutionParameter": "conv_algos_override:string cudnn_convolution_algo_seeker:Seeker",
    "DataParameter": "threads:uint32 parser_threads:uint32 precache:bool",
    "DropoutParameter": "engine:Engine random_seed:int64",
    "ImageDataParameter": "threads:uint32 cache:bool precache:bool",
    "TransformationParameter": "use_gpu_transform:bool random_seed:int64",
}
NVIDIA_ENUMS = {
    "Type": "DOUBLE FLOAT FLOAT16 INT UINT BOOL",
    "Engine": "DEFAULT CAFFE CUDNN",
    "Seeker": "GET FINDEX",
}
FIRST_NUMBER = 100_000_000  # of those fields, in a schema that only reads

# Numbers of LayerParameter that Caffe gave late, and forks to other fields.
LATE_NUMBERS = range(132, 149)
# What weights are read from, by message.
READ_OF_WEIGHTS = {
    "NetParameter": {"name", "layer", "layers"},
    "LayerParameter": {"name", "type", "blobs"},
    "V1LayerParameter": {"name", "blobs", "layer"},
    "V0LayerParameter": {"name", "blobs"},
}
# What `other` reads, by message.
READ_BY_OTHER = {
    "NetParameter": {"name", "layer", "layers"},
    "LayerParameter": {"name", "type", "bottom", "top", "blobs"},
    "V1LayerParameter": {"name", "type", "bottom", "top", "blobs", "layer"},
    "V0LayerParameter": {"name", "type", "blobs"},
    "SolverState": {
        "iter", "learned_net", "history", "current_step", "minimum_loss", "iter_last_event", "imae_run",
    },
}  # fmt: skip


def read_net_dialect(
    path: AnyPath, dialect: str, scales: Mapping[str, str | None] | None = None
) -> NetParameter:
    """A fork's binary net in Caffe's own form, not upgraded.

    scales   name of a BatchNorm layer -> name of the Scale layer after it; without an entry NAME_scale. None:
             there is no Scale, and five blobs are an error

    PrototxtError where the file cannot be read, CaffemodelError where a blob makes no sense.
    """
    if not is_nvidia(dialect):
        return _read_other(path, NetParameter)
    return _net_from_nvidia(read_binary(path, NetParameter), path, scales or {}, {})


def read_weights(path: AnyPath) -> Sequence[LayerParameter]:
    """Names, types and blobs of the layers of a binary net of any age and fork, except NVIDIA's raw blobs.

    The layers may be of a class of their own, and hold the fields that were not looked at as unknown ones.
    PrototxtError where the file cannot be read.
    """
    read = parse_binary(read_content(path), _reduced(NetParameter.DESCRIPTOR.full_name, "weights"), path)
    if not read.layers:
        layers: Sequence[LayerParameter] = read.layer
        return layers
    read.DiscardUnknownFields()
    return upgrade_net(NetParameter.FromString(read.SerializePartialToString()), os.fspath(path)).layer


def check_numbers(net: NetParameter, path: AnyPath) -> NetParameter:
    """The binary net; PrototxtError if a fork wrote it with fields that Caffe lacks, or by other numbers."""
    foreign = [f"{net.DESCRIPTOR.name}.{number}" for number in _unknown_fields(net)]
    for layer in net.layer:
        foreign += [f"{name} of layer '{layer.name}'" for name in _unknown_names(layer, {"BlobProto"})]
        foreign += [
            f"{field.name} (LayerParameter.{field.number}) of layer '{layer.name}' ({layer.type})"
            for field, _ in layer.ListFields()
            if field.number in LATE_NUMBERS and not _belongs(field.name, layer.type)
        ]
    for old in net.layers:
        foreign += [f"{name} of layer '{old.name}'" for name in _unknown_names(old, {"BlobProto"})]
    if foreign:
        more = " and more" if len(foreign) > 1 else ""
        raise PrototxtError(
            f"{path}: a fork wrote this net, by whose numbers its fields cannot be read: {foreign[0]}{more}; "
            "take its prototxt, or give --dialect nvidia if it is NVIDIA's, or --dialect other, which reads "
            "only names, types, bottoms, tops and blobs"
        )
    return net


def _belongs(field: str, layer_type: str) -> bool:
    """Whether a field of LayerParameter is the parameter of a type of Caffe's."""
    if field == "recurrent_param":
        return layer_type in ("LSTM", "RNN")
    return field.removesuffix("_param").replace("_", "") == layer_type.lower()


def read_state_dialect(path: AnyPath, dialect: str, data: bytes | None = None) -> SolverState:
    """A fork's binary solver state in Caffe's own form.

    data   the file's content, if it has been read already

    PrototxtError where the file cannot be read, SnapshotError where a history blob makes no sense.
    """
    if not is_nvidia(dialect):
        return _read_other(path, SolverState, data)
    state = parse_binary(read_content(path) if data is None else data, SolverState, path)
    try:
        for index, blob in enumerate(state.history):
            _convert_blob(blob, f"history blob {index}")
    except CaffemodelError as error:
        raise SnapshotError(f"{path}: {error}") from None
    return _without_unknown(state, path)


def read_net_text(path: AnyPath, dialect: str | None = None, weights: Sequence[AnyPath] = ()) -> NetParameter:
    """A net's prototxt of any age, Caffe's own or a fork's, as today's message.

    weights   the net's weight files, where they are known: NVIDIA's show which of its BatchNorm layers have
              scale and bias

    PrototxtError where it cannot be read.
    """
    return upgrade_net(read_net_text_dialect(path, dialect, weights), os.fspath(path))


def read_solver_dialect(path: AnyPath, dialect: str | None) -> SolverParameter:
    """A solver's prototxt of any age, Caffe's own or a fork's, as today's message, with its nets.

    PrototxtError where it cannot be read.
    """
    param = upgrade_solver(read_solver_text_dialect(path, dialect), os.fspath(path))
    return complete_snapshot_prefix(param, os.fspath(path))


def read_solver_text_dialect(path: AnyPath, dialect: str | None) -> SolverParameter:
    """`read_solver_dialect` without the upgrade: the solver as a file of Caffe's would have it."""
    if not is_nvidia(dialect):
        return read_text(path, SolverParameter)
    theirs = read_text(path, _nvidia_class("SolverParameter"))
    _log_left_out(path, sorted(set(_remove_nvidia_fields(theirs))))
    param = SolverParameter.FromString(theirs.SerializePartialToString())
    for nets in (param.test_net_param, *([net] for net in _single_nets(param))):
        for net in nets:
            net.CopyFrom(_net_of_text(net, path, ()))
    if not param.HasField("test_initialization"):
        param.test_initialization = False
    kind = SOLVER_TYPES[param.solver_type] if param.HasField("solver_type") else param.type
    if param.delta < SMALLEST_DELTAS.get(kind, 0):
        param.delta = SMALLEST_DELTAS[kind]
    return param


def _single_nets(param: SolverParameter) -> list[NetParameter]:
    """The nets inside the solver, those of test_net_param apart."""
    return [getattr(param, name) for name in ("net_param", "train_net_param") if param.HasField(name)]


def read_net_text_dialect(
    path: AnyPath, dialect: str | None, weights: Sequence[AnyPath] = ()
) -> NetParameter:
    """`read_net_text` without the upgrade: the net as a file of Caffe's would have it."""
    if not is_nvidia(dialect):
        return read_text(path, NetParameter)
    theirs = read_text(path, _nvidia_class("NetParameter"))
    _log_left_out(path, sorted(set(_remove_nvidia_fields(theirs))))
    return _net_of_text(NetParameter.FromString(theirs.SerializePartialToString()), path, weights)


def _net_of_text(net: NetParameter, path: AnyPath, weights: Sequence[AnyPath]) -> NetParameter:
    """NVIDIA's net from a prototxt, without the fields that are left out, as Caffe's; see `read_net_text`."""
    for layer in net.layer:
        if layer.loss_param.HasField("label_smoothing"):
            layer.loss_param.nvidia_label_smoothing = layer.loss_param.label_smoothing
            layer.loss_param.ClearField("label_smoothing")
        if layer.data_param.shuffle and not layer.data_param.HasField("cache"):
            layer.data_param.cache = False  # without it, its shuffle does nothing (record_order.py)
    norms = [layer for layer in net.layer if layer.type == "BatchNorm"]
    if passed_over := [layer.name for layer in norms if layer.batch_norm_param.HasField("use_global_stats")]:
        logger.warning(
            "%s: use_global_stats of %s: NVIDIA Caffe 0.16 and 0.17 pass over it and go by the phase",
            path, ", ".join(passed_over),
        )  # fmt: skip
    orders = {name: is_015 for file in weights if norms for name, is_015 in _orders_of_five(file)}
    for layer in norms:  # a net in Caffe's own form for NVIDIA's weights has the Scale
        if layer.name in orders and not _is_scaled(layer, net):
            layer.batch_norm_param.MergeFromString(bytes([SCALE_BIAS << 3, 1]))  # scale_bias: true
    return _net_from_nvidia(net, path, {}, orders)


def _is_scaled(norm: LayerParameter, net: NetParameter) -> bool:
    """Whether the first layer that reads the top of a BatchNorm layer is a Scale."""
    following = iter(net.layer)
    while next(following, norm) is not norm:
        continue
    reader = next((layer for layer in following if norm.top[:1] == layer.bottom[:1]), None)
    return reader is not None and reader.type == "Scale"


def _orders_of_five(weights: AnyPath) -> list[tuple[str, bool]]:
    """The BatchNorm layers that have five blobs, and whether these are in the order of 0.15."""
    try:
        layers = read_weights(weights)
    except PrototxtError:  # raised again where the weights are loaded
        return []
    return [
        (layer.name, _count(layer.blobs[4]) == 1)
        for layer in layers
        if layer.type == "BatchNorm" and len(layer.blobs) == 5
    ]


def fork_hint(blobs: Iterable[BlobProto]) -> str:
    """The end of an error about blobs without numbers that have fields of a fork; "" without such fields."""
    unknown = {number for blob in blobs for number in _unknown_fields(blob)}
    if not unknown.isdisjoint((RAW_DATA, RAW_DIFF)):
        return f", or {RAW_NUMBERS}"
    return ", or a fork's, which --dialect reads" if unknown else ""


def is_nvidia(dialect: str | None) -> bool:
    """Whether the dialect is NVIDIA's; PrototxtError for an unknown one."""
    if dialect is not None and dialect not in DIALECTS:
        raise PrototxtError(f"unknown dialect '{dialect}'; known: {', '.join(DIALECTS)}")
    return dialect == "nvidia"


def _net_from_nvidia(
    net: NetParameter, path: AnyPath, scales: Mapping[str, str | None], orders: Mapping[str, bool]
) -> NetParameter:
    """The net with a Scale layer after each BatchNorm that has scale and bias."""
    converted = NetParameter()
    converted.CopyFrom(net)
    del converted.layer[:]
    try:
        for layer in net.layer:
            converted.layer.extend(_from_nvidia(layer, scales, orders))
    except (CaffemodelError, DecodeError) as error:
        raise CaffemodelError(f"{path}: {error}") from None
    return _without_unknown(converted, path)


def _without_unknown(message: M, path: AnyPath) -> M:
    """The message without the fields that Caffe does not know; a line in the log lists them."""
    _log_left_out(path, sorted(set(_unknown_names(message)) - CONVERTED))
    message.DiscardUnknownFields()
    return message


def _log_left_out(path: AnyPath, names: list[str]) -> None:
    if names:
        logger.warning("%s: left out, as Caffe has no such fields: %s", path, ", ".join(names))


def _from_nvidia(
    layer: LayerParameter, scales: Mapping[str, str | None], orders: Mapping[str, bool]
) -> list[LayerParameter]:
    """The layer, and after a BatchNorm with scale and bias the Scale that was part of it."""
    for index, blob in enumerate(layer.blobs):
        _convert_blob(blob, f"layer '{layer.name}', blob {index}")
    _parse_into(layer.recurrent_param, layer, RECURRENT_PARAM)
    if layer.type != "BatchNorm":
        return [layer]
    norm, blobs, params = layer.batch_norm_param, list(layer.blobs), list(layer.param)
    if blobs:
        has_scale, is_015 = len(blobs) == 5, len(blobs) == 5 and _count(blobs[4]) == 1
    else:
        has_scale = _has_scale_fields(layer)
        is_015 = orders.get(layer.name, False)
    if not is_015:
        if norm.HasField("use_global_stats"):
            norm.ClearField("use_global_stats")
        if norm.eps < SMALLEST_EPS:
            norm.eps = float(SMALLEST_EPS)
    of_statistics, of_scale = (params[2:5], params[:2]) if is_015 else (params[:3], params[3:])
    for spec in of_statistics:
        spec.lr_mult = spec.decay_mult = 0
    for spec in () if is_015 else of_scale:
        spec.lr_mult = spec.decay_mult = 1
    del layer.param[:]
    layer.param.extend(of_statistics)
    if not has_scale:
        return [layer]
    name = scales.get(layer.name, f"{layer.name}_scale")
    if name is None:
        raise CaffemodelError(
            f"Incompatible number of blobs for layer {layer.name}: the file has 5, with scale and bias, "
            "and no Scale layer of the net reads its top; put one with bias_term: true after it, or, if the "
            "prototxt is NVIDIA's, write scale_bias: true into batch_norm_param"
        )
    scale_and_bias: list[BlobProto] = []
    if blobs:
        scale_and_bias, statistics = (blobs[:2], blobs[2:4]) if is_015 else (blobs[3:], blobs[:2])
        # Intel's fork has NVIDIA's order, but sums, and Caffe's correction, a number above 1.
        is_intels = not is_015 and list(blobs[2].data or blobs[2].double_data) > [1]
        correction = blobs[2] if is_intels else BlobProto(shape=BlobShape(dim=[1]), data=[1])
        del layer.blobs[:]
        layer.blobs.extend([*statistics, correction])
    top = layer.top[:1]
    scale = LayerParameter(
        name=name,
        type="Scale",
        bottom=top,
        top=top,
        param=of_scale,
        include=layer.include,
        exclude=layer.exclude,
        blobs=scale_and_bias,
    )
    scale.scale_param.bias_term = True
    _parse_into(scale.scale_param.filler, norm, SCALE_FILLER)
    _parse_into(scale.scale_param.bias_filler, norm, BIAS_FILLER)
    if layer.HasField("phase"):
        scale.phase = layer.phase
    return [layer, scale]


def _has_scale_fields(norm: LayerParameter) -> bool:
    """Whether the text of a BatchNorm has fields for scale and bias."""
    fields = _unknown_fields(norm.batch_norm_param)
    return bool(fields.get(SCALE_BIAS)) or not fields.keys().isdisjoint(FILLERS) or len(norm.param) > 3


def _convert_blob(blob: BlobProto, owner: str) -> None:
    """Move a blob's numbers from NVIDIA's raw bytes into Caffe's fields. Errors name its `owner`."""
    raw = _unknown_fields(blob)
    for data_field, type_field, name in (
        (RAW_DATA, RAW_DATA_TYPE, "data"),
        (RAW_DIFF, RAW_DIFF_TYPE, "diff"),
    ):
        data = raw.get(data_field)
        if data is None or len(getattr(blob, name)) or len(getattr(blob, f"double_{name}")):
            continue
        kind = RAW_TYPES.get(raw.get(type_field, -1))
        if kind is None or not isinstance(data, bytes) or len(data) != _count(blob) * kind.itemsize:
            raise CaffemodelError(
                f"{owner}: its raw {name} is not {_count(blob)} doubles, floats or halves; "
                "the file is damaged"
            )
        double = kind.itemsize == 8
        values = np.frombuffer(data, kind).astype(np.float64 if double else np.float32)
        getattr(blob, f"double_{name}" if double else name).extend(values)
    blob.DiscardUnknownFields()


def _count(blob: BlobProto) -> int:
    """The number of values of the blob's shape."""
    legacy = any(blob.HasField(name) for name in ("num", "channels", "height", "width"))
    dims = [blob.num, blob.channels, blob.height, blob.width] if legacy else blob.shape.dim
    return math.prod(dims)


def _parse_into(target: Message, source: Message, number: int) -> None:
    """Fill `target` from a field of `source` that Caffe does not know; without that field it stays unset."""
    data = _unknown_fields(source).get(number)
    if isinstance(data, bytes):
        target.ParseFromString(data)


def _unknown_fields(message: Message) -> dict[int, Any]:
    """The values of the fields that Caffe does not know, by number: int, or bytes."""
    fields = UnknownFieldSet(message)
    return {fields[i].field_number: fields[i].data for i in range(len(fields))}


def _blobs_in(message: Message) -> Iterator[Any]:
    """All BlobProtos within the message, whose class may be of any pool."""
    for field, value in message.ListFields():
        if field.message_type is not None:
            for nested in [value] if isinstance(value, Message) else value:
                if field.message_type.name == "BlobProto":
                    yield nested
                else:
                    yield from _blobs_in(nested)


def _unknown_names(message: Message, without: Collection[str] = ()) -> Iterator[str]:
    """The unknown fields of the message and of all messages within it, as MESSAGE.NUMBER.

    without   messages that are not looked into
    """
    if message.DESCRIPTOR.name in without:
        return
    for number in _unknown_fields(message):
        yield f"{message.DESCRIPTOR.name}.{number}"
    for field, value in message.ListFields():
        if field.message_type is not None:
            for nested in [value] if isinstance(value, Message) else value:
                yield from _unknown_names(nested, without)


@cache
def _nvidia_class(message_name: str) -> type[Message]:
    """A message of Caffe's with the fields of NVIDIA_TEXT, and with BatchNorm's fields that are converted."""
    file = FileDescriptorProto()
    POOL.FindFileByName("caffe.proto").CopyToProto(file)
    (caffe,) = (message for message in file.message_type if message.name == "caffe")
    for name, values in NVIDIA_ENUMS.items():
        enum = caffe.nested_type.add(name=f"Nvidia{name}").enum_type.add(name=name)
        for number, value in enumerate(values.split()):
            enum.value.add(name=value, number=number)
    for message in caffe.nested_type:
        for index, declaration in enumerate(NVIDIA_TEXT.get(message.name, "").split()):
            name, _, kind = declaration.partition(":")
            if all(field.name != name for field in message.field):  # the schema of the forks may have it
                _add_field(message, name, FIRST_NUMBER + index, kind)
        if message.name == "BatchNormParameter":
            _add_field(message, "scale_filler", SCALE_FILLER, ".caffe.FillerParameter")
            _add_field(message, "bias_filler", BIAS_FILLER, ".caffe.FillerParameter")
            _add_field(message, "scale_bias", SCALE_BIAS, "bool")
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_class(pool, f"caffe.{message_name}")


def _add_field(message: DescriptorProto, name: str, number: int, kind: str) -> None:
    """An optional field. `kind`: an enum of NVIDIA_ENUMS, the full name of a message, or a scalar type."""
    field = message.field.add(name=name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
    if kind in NVIDIA_ENUMS:
        field.type, field.type_name = FieldDescriptorProto.TYPE_ENUM, f".caffe.Nvidia{kind}.{kind}"
    elif kind.startswith("."):
        field.type, field.type_name = FieldDescriptorProto.TYPE_MESSAGE, kind
    else:
        field.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")


def _remove_nvidia_fields(message: Message) -> Iterator[str]:
    """Clear the fields of NVIDIA_TEXT in the message and in all within it; yields them as MESSAGE.FIELD."""
    for field, value in message.ListFields():
        if field.number >= FIRST_NUMBER and message.DESCRIPTOR.name in NVIDIA_TEXT:
            yield f"{message.DESCRIPTOR.name}.{field.name}"
            message.ClearField(field.name)
        elif field.message_type is not None:
            for nested in [value] if isinstance(value, Message) else value:
                yield from _remove_nvidia_fields(nested)


def _read_other(path: AnyPath, kind: type[M], data: bytes | None = None) -> M:
    """The message with only the fields of READ_BY_OTHER: it is read with a schema that has no others."""
    read = parse_binary(
        read_content(path) if data is None else data, _reduced(kind.DESCRIPTOR.full_name, "other"), path
    )
    if any(
        RAW_DATA in _unknown_fields(blob) and not blob.data and not blob.double_data
        for blob in _blobs_in(read)
    ):
        raise PrototxtError(f"{path}: {RAW_NUMBERS}")
    read.DiscardUnknownFields()
    return kind.FromString(read.SerializePartialToString())


@cache
def _reduced(full_name: str, purpose: Literal["weights", "other"]) -> Any:
    """The class of a message in a schema that has only what READ_OF_WEIGHTS or READ_BY_OTHER names."""
    kept = READ_OF_WEIGHTS if purpose == "weights" else READ_BY_OTHER
    file = FileDescriptorProto.FromString(caffe_pb2.SERIALIZED)
    for message in file.message_type:
        if message.name in kept:
            fields = [field for field in message.field if field.name in kept[message.name]]
            del message.field[:]
            message.field.extend(fields)
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_class(pool, full_name)
