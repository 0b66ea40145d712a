"""TensorBoard's event files, for scalars: what `tensorboard --logdir` draws.

A file is a row of records, each of a length, the length's checksum, an Event message and its checksum. The
first Event has the version of the format. TensorBoard finds a file by `tfevents` in its name, and calls a run
by the folder of its file.

The messages are a part of TensorFlow's event.proto and summary.proto, with their numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from imae.files.atomic import write_atomically
from imae.files.read import AnyPath

VERSION = "brain.Event:2"
FILE_NAME = "events.out.tfevents.0.imae"  # always the same: a file that is written again is replaced
POLYNOMIAL = 0x82F63B78  # of CRC-32C (Castagnoli), its bits reversed
MASK = 0xA282EAD8  # added to the checksums, as a checksum of data that holds its own checksum is weak


class Scalars(NamedTuple):
    """The numbers of one iteration, by their tags.

    time   seconds since 1970
    """

    iteration: int
    time: float
    values: Mapping[str, float]


def write_events(path: AnyPath, scalars: Iterable[Scalars]) -> None:
    """Write an event file, whose name has `tfevents` in it; FileError where that is not possible."""
    scalars = list(scalars)
    begin = min((entry.time for entry in scalars), default=0.0)
    event_class = _event_class()
    records = [_record(event_class(wall_time=begin, file_version=VERSION).SerializeToString())]
    for entry in scalars:
        event = event_class(wall_time=entry.time, step=entry.iteration)
        for tag, value in entry.values.items():
            event.summary.value.add(tag=tag, simple_value=value)
        records.append(_record(event.SerializeToString()))
    write_atomically(path, b"".join(records))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """The CRC-32C of some bytes. zlib has another polynomial."""
    crc, table = 0xFFFFFFFF, _crc_table()
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


@cache
def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


@cache
def _event_class() -> Any:
    """The class of the Event message."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="imae/tensorboard_event.proto", package="imae.tensorboard")
    messages: dict[str, list[tuple[str, int, Any]]] = {
        "Value": [("tag", 1, field.TYPE_STRING), ("simple_value", 2, field.TYPE_FLOAT)],
        "Summary": [("value", 1, "Value")],
        "Event": [
            ("wall_time", 1, field.TYPE_DOUBLE),
            ("step", 2, field.TYPE_INT64),
            ("file_version", 3, field.TYPE_STRING),
            ("summary", 5, "Summary"),
        ],
    }
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind in fields:
            of_message = isinstance(kind, str)
            message.field.add(
                name=field_name,
                number=number,
                label=field.LABEL_REPEATED if kind == "Value" else field.LABEL_OPTIONAL,
                type=field.TYPE_MESSAGE if of_message else kind,
                type_name=f".imae.tensorboard.{kind}" if of_message else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("imae.tensorboard.Event"))
