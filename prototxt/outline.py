"""The outline of a binary net or solver state: names, types and shapes, without the numbers.

A caffemodel may be larger than the memory. Its numbers lie in fields with a length, so they are skipped: only
the headers are read. A length that leads out of the file, or out of the message that it is in, is an error.

Field numbers: caffe.proto. A layer has name = 1, type = 2, blobs = 7; of the old form (V1) bottom = 2,
top = 3, name = 4, type = 5, blobs = 6, and of V0 (`layer` = 1 of V1) name = 1, type = 2, blobs = 50.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, NamedTuple

from imae.files.errors import CaffemodelError
from imae.files.limits import MAX_AXES, MAX_COUNT
from imae.files.read import AnyPath, file_size, open_to_read

MOST_FIELDS = 10_000_000  # of all messages together; the largest public nets have some 10,000
LONGEST_NAME = 1 << 16  # bytes
LEGACY = (1, 2, 3, 4)  # num, channels, height, width of a BlobProto
SHAPE, DATA, DOUBLE_DATA, RAW_DATA = 7, 5, 8, 12
NUMBER_SIZES = {DATA: 4, DOUBLE_DATA: 8}


@dataclass
class BlobOutline:
    """A blob's shape, padded with leading 1s where `legacy`; `count`: how many numbers are there.

    raw   its numbers are in NVIDIA Caffe's fields, in which nothing counts them
    """

    shape: tuple[int, ...] = ()
    legacy: bool = False
    count: int = 0
    raw: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether there are as many numbers as the shape has places."""
        return self.raw or self.count == math.prod(self.shape)


@dataclass
class LayerOutline:
    """A layer's name and type (a number for layers of the old form), and its blobs."""

    name: str = ""
    type: str = ""
    blobs: list[BlobOutline] = field(default_factory=list)


@dataclass
class NetOutline:
    """A caffemodel's net name and layers."""

    name: str = ""
    layers: list[LayerOutline] = field(default_factory=list)


@dataclass
class StateOutline:
    """A solver state: iteration, the model's path as it was written, the history blobs."""

    iteration: int = 0
    learned_net: str = ""
    history: list[BlobOutline] = field(default_factory=list)


def net_outline(path: AnyPath) -> NetOutline:
    """The outline of a .caffemodel; CaffemodelError where it is damaged, OSError where it cannot be read."""
    with open_to_read(path) as file:
        reader, net = _Reader(file, path), NetOutline()
        for part in reader.fields(0, file_size(file)):
            if part.number == 1 and part.wire == 2:
                net.name = reader.text(part)
            elif part.number == 100 and part.wire == 2:
                net.layers.append(_layer(reader, part, 1, 2, 7))
            elif part.number == 2 and part.wire == 2:
                net.layers.append(_old_layer(reader, part))
        return net


def state_outline(path: AnyPath) -> StateOutline:
    """The outline of a .solverstate; errors as `net_outline`."""
    with open_to_read(path) as file:
        reader, state = _Reader(file, path), StateOutline()
        for part in reader.fields(0, file_size(file)):
            if part.number == 1 and part.wire == 0:
                state.iteration = part.value
            elif part.number == 2 and part.wire == 2:
                state.learned_net = reader.text(part)
            elif part.number == 3 and part.wire == 2:
                state.history.append(_blob(reader, part))
        return state


def blob_outline(path: AnyPath) -> BlobOutline:
    """The outline of a binaryproto; errors as `net_outline`."""
    with open_to_read(path) as file:
        return _blob(_Reader(file, path), _Field(0, 2, 0, 0, file_size(file)))


class _Field(NamedTuple):
    """A field: its number and wire type; `value` of a varint; where its content begins and ends."""

    number: int
    wire: int
    value: int
    start: int
    end: int


