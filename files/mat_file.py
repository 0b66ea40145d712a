"""Matrices of numbers from MATLAB's MAT-files of version 5, which `save` writes with -v6 and -v7.

A file is a header of 128 bytes, then elements: type, number of bytes, content, padded to 8 bytes. Up to 4
bytes of content may be in the tag itself. COMPRESSED holds another element, deflated. A MATRIX consists of
elements: flags with the class, dimensions, name, values with the first axis running fastest. The values are
stored in any type that can hold them.

MathWorks: MAT-File Format. scipy.io reads these files as well, but trusts a damaged one: a flipped bit in a
type can end the process.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imae.files.errors import DataError
from imae.files.read import AnyPath, open_to_read

HEADER = 128
INT32, UINT32, MATRIX, COMPRESSED = 5, 6, 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
NUMBER_CLASSES = range(6, 16)  # double, single, and the whole numbers of 8 to 64 bits
LARGEST = 64 << 20  # bytes of a file, and of an inflated matrix


def read_mat(path: AnyPath, name: str) -> NDArray[Any]:
    """The matrix called `name`, in the type in which its values are stored.

    DataError where the file cannot be read, is damaged or lacks the matrix, or where the matrix is not one of
    real numbers.
    """
    data = _read(path)
    order = {b"IM": "<", b"MI": ">"}.get(data[126:HEADER])
    if order is None or struct.unpack_from(f"{order}H", data, 124)[0] != 0x100:
        raise DataError(f"'{path}' is no MAT-file of version 5; make it with MATLAB's save -v7")
    others = []
    try:
        for kind, content in _elements(data[HEADER:], order):
            if kind == COMPRESSED:
                kind, content = next(_elements(_inflated(content), order), (0, b""))
            if kind != MATRIX:
                continue
            parts = [*_elements(content, order)]
            if len(parts) < 3:
                raise ValueError("a matrix without a name")
            matrix_name = parts[2][1].decode("ascii", "backslashreplace")
            if matrix_name == name:
                return _matrix(parts, order)
            others.append(matrix_name)
    except (ValueError, zlib.error) as error:
        raise DataError(f"'{path}' is damaged, or its {name} is no matrix of real numbers: {error}") from None
    raise DataError(f"'{path}' has no matrix {name}; it has {', '.join(others) or 'none'}")


def _matrix(parts: Sequence[tuple[int, bytes]], order: str) -> NDArray[Any]:
    """The matrix of these elements; ValueError unless it is one of real numbers."""
    if [kind for kind, _ in parts[:2]] != [UINT32, INT32] or not parts[0][1]:
        raise ValueError("its head is not that of a matrix")
    flags, shape = (_numbers(*part, order).tolist() for part in parts[:2])
    if flags[0] & 0xFF not in NUMBER_CLASSES or len(parts) != 4:
        raise ValueError(f"class {flags[0] & 0xFF}, {len(parts)} elements")
    values = _numbers(*parts[3], order)
    if min(shape, default=-1) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"{len(values)} values for the shape {shape}")
    return values.reshape(shape, order="F")


def _read(path: AnyPath) -> bytes:
    try:
        with open_to_read(path) as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"cannot read '{path}': {reason}") from None
    if len(data) > LARGEST:
        raise DataError(f"'{path}' has more than {LARGEST} bytes")
    return data


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(type, content) of consecutive elements."""
    place = 0
    while place < len(data):
        if len(data) - place < 8:
            raise ValueError("it is cut short")
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start, end = place + 8, place + 8 + size
        if kind >> 16:  # the small form
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = place + 4, place + 8
        if start + size > min(end, len(data)):
            raise ValueError(f"an element of {size} bytes where {min(end, len(data)) - start} are left")
        yield kind, data[start : start + size]
        place = end if kind == COMPRESSED else end + -end % 8


def _inflated(content: bytes) -> bytes:
    stream = zlib.decompressobj()
    data = stream.decompress(content, LARGEST)
    if not stream.eof:
        raise ValueError("a deflated matrix is cut short, or larger than any of ours")
    return data


def _numbers(kind: int, content: bytes, order: str) -> NDArray[Any]:
    if kind not in NUMBERS:
        raise ValueError(f"type {kind} where numbers should be")
    return np.frombuffer(content, order + NUMBERS[kind])  # ValueError for bytes left over
