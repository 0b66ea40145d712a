"""The kind of a file, recognised by its content: for errors about a file that is not what was expected.

    raise DataError(f"{path}: not an LMDB{mistaken_for(data)}")

Nothing is decoded or unpacked; a protobuf message is recognised by its field numbers and wire types.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

from imae.files.read import AnyPath, open_to_read


class FileKind(Enum):
    """A kind of file and its name in errors; the remedy follows after a colon."""

    LFS = "a Git-LFS pointer, not the file itself: fetch that with git lfs pull"
    HTML = "a web page in HTML, as a failed download leaves it: download the file itself"
    UTF16 = "text in UTF-16: save it as UTF-8"
    GZIP = "a gzip archive: unpack it"
    BZIP2 = "a bzip2 archive: unpack it"
    XZ = "an xz archive: unpack it"
    TORCH = "a PyTorch file, which may run code when it is read: it is not read here"
    ZIP = "a zip archive: unpack it"
    TAR = "a tar archive: unpack it"
    PICKLE = "a Python pickle, which may run code when it is read: it is not read here"
    HDF5 = "an HDF5 file"
    NUMPY = "a NumPy array: caffe.io.array_to_blobproto makes a BlobProto of it"
    LMDB = "the data.mdb of an LMDB: name its folder as the source of a Data layer"
    PICTURE = "an image"
    NET_TEXT = "a net's prototxt"
    SOLVER_TEXT = "a solver's prototxt"
    ONNX = "an ONNX model"
    NET = "a caffemodel"
    STATE = "a solver state in binary form: the weights are in the .caffemodel beside it"
    BLOB = "a BlobProto, such as a mean image"
    DATUM = "a Datum"


MAGIC: tuple[tuple[int, bytes, FileKind], ...] = (
    (0, b"\xff\xfe", FileKind.UTF16),
    (0, b"\xfe\xff", FileKind.UTF16),
    (0, b"\x1f\x8b\x08", FileKind.GZIP),
    (0, b"BZh", FileKind.BZIP2),
    (0, b"\xfd7zXZ\0", FileKind.XZ),
    (0, b"PK\x03\x04", FileKind.ZIP),
    (0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", FileKind.TORCH),
    *((0, bytes([0x80, version]), FileKind.PICKLE) for version in (2, 3, 4, 5)),
    (0, b"\x89HDF\r\n\x1a\n", FileKind.HDF5),
    (0, b"\x93NUMPY", FileKind.NUMPY),
    (16, b"\xde\xc0\xef\xbe\x01\0\0\0", FileKind.LMDB),
    (0, b"\x89PNG\r\n", FileKind.PICTURE),
    (0, b"\xff\xd8\xff", FileKind.PICTURE),
    (0, b"GIF8", FileKind.PICTURE),
    (257, b"ustar\0", FileKind.TAR),
    (257, b"ustar  \0", FileKind.TAR),
)
LFS = b"version https://git-lfs.github.com/"
HTML = re.compile(rb"\s*(<!--.*?-->\s*)?<(!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)
COMMENT = re.compile(rb"#[^\n]*")
NET_TEXT = re.compile(rb"(^|[\s}])layers?\s*+:?\s*+\{")  # possessive: no backtracking over blanks
SOLVER_TEXT = re.compile(rb"(^|\s)(base_lr|lr_policy|max_iter|snapshot_prefix|test_iter)\s*:")
# Control characters that no text has, in any encoding but UTF-16. Every binary kind has some: zeros, short
# lengths, the tags of low fields. Without this check a list that begins with "A" could pass for a BlobProto.
CONTROL_CHARACTERS = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")
ARCHIVES = (FileKind.TAR, FileKind.GZIP, FileKind.BZIP2, FileKind.XZ)
TEXT_READ, MOST_READ = 1 << 16, 1 << 28
MOST_FIELDS = 100_000

# Field number -> wire types (0: a varint; 1: eight bytes; 2: bytes with a length; 5: four bytes). MESSAGES
# has the required fields of each kind, then the optional ones.
Fields = Mapping[int, tuple[int, ...]]
BLOB_FIELDS: Fields = {
    **dict.fromkeys((1, 2, 3, 4, 10, 11), (0,)),
    **dict.fromkeys((5, 6), (2, 5)),
    **dict.fromkeys((8, 9), (1, 2)),
    **dict.fromkeys((7, 12, 13), (2,)),
}
MESSAGES: tuple[tuple[FileKind, Fields, Fields], ...] = (
    (FileKind.ONNX, {1: (0,), 7: (2,), 8: (2,)}, {2: (2,), 3: (2,), 4: (2,), 5: (0,), 6: (2,), 14: (2,)}),
    (FileKind.NET, {100: (2,)}, {1: (2,)}),
    (FileKind.NET, {2: (2,)}, {1: (2,), 3: (2,), 4: (0, 2), 8: (2,), 5: (0,)}),
    (FileKind.STATE, {1: (0,), 3: (2,)}, {2: (2,), 4: (0,), 5: (5,), 6: (0,), 1000: (2,), 1001: (2,)}),
    (FileKind.DATUM, {1: (0,), 2: (0,), 3: (0,)}, {4: (2,), 5: (0,), 6: (2, 5), 7: (0,)}),
    *(
        (FileKind.BLOB, {data: wires, **shape}, BLOB_FIELDS)
        for data, wires in ((5, (2, 5)), (8, (1, 2)), (12, (2,)))
        for shape in ({7: (2,)}, {1: (0,)})
    ),
)


def mistaken_for(data: bytes, *expected: FileKind | None) -> str:
    """The end of an error about a file of the wrong kind: "; it is ..."; "" if expected or unknown."""
    kind = file_kind(data)
    return f"; it is {kind.value}" if kind is not None and kind not in expected else ""


def mistaken_file(path: AnyPath, *expected: FileKind | None) -> str:
    """`mistaken_for` of the file's content; "" where it cannot be read or is not a regular file."""
    try:
        with open_to_read(path) as file:
            return mistaken_for(file.read(MOST_READ), *expected)
    except (OSError, ValueError):
        return ""