class _Reader:
    def __init__(self, file: IO[bytes], path: AnyPath) -> None:
        self.file, self.path, self.left = file, path, MOST_FIELDS

    def fields(self, start: int, end: int) -> Iterator[_Field]:
        """The fields between two places."""
        place = start
        while place < end:
            self.left -= 1
            if not self.left:
                raise self.error(f"it has more than {MOST_FIELDS} fields")
            self.file.seek(place)
            head = self.file.read(min(20, end - place))
            tag, used = self._varint(head, 0, place)
            value, wire = 0, tag & 7
            if wire == 0:
                value, used = self._varint(head, used, place)
                stop = place + used
            elif wire == 2:
                value, used = self._varint(head, used, place)
                stop = place + used + value
            elif wire in (1, 5):
                stop = place + used + (8 if wire == 1 else 4)
            else:
                raise self.error(f"there is no field at byte {place}")
            if stop > end or tag < 8:
                raise self.error(f"the field at byte {place} leads out of the file or of its message")
            yield _Field(tag >> 3, wire, value, place + used, stop)
            place = stop

    def text(self, part: _Field) -> str:
        """A field's content as text."""
        if part.end - part.start > LONGEST_NAME:
            raise self.error(f"a name has {part.end - part.start} bytes")
        return self.content(part).decode(errors="backslashreplace")

    def content(self, part: _Field) -> bytes:
        """A field's content."""
        self.file.seek(part.start)
        return self.file.read(part.end - part.start)

    def error(self, reason: str) -> CaffemodelError:
        return CaffemodelError(f"{self.path}: damaged or cut short: {reason}")

    def _varint(self, data: bytes, place: int, start: int) -> tuple[int, int]:
        number = 0
        for shift in range(0, 70, 7):
            if place >= len(data):
                break
            byte = data[place]
            place += 1
            number |= (byte & 127) << shift
            if byte < 128:
                return number & (2**64 - 1), place
        raise self.error(f"there is no field at byte {start}")


def _layer(reader: _Reader, part: _Field, name: int, kind: int, blobs: int) -> LayerOutline:
    layer = LayerOutline()
    for inner in reader.fields(part.start, part.end):
        if inner.number == name and inner.wire == 2:
            layer.name = reader.text(inner)
        elif inner.number == kind:
            layer.type = reader.text(inner) if inner.wire == 2 else str(inner.value)
        elif inner.number == blobs and inner.wire == 2:
            layer.blobs.append(_blob(reader, inner))
    return layer


def _old_layer(reader: _Reader, part: _Field) -> LayerOutline:
    """A layer of V1, or of V0, which is one field in it."""
    v0 = [inner for inner in reader.fields(part.start, part.end) if inner.number == 1 and inner.wire == 2]
    return _layer(reader, v0[0], 1, 2, 50) if v0 else _layer(reader, part, 4, 5, 6)


def _blob(reader: _Reader, part: _Field) -> BlobOutline:
    blob, legacy = BlobOutline(), [0, 0, 0, 0]
    for inner in reader.fields(part.start, part.end):
        if inner.number in LEGACY and inner.wire == 0:
            legacy[inner.number - 1] = inner.value
            blob.legacy = True
        elif inner.number == SHAPE and inner.wire == 2:
            blob.shape = _dims(reader, inner)
        elif inner.number in NUMBER_SIZES:
            size = inner.end - inner.start
            blob.count += size // NUMBER_SIZES[inner.number] if inner.wire == 2 else 1
        elif inner.number == RAW_DATA:
            blob.raw = True
    if blob.legacy:
        blob.shape = tuple(legacy)
    return blob


def _dims(reader: _Reader, part: _Field) -> tuple[int, ...]:
    dims: list[int] = []
    for inner in reader.fields(part.start, part.end):
        if inner.number == 1 and inner.wire == 0:
            dims.append(inner.value)
        elif inner.number == 1 and inner.wire == 2:
            dims += _packed(reader, inner)
        if len(dims) > MAX_AXES:
            raise reader.error(f"a blob has more than {MAX_AXES} axes")
    if any(dim > MAX_COUNT for dim in dims):
        raise reader.error(f"a blob has the shape {tuple(dims)}")
    return tuple(dims)


def _packed(reader: _Reader, part: _Field) -> list[int]:
    if part.end - part.start > 10 * MAX_AXES:
        raise reader.error(f"a blob has more than {MAX_AXES} axes")
    numbers, number, shift = [], 0, 0
    for byte in reader.content(part):
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(number)
            number, shift = 0, 0
    if shift:
        raise reader.error("a shape is cut short")
    return numbers
