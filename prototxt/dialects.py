"""Binary nets (.caffemodel) of forks whose field numbers or blobs are not Caffe's, as Caffe's message.

    nvidia  NVIDIA Caffe 0.15 to 0.17. BlobProto has raw_data_type = 10, raw_diff_type = 11, raw_data = 12 and
            raw_diff = 13 (numbers as bytes: double, float or half). LayerParameter 145 to 148 are its
            forward_type ... backward_math instead of parameter_param, recurrent_param, swish_param and
            clip_param; its recurrent_param is 151. BatchNorm with scale and bias has five blobs:
                0.16, 0.17   mean, variance, a correction that is 1, scale, bias
                0.15         scale, bias, mean, variance, one that is reserved and has one number
            It becomes a BatchNorm with Caffe's three blobs and a Scale. mean and variance are not sums there.
    other   any fork: of each layer its name, type, bottoms, tops and blobs; whatever else stands in the file
            is not looked at, so that nothing in it can be misread.

What Caffe's message has no place for is left out, and a line in the log says what.

Source: caffe.proto, blob.cpp, net.cpp and batch_norm_layer.cpp of NVIDIA/caffe, branches 0.15, 0.16 and 0.17.
As its own loader does, a last blob of one number tells the order of 0.15.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from imae.prototxt import caffe_pb2
from imae.prototxt.caffe_pb2 import BlobProto, BlobShape, LayerParameter, NetParameter
from imae.prototxt.errors import CaffemodelError, PrototxtError
from imae.prototxt.files import AnyPath
from imae.prototxt.text import read_binary

DIALECTS = ("nvidia", "other")

logger = logging.getLogger(__name__)

# Numbers of fields of NVIDIA Caffe, and its enum Type.
RAW_DATA_TYPE, RAW_DIFF_TYPE, RAW_DATA, RAW_DIFF = 10, 11, 12, 13
RECURRENT_PARAM = 151
SCALE_FILLER, BIAS_FILLER, SCALE_BIAS = 5, 6, 7  # of BatchNormParameter
CONVERTED = {
    f"LayerParameter.{RECURRENT_PARAM}",
    *(f"BatchNormParameter.{number}" for number in (SCALE_FILLER, BIAS_FILLER, SCALE_BIAS)),
}
RAW_TYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f8"), 1: np.dtype("<f4"), 2: np.dtype("<f2")}
SMALLEST_EPS = np.float32(1e-5)  # of its BatchNorm

# What `other` reads, by message.
READ_BY_OTHER = {
    "NetParameter": {"name", "layer", "layers"},
    "LayerParameter": {"name", "type", "bottom", "top", "blobs"},
    "V1LayerParameter": {"name", "type", "bottom", "top", "blobs", "layer"},
    "V0LayerParameter": {"name", "type", "blobs"},
}


def read_net_dialect(path: AnyPath, dialect: str, scales: Mapping[str, str] | None = None) -> NetParameter:
    """A binary net of a fork in Caffe's own form, as it would stand in Caffe's file, not upgraded.

    scales   what to call the Scale layer behind a BatchNorm layer, by the latter's name; else NAME_scale

    PrototxtError where the file cannot be read, CaffemodelError where a blob makes no sense.
    """
    if dialect == "other":
        return _read_other(path)
    if dialect != "nvidia":
        raise PrototxtError(f"unknown dialect '{dialect}'; known: {', '.join(DIALECTS)}")
    net = read_binary(path, NetParameter)
    converted = NetParameter()
    converted.CopyFrom(net)
    del converted.layer[:]
    try:
        for layer in net.layer:
            converted.layer.extend(_from_nvidia(layer, (scales or {}).get(layer.name)))
    except (CaffemodelError, DecodeError) as error:
        raise CaffemodelError(f"{path}: {error}") from None
    left_out = sorted(set(_unknown_within(converted)) - CONVERTED)
    if left_out:
        logger.warning("%s: left out, as Caffe has no such fields: %s", path, ", ".join(left_out))
    converted.DiscardUnknownFields()
    return converted


def _from_nvidia(layer: LayerParameter, scale: str | None) -> list[LayerParameter]:
    """The layer, and behind a BatchNorm of five blobs the Scale that was part of it."""
    blobs = [_blob_from_nvidia(blob, layer, index) for index, blob in enumerate(layer.blobs)]
    del layer.blobs[:]
    _parse_into(layer.recurrent_param, layer, RECURRENT_PARAM)
    if layer.type != "BatchNorm" or len(blobs) != 5:
        layer.blobs.extend(blobs)
        return [layer]
    if _count(blobs[4]) == 1:
        scale_blob, bias_blob, mean, variance, _ = blobs
    else:
        mean, variance, _, scale_blob, bias_blob = blobs
        layer.batch_norm_param.ClearField("use_global_stats")  # the phase alone decides there
    norm = layer.batch_norm_param
    if norm.eps < SMALLEST_EPS:
        norm.eps = float(SMALLEST_EPS)
    one = BlobProto(shape=BlobShape(dim=[1]), data=[1])
    layer.blobs.extend([mean, variance, one])
    top = layer.top[:1]
    behind = LayerParameter(
        name=scale or f"{layer.name}_scale",
        type="Scale",
        bottom=top,
        top=top,
        param=layer.param[3:],
        include=layer.include,
        exclude=layer.exclude,
        blobs=[scale_blob, bias_blob],
    )
    behind.scale_param.bias_term = True
    _parse_into(behind.scale_param.filler, norm, SCALE_FILLER)
    _parse_into(behind.scale_param.bias_filler, norm, BIAS_FILLER)
    if layer.HasField("phase"):
        behind.phase = layer.phase
    del layer.param[3:]
    return [layer, behind]


def _blob_from_nvidia(blob: BlobProto, layer: LayerParameter, index: int) -> BlobProto:
    """A blob whose numbers are bytes, with the numbers in Caffe's fields."""
    raw = _unknown(blob)
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
                f"layer '{layer.name}', blob {index}: its raw {name} is not {_count(blob)} doubles, floats "
                "or halves; the file is damaged"
            )
        double = kind.itemsize == 8
        values = np.frombuffer(data, kind).astype(np.float64 if double else np.float32)
        getattr(blob, f"double_{name}" if double else name).extend(values)
    blob.DiscardUnknownFields()
    return blob