def file_kind(data: bytes) -> FileKind | None:
    """The kind of a file from its first bytes, or from all of them; None where it is not recognised."""
    head = data[:TEXT_READ]
    if head.startswith(LFS):
        return FileKind.LFS
    for offset, magic, kind in MAGIC if CONTROL_CHARACTERS.search(head) else ():
        if data.startswith(magic, offset):
            return FileKind.TORCH if kind is FileKind.ZIP and b"/data.pkl" in head else kind
    if HTML.match(head):
        return FileKind.HTML
    if b"\0" not in head:
        text = COMMENT.sub(b"", head)
        if NET_TEXT.search(text):
            return FileKind.NET_TEXT
        if SOLVER_TEXT.search(text):
            return FileKind.SOLVER_TEXT
        if not CONTROL_CHARACTERS.search(text):
            return None
    return _message_kind(data)


def _message_kind(data: bytes) -> FileKind | None:
    fields = _top_fields(data)
    numbers = {number for number, _ in fields}
    for kind, needed, allowed in MESSAGES:
        wires = {**needed, **allowed}
        if (
            numbers
            and numbers >= needed.keys()
            and all(wire in wires.get(number, (wire,)) for number, wire in fields)
            and (numbers <= wires.keys() or (kind is FileKind.NET and 100 in numbers))
        ):
            return kind
    return None


def _top_fields(data: bytes) -> set[tuple[int, int]]:
    """Numbers and wire types of the first MOST_FIELDS fields of a message; empty if it is no message."""
    fields: set[tuple[int, int]] = set()
    place = 0
    try:
        for _ in range(MOST_FIELDS):
            if place == len(data):
                return fields
            tag, place = _varint(data, place)
            wire = tag & 7
            if wire == 0:
                _, place = _varint(data, place)
            elif wire == 2:
                size, place = _varint(data, place)
                place += size
            else:
                place += {1: 8, 5: 4}[wire]
            if place > len(data) or tag < 8:
                return set()
            fields.add((tag >> 3, wire))
    except (IndexError, KeyError):  # cut short, or a wire type that Caffe's messages do not use
        return set()
    return fields


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """The varint at a place, and the place after it."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            break
    return number, place
