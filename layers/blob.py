"""Blobs: BlobProto to array and back, and shapes as Caffe prints them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from imae.files.errors import CaffemodelError
from imae.files.limits import MAX_AXES, MAX_COUNT
from imae.prototxt import BlobProto

if TYPE_CHECKING:
    from numpy.typing import NDArray


def shape_string(shape: Iterable[int]) -> str:
    """A shape as Caffe prints it: `99 12 8 8 (76032)`."""
    dims = list(shape)
    return "".join(f"{d} " for d in dims) + f"({math.prod(dims)})"


def blob_shape(blob: BlobProto) -> tuple[int, ...]:
    """Shape of a blob; files from before 2014 give num, channels, height, width instead of `shape`."""
    if blob.HasField("shape"):
        return tuple(blob.shape.dim)
    if any(blob.HasField(name) for name in ("num", "channels", "height", "width")):
        return (blob.num, blob.channels, blob.height, blob.width)
    return (max(len(blob.data), len(blob.double_data)),)


def array_from_blob(blob: BlobProto, diff: bool = False) -> NDArray[np.float32]:
    """The data (or diff) of a blob as a float32 array; CaffemodelError where count and shape disagree."""
    with np.errstate(over="ignore"):  # values too large for float32 become infinite, as in Caffe
        return exact_array_from_blob(blob, diff).astype(np.float32, copy=False)


def exact_array_from_blob(blob: BlobProto, diff: bool = False) -> NDArray[np.floating[Any]]:
    """The same in the stored precision: float64 if a net in double precision wrote it, else float32."""
    single, double = (blob.diff, blob.double_diff) if diff else (blob.data, blob.double_data)
    values = np.array(double, np.float64) if len(double) else np.array(single, np.float32)
    shape = blob_shape(blob)
    if len(shape) > MAX_AXES or any(not 0 <= d <= MAX_COUNT for d in shape):
        raise CaffemodelError(f"a blob has at most {MAX_AXES} axes of 0 to {MAX_COUNT}; got {shape}")
    if values.size != math.prod(shape):
        raise CaffemodelError(f"a blob of shape {shape} holds {values.size} numbers; the file is damaged")
    try:
        return values.reshape(shape)
    except ValueError:  # no values, but axes too large for numpy
        raise CaffemodelError(f"a blob of shape {shape} is impossible; the file is damaged") from None


def blob_from_array(
    values: NDArray[np.floating[Any]], diff: NDArray[np.floating[Any]] | None = None
) -> BlobProto:
    """A BlobProto with shape and data (and diff) as Caffe writes it: float64 as double_data, else data."""
    blob = BlobProto()
    blob.shape.dim.extend(values.shape)
    for array, *fields in (
        (values, BlobProto.DATA_FIELD_NUMBER, BlobProto.DOUBLE_DATA_FIELD_NUMBER),
        (diff, BlobProto.DIFF_FIELD_NUMBER, BlobProto.DOUBLE_DIFF_FIELD_NUMBER),
    ):
        if array is not None:
            array = single_or_double(array)
            _merge_packed(blob, fields[array.itemsize == 8], array)
    return blob


def single_or_double(values: Any) -> NDArray[np.floating[Any]]:
    """An array, or a data set of an HDF5 file, as float64 if it is float64, else as float32.

    TypeError where it holds no real numbers.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"values of type {array.dtype}")
    double = array.dtype.kind == "f" and array.itemsize == 8
    return array.astype(np.float64 if double else np.float32, copy=False)


def _merge_packed(blob: BlobProto, number: int, values: NDArray[np.floating[Any]]) -> None:
    """Set a packed field from its bytes: `extend` takes seconds for the weights of a large net."""
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    head, length = bytearray([number << 3 | 2]), len(data)
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    blob.MergeFromString(bytes(head) + data)