def _count(blob: BlobProto) -> int:
    """How many numbers the blob's shape has."""
    legacy = any(blob.HasField(name) for name in ("num", "channels", "height", "width"))
    dims = [blob.num, blob.channels, blob.height, blob.width] if legacy else blob.shape.dim
    return math.prod(dims)


def _parse_into(target: Message, source: Message, number: int) -> None:
    """Fill `target` from a field of `source` that Caffe does not know; it stays unset without one."""
    data = _unknown(source).get(number)
    if isinstance(data, bytes):
        target.ParseFromString(data)


def _unknown(message: Message) -> dict[int, Any]:
    """The values of the fields that Caffe does not know, by number: int, or bytes."""
    fields = UnknownFieldSet(message)
    return {fields[i].field_number: fields[i].data for i in range(len(fields))}


def _unknown_within(message: Message) -> Iterator[str]:
    """Those fields of the message and of all within it, as MESSAGE.NUMBER."""
    for number in _unknown(message):
        yield f"{message.DESCRIPTOR.name}.{number}"
    for field, value in message.ListFields():
        if field.message_type is not None:
            for nested in [value] if isinstance(value, Message) else value:
                yield from _unknown_within(nested)


def _read_other(path: AnyPath) -> NetParameter:
    """The net with what READ_BY_OTHER names: the schema that it is read by has nothing else."""
    file = FileDescriptorProto.FromString(caffe_pb2.SERIALIZED)
    for message in file.message_type:
        if message.name in READ_BY_OTHER:
            kept = [field for field in message.field if field.name in READ_BY_OTHER[message.name]]
            del message.field[:]
            message.field.extend(kept)
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    net = read_binary(path, GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter")))
    net.DiscardUnknownFields()
    return NetParameter.FromString(net.SerializePartialToString())
