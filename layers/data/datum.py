"""Caffe's Datum, one record of a database: an image, or any array of three axes, and its label.

Caffe: io.cpp, data_transformer.cpp. Differs: Caffe trusts the sizes in a Datum and reads past its data
if they are too large; here they must agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from numpy.typing import NDArray

from imae.files.errors import DataError
from imae.files.picture_size import check_picture_size, no_picture
from imae.files.read import read_bytes
from imae.prototxt import Datum


def parse_datum(value: bytes, name: str) -> Datum:
    """A Datum from its bytes; `name` is its name in errors."""
    try:
        return Datum.FromString(value)
    except DecodeError:
        raise DataError(f"{name}: {len(value)} bytes that are not a Datum; the record is damaged") from None


def array_from_datum(
    datum: Datum, name: str = "datum", force_color: bool = False, force_gray: bool = False
) -> NDArray[Any]:
    """The values as (C, H, W): uint8, or float32 from `float_data`; images are BGR, 0-255.

    An encoded image is decoded with its own channels, or as colour or gray if that is forced; raw data is not
    changed. The array may be read-only.
    """
    if datum.encoded:
        if force_color and force_gray:
            raise DataError(f"{name}: cannot set both force_color and force_gray; leave one out")
        forced = cv2.IMREAD_COLOR if force_color else cv2.IMREAD_GRAYSCALE
        flag = forced if force_color or force_gray else cv2.IMREAD_UNCHANGED
        return decode_image(datum.data, flag, name).transpose(2, 0, 1)
    shape = channels, height, width = datum.channels, datum.height, datum.width
    data = datum.data  # every access to the field makes a copy
    count, stored = channels * height * width, len(data) or len(datum.float_data)
    if min(shape) <= 0 or stored != count:
        strange = not (channels or stored) and len(UnknownFieldSet(datum)) > 0
        annotated = ", or it is an AnnotatedDatum, for a layer of type AnnotatedData" if strange else ""
        raise DataError(
            f"{name}: a Datum of {size_text(shape)} that holds {stored} values; "
            f"the record is damaged{annotated}"
        )
    if data:
        return np.frombuffer(data, np.uint8).reshape(shape)
    return np.array(datum.float_data, np.float32).reshape(shape)


def datum_from_array(array: NDArray[Any], label: int) -> Datum:
    """A Datum of a (C, H, W) array: uint8 in `data`, floating point in `float_data`."""
    if array.ndim != 3 or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise DataError(
            "a Datum holds uint8 or floating-point values on three axes; "
            f"got {array.dtype} of shape {array.shape}"
        )
    channels, height, width = array.shape
    datum = Datum(channels=channels, height=height, width=width, label=label)
    if array.dtype == np.uint8:
        datum.data = array.tobytes()
    else:
        datum.float_data.extend(array.astype(np.float32).ravel())
    return datum


def decode_image(data: bytes, flag: int, name: str) -> NDArray[np.uint8]:
    """The image in the bytes of a JPEG, PNG, ... file: (H, W, C), BGR; `flag` is a cv2.IMREAD_*."""
    check_picture_size(data, name)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:  # more pixels than OpenCV allows
        image = None
    if image is None:
        raise no_picture(data, name)
    if image.dtype != np.uint8:
        raise DataError(f"{name}: Image data type must be unsigned byte; got {image.dtype}")
    return image if image.ndim == 3 else image[:, :, None]  # type: ignore[return-value]  # dtype checked above


def planes(image: NDArray[Any]) -> Sequence[NDArray[Any]]:
    """The channels of an image (C, H, W), with contiguous rows; copies if the image was decoded."""
    if image.strides[2] == image.itemsize or not 2 <= len(image) <= 4:
        return list(image)
    return cv2.split(image.transpose(1, 2, 0))


def is_interleaved(image: NDArray[Any]) -> bool:
    """Whether an image (C, H, W) of 2 to 4 channels has the order H, W, C in memory, as decoded ones have."""
    return 2 <= len(image) <= 4 and image.strides[0] == image.itemsize


def read_file(path: str) -> bytes:
    """The bytes of an image file."""
    try:
        return read_bytes(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"Could not load {path}: {reason}; mend the list, or root_folder") from None


def read_image(
    path: str, flag: int, size: tuple[int, int] = (0, 0), interpolation: int = cv2.INTER_LINEAR
) -> NDArray[np.uint8]:
    """A file's image as from `decode_image`, resized to `size` (height, width) unless that is 0."""
    image = decode_image(read_file(path), flag, path)
    if size[0]:
        resized = cv2.resize(image, size[::-1], interpolation=interpolation)  # drops an axis of one channel
        image = np.asarray(resized, np.uint8).reshape(*size, -1)
    return image


def size_text(shape: tuple[int, ...]) -> str:
    """A size as errors give it: 3 x 32 x 32."""
    return " x ".join(map(str, shape))
