"""Broken files: small valid ones, edited as bytes, as text, or as protobuf messages."""

from __future__ import annotations

import copy
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from choices import Draw, choosing
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

LARGEST = 1 << 20  # the largest size of a file, in bytes
NUMBERS = [0, 1, 2, 3, 7, 8, 15, 16, 100, 127, 128, 255, 256, 1000, 4096, 32767, 32768, 65535, 65536, 10**6]
NUMBERS += [2**k + d for k in (24, 30, 31, 32, 40, 48, 62, 63, 64) for d in (-1, 0, 1)]
FLOATS = [0.0, -0.0, 1e-45, 1e-30, 1e30, -1e38, 3.5e38, float("inf"), float("-inf"), float("nan")]
FLOATS += [-1.0, 0.5, 1e300]


def times(draw: Draw) -> int:
    """A number of repetitions; large numbers are rare, because files of 1 MiB take long."""
    return draw.item([10**3, 10**6] if draw.number(0, 19) == 19 else [1, 1, 2, 3, 10, 100])


RUN_LENGTHS = [10**2, 10**3, 10**4, 10**5, 10**6]


def run_of(draw: Draw, units: Sequence[bytes]) -> bytes:
    """One of `units`, repeated many times."""
    length = draw.item(RUN_LENGTHS) if draw.number(0, 2) == 0 else draw.number(2, 300)
    unit = draw.item(units)
    return unit * (length // len(unit))


# -- bytes ---------------------------------------------------------------------------------------------------


@choosing
def mutated_bytes(
    draw: Draw, seeds: Sequence[bytes], hot: Callable[[bytes], Sequence[int]] | None = None
) -> bytes:
    """A seed after a few edits; `hot` returns the offsets where edits matter most."""
    data = bytearray(draw.item(seeds))
    for _ in range(draw.number(1, 4)):
        places = hot(bytes(data)) if hot is not None and draw.coin() else ()
        if places:
            place = draw.item(places)
        else:
            place = draw.number(0, max(len(data) - 1, 0))
        _edit(draw, data, place, seeds)
    return bytes(data[:LARGEST])


def _edit(draw: Draw, data: bytearray, place: int, seeds: Sequence[bytes]) -> None:
    kind = draw.number(0, 16)
    length = draw.number(1, 64)
    if kind <= 3:
        data[place : place + 1] = bytes([draw.number(0, 255)])
    elif kind <= 7:
        size = draw.item([1, 2, 4, 8])
        number = draw.item(NUMBERS) * draw.item([1, 1, -1])
        order = draw.item(["little", "little", "big"])
        data[place : place + size] = (number % 256**size).to_bytes(size, order)
    elif kind == 8:
        data[place : place + 1] = bytes([(data[place] if place < len(data) else 0) ^ 1 << draw.number(0, 7)])
    elif kind == 9:
        del data[place : place + length]
    elif kind == 10:
        data[place:place] = draw.data(1, 32)
    elif kind == 11:
        part = data[place : place + length]
        data[place:place] = part * min(times(draw), LARGEST // max(len(part), 1))
    elif kind == 12:
        del data[place:]
    elif kind == 13:
        other = draw.item(seeds)
        data[place:] = other[draw.number(0, max(len(other) - 1, 0)) :]
    elif kind == 14:
        data[place : place + length] = bytes([draw.item([0, 0, 255])]) * length
    elif kind == 15:
        units = [
            data[place : place + 1] or b"\0",
            b"\0",
            b"\xff",
            b"(",
            b"[",
            b"\\",
            bytes([draw.number(0, 255)]),
        ]
        data[place:place] = run_of(draw, list(map(bytes, units)))
    else:
        begin = draw.number(0, max(len(data) - 1, 0))
        data[place : place + length] = data[begin : begin + length]


# -- text ----------------------------------------------------------------------------------------------------

TOKEN = re.compile(rb"\s+|\"(?:\\.|[^\"\\\n])*\"?|'(?:\\.|[^'\\\n])*'?|-?\d[\w.+-]*|\w+|.", re.DOTALL)
ODD_TEXT = [
    b"",
    b"a\nb",
    b"\x00",
    b"\xff\xfe",
    b"\xc3\xa4",
    b"\xed\xa0\x80",
    b"\x1b[31m",
    b"%s{}",
    b"\\",
    b'"',
    b"../../x",
    b"/dev/null",
    b"/",
    b".",
    b" ",
]
ODD_NUMBERS = [
    b"nan",
    b"-nan",
    b"inf",
    b"-inf",
    b"-0",
    b"-1",
    b"1e400",
    b"1e-400",
    b"0x7fffffff",
    b"0777",
    b"1.5",
    b"9" * 5000,
]


RUNS = [
    b"\\",
    b"\\\\",
    b"\\\\",
    b"\\\\",
    b'"',
    b"'",
    b'\\"',
    b"#",
    b"{",
    b"}",
    b"[",
    b"<",
    b" ",
    b"\n",
    b"\t",
    b"0",
    b"-",
    b"a",
]
RUNS += [b"\\x4", b"\\1", b"/", b".", b",", b":", b"\xc3\xa4", b"\x80", b"''", b'"" ']


@choosing
def mutated_text(draw: Draw, seeds: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """A seed after a few edits of its tokens or lines; `words` is the vocabulary of the language."""
    tokens = TOKEN.findall(draw.item(seeds))
    for _ in range(draw.number(1, 4)):
        kind = draw.number(0, 14)
        place = draw.number(0, max(len(tokens) - 1, 0))
        end = min(place + draw.number(1, 12), len(tokens))
        if kind <= 3:
            numbers = [i for i, token in enumerate(tokens) if token[:1].isdigit() or token[:1] == b"-"]
            if numbers:
                tokens[draw.item(numbers)] = draw(_number())
        elif kind <= 5 and words:
            names = [i for i, token in enumerate(tokens) if token[:1].isalpha() or token[:1] in (b'"', b"'")]
            if names:
                old = draw.item(names)
                word = draw.item(words)
                tokens[old] = b'"%s"' % word if tokens[old][:1] == b'"' else word
        elif kind == 6:
            strings = [i for i, token in enumerate(tokens) if token[:1] in (b'"', b"'")]
            if strings:
                tokens[draw.item(strings)] = b'"%s"' % draw.item(ODD_TEXT)
        elif kind == 7:
            del tokens[place:end]
        elif kind == 8:
            part = tokens[place:end]
            tokens[place:place] = part * min(times(draw), LARGEST // 4 // max(len(b"".join(part)), 1))
        elif kind == 9 and words:
            word = draw.item(words)
            tokens.insert(place, b" %s: %s " % (word, draw(_number())))
        elif kind == 10:
            tokens.insert(place, draw.item(ODD_TEXT))
        elif kind == 11:
            del tokens[place:]
        elif kind == 12:
            other = TOKEN.findall(draw.item(seeds))
            begin = draw.number(0, max(len(other) - 1, 0))
            tokens[place:place] = other[begin : begin + draw.number(1, 60)]
        elif kind == 13:
            strings = [i for i, token in enumerate(tokens) if token[:1] in (b'"', b"'") and len(token) > 1]
            if strings and draw.coin():
                old = draw.item(strings)
                tokens[old] = tokens[old][:1] + run_of(draw, RUNS) + tokens[old][1:]
            else:
                tokens.insert(place, run_of(draw, RUNS))
        else:
            blocks = [block for block in _blocks(tokens) if block[1] > block[0]]
            if blocks:
                first, last = draw.item(blocks)
                where = draw.number(0, len(tokens))
                tokens[where:where] = tokens[first : last + 1] * min(times(draw), 3000)
    return b"".join(tokens)[:LARGEST]


@choosing
def _number(draw: Draw) -> bytes:
    kind = draw.number(0, 4)
    if kind == 0:
        return draw.item(ODD_NUMBERS)
    if kind == 1:
        return repr(draw.item(FLOATS)).encode()
    if kind == 2:
        return b"%d" % draw.number(-3, 12)
    return b"%d" % (draw.item(NUMBERS) * draw.item([1, 1, -1]))


def _blocks(tokens: Sequence[bytes]) -> list[tuple[int, int]]:
    """The indices of the first and last token of each `name { ... }`."""
    blocks, open_ = [], []
    for i, token in enumerate(tokens):
        if token == b"{":
            name = i - 1
            while name > 0 and tokens[name].isspace():
                name -= 1
            open_.append(max(name, 0))
        elif token == b"}" and open_:
            blocks.append((open_.pop(), i))
    return blocks


@choosing
def mutated_fields(draw: Draw, seeds: Sequence[Message], words: Sequence[str]) -> bytes:
    """A message of `seeds` as text, with a few fields, at any depth, cleared or changed."""
    message = copy.deepcopy(draw.item(seeds))
    for _ in range(draw.number(1, 3)):
        inner = [message]
        for home in inner:
            for field, value in home.ListFields():
                if field.type == FieldDescriptor.TYPE_MESSAGE:
                    inner += value if field.is_repeated else [value]
        home = draw.item(inner)
        there = [field for field, _ in home.ListFields()]
        fields = there if there and draw.number(0, 2) else home.DESCRIPTOR.fields
        if not fields:
            continue
        field = draw.item(fields)
        value = getattr(home, field.name)
        if draw.number(0, 5) == 0:
            home.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and field.is_repeated:
            new = copy.deepcopy(draw.item(value) if value else value.add())
            for _ in range(min(times(draw), 1000)):
                value.add().CopyFrom(new)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            value.SetInParent()
        elif field.is_repeated:
            if value and draw.coin():
                value[draw.index(value)] = draw(_value(field, words))
            else:
                value.extend([draw(_value(field, words))] * min(times(draw), 1000))
        else:
            setattr(home, field.name, draw(_value(field, words)))
    return text_format.MessageToString(message).encode()[:LARGEST]


@choosing
def _value(draw: Draw, field: FieldDescriptor, words: Sequence[str]) -> object:
    if field.enum_type is not None:
        return field.enum_type.values[draw.index(field.enum_type.values)].number
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return draw.coin()
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return draw.item(words)
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return draw.item(FLOATS) if draw.coin() else draw.number(-3, 12)
    number = draw.number(-3, 12)
    if draw.coin():
        number = draw.item(NUMBERS) * draw.item([1, 1, -1])
    bits = 31 if kind in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 63
    if kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64):
        return abs(number) % 2 ** (bits + 1)
    return max(-(2**bits), min(number, 2**bits - 1))


# -- protobuf messages ---------------------------------------------------------------------------------------


@dataclass
class Field:
    """A field on the wire: its number, wire type and value; `length`, if set, is a false length of the value."""

    number: int
    wire: int
    value: int | bytes | list[Field]
    length: int | None = None


VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@choosing
def mutated_message(
    draw: Draw, seeds: Sequence[bytes], numbers: Sequence[int] = tuple(range(1, 20))
) -> bytes:
    """A message after a few edits of its fields, at any depth, and sometimes of its bytes."""
    message = parse(draw.item(seeds))
    for _ in range(draw.number(1, 4)):
        _edit_message(draw, message, seeds, numbers)
    data = serialized(message)
    if draw.number(0, 4) == 0:
        return draw(mutated_bytes([data or b"\0"]))
    return data[:LARGEST]


def _edit_message(draw: Draw, message: list[Field], seeds: Sequence[bytes], numbers: Sequence[int]) -> None:
    places = [(message, len(message)), *list(_places(message))]
    home, index = draw.item(places)
    new = Field(draw.item(numbers), VARINT, 0)
    if index == len(home):
        home.append(new)
    found, kind = home[index], draw.number(0, 12)
    if kind <= 3:
        if found.wire == VARINT:
            found.value = draw.item(NUMBERS) * draw.item([1, 1, -1]) % 2**64
        elif found.wire in (FIXED32, FIXED64):
            code, size = ("<f", 4) if found.wire == FIXED32 else ("<d", 8)
            value = draw.item(FLOATS)
            found.value = struct.pack(code, value) if abs(value) < 1e38 or size == 8 else b"\x7f" * size
        elif isinstance(found.value, bytes):
            found.value = draw(_payload(found.value))
    elif kind == 4:
        del home[index]
    elif kind == 5:
        size = max(len(serialized([found])), 1)
        home[index:index] = [found] * min(times(draw), LARGEST // size)
    elif kind == 6:
        found.number = draw.item(numbers)
    elif kind == 7:
        found.wire = draw.item([VARINT, FIXED64, BYTES, FIXED32, 3, 4])
        found.value = {VARINT: 1, FIXED64: b"\0" * 8, FIXED32: b"\1" * 4}.get(found.wire, b"ab")
    elif kind == 8:
        found.length = draw.item(NUMBERS)
    elif kind == 9:
        home.insert(index, new)
        new.wire, new.value = BYTES, draw(_payload(b"a"))
    elif kind == 10:
        home.insert(index, new)
        new.value = draw.item(NUMBERS) % 2**64
    elif kind == 11:
        other = parse(draw.item(seeds))
        sources = list(_places(other))
        if sources:
            source, where = draw.item(sources)
            home.insert(index, source[where])
    else:
        nested = serialized([found])[: LARGEST // 64]
        for _ in range(draw.item([1, 2, 50, 99, 100, 101, 1000])):
            nested = varint(found.number << 3 | BYTES) + varint(len(nested)) + nested
        home.insert(index, Field(found.number, BYTES, nested))


@choosing
def _payload(draw: Draw, old: bytes) -> bytes:
    """Another value for a string or for packed numbers."""
    kind = draw.number(0, 5)
    if kind == 0:
        return b""
    if kind == 1:
        return old[: draw.number(0, len(old))]
    if kind == 2:
        return old + draw.data(0, 9)
    if kind == 3:
        return struct.pack("<f", draw.item([float("nan"), float("inf"), -1.0, 1e-45])) * 6
    if kind == 4:
        return draw.item(ODD_TEXT)
    return b"".join(varint(draw.item(NUMBERS) % 2**64) for _ in range(draw.number(1, 5)))


def _places(message: list[Field]) -> list[tuple[list[Field], int]]:
    """All fields, each as the list that holds it and its index; of repeated objects only the first."""
    places = []
    before = None
    for index, part in enumerate(message):
        if part is before:
            continue
        before = part
        places.append((message, index))
        if isinstance(part.value, list):
            places += _places(part.value)
    return places


def parse(data: bytes) -> list[Field]:
    """The fields of a message; bytes that look like a message are parsed, too."""
    fields = _parse(data, 0)
    assert fields is not None, "a seed is no message"
    return fields


def _parse(data: bytes, depth: int) -> list[Field] | None:
    fields, at = [], 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 20000 or at > len(data):
            return None
        value: int | bytes | list[Field]
        if wire == VARINT:
            value, at = _read_varint(data, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
            value, at = data[at : at + size], at + size
        elif wire == BYTES:
            size, at = _read_varint(data, at)
            value, at = data[at : at + size], at + size
            nested = _parse(value, depth + 1) if 2 <= size <= 10**5 and depth < 8 else None
            value = value if nested is None or at > len(data) else nested
        else:
            return None
        if at > len(data):
            return None
        fields.append(Field(number, wire, value))
    return fields


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(data) and shift < 70:
        number |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if not data[at - 1] & 128:
            return number, at
    return number, len(data) + 1


def varint(number: int) -> bytes:
    """The encoding of a number on the wire."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def serialized(message: Sequence[Field]) -> bytes:
    """The bytes of a message."""
    parts: list[bytes] = []
    done: dict[int, bytes] = {}  # an object that is repeated many times is serialized once
    for part in message:
        if id(part) not in done:
            done[id(part)] = _serialized(part)
        parts.append(done[id(part)])
    return b"".join(parts)


def _serialized(part: Field) -> bytes:
    tag = varint(part.number << 3 | part.wire)
    if isinstance(part.value, int):
        return tag + varint(part.value)
    value = serialized(part.value) if isinstance(part.value, list) else part.value
    if part.wire == BYTES:
        return tag + varint(len(value) if part.length is None else part.length) + value
    return tag + value
