"""BlobProto to array and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from imae.prototxt import BlobProto
from imae.prototxt.errors import CaffemodelError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def blob_shape(blob: BlobProto) -> tuple[int, ...]:
    """Shape of a blob; files from before 2014 give num, channels, height, width instead of `shape`."""
    if blob.HasField("shape"):
        return tuple(blob.shape.dim)
    if any(blob.HasField(name) for name in ("num", "channels", "height", "width")):
        return (blob.num, blob.channels, blob.height, blob.width)
    return (max(len(blob.data), len(blob.double_data)),)


def array_from_blob(blob: BlobProto, diff: bool = False) -> NDArray[np.float32]:
    """The data (or diff) of a blob as a float32 array; CaffemodelError where count and shape disagree."""
    single, double = (blob.diff, blob.double_diff) if diff else (blob.data, blob.double_data)
    values = np.array(double if len(double) else single, np.float32)
    shape = blob_shape(blob)
    count = 1
    for d in shape:
        count *= d
    if any(d < 0 for d in shape) or values.size != count:
        raise CaffemodelError(f"a blob of shape {shape} holds {values.size} numbers; the file is damaged")
    return values.reshape(shape)


def blob_from_array(values: NDArray[np.float32], diff: NDArray[np.float32] | None = None) -> BlobProto:
    """A BlobProto with shape and data (and diff) as Caffe writes it."""
    blob = BlobProto()
    blob.shape.dim.extend(values.shape)
    _merge_packed(blob, BlobProto.DATA_FIELD_NUMBER, values)
    if diff is not None:
        _merge_packed(blob, BlobProto.DIFF_FIELD_NUMBER, diff)
    return blob


def _merge_packed(blob: BlobProto, number: int, values: NDArray[np.float32]) -> None:
    """Set a packed float field from its bytes: `extend` takes seconds for the weights of a large net."""
    data = np.ascontiguousarray(values, "<f4").tobytes()
    head, length = bytearray([number << 3 | 2]), len(data)
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    blob.MergeFromString(bytes(head) + data)
