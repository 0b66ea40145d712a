"""caffe.io: convert arrays to and from Caffe's messages, and prepare images for a net.

An image is a float32 array (H, W, K), RGB from 0 to 1. A net expects (K, H, W), usually BGR from 0 to 255
with a mean subtracted. `Transformer` converts from one to the other and back.

Caffe: python/caffe/io.py. Differs: scikit-image and SciPy are not used. `resize_image` gives their numbers up
to rounding; `load_image` reads with OpenCV, whose JPEG decoder may differ by a grey level. The caller's
arrays are never written to. Encoded Datums are decoded. (The file is not named io.py, because no file here
has the name of a standard module. It is still imported as `imae.pycaffe.io` and `caffe.io`.)
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imae.files.errors import DataError
from imae.files.picture_size import check_picture_size, no_picture
from imae.files.read import read_bytes
from imae.prototxt import BlobProto, BlobProtoVector, Datum

Array = NDArray[Any]

# The weights of red, green and blue in grey: ITU-R 709, as in scikit-image. (OpenCV uses those of ITU-R 601.)
GREY_OF_RGB = (0.2125, 0.7154, 0.0721)


# -- messages ------------------------------------------------------------------------------------------------


def blobproto_to_array(blob: BlobProto, return_diff: bool = False) -> NDArray[np.float64]:
    """The data, or the diff, of a BlobProto.

    A blob of the old form has the shape (num, channels, height, width). A blob without a shape must be a
    scalar. DataError if the shape does not fit the number of values.
    """
    single, double = (blob.diff, blob.double_diff) if return_diff else (blob.data, blob.double_data)
    values = np.array(double if len(double) else single, np.float64)
    legacy = any(blob.HasField(name) for name in ("num", "channels", "height", "width"))
    shape = (blob.num, blob.channels, blob.height, blob.width) if legacy else tuple(blob.shape.dim)
    if not any(dim < 0 for dim in shape):
        with suppress(ValueError):
            return values.reshape(shape)
    raise DataError(f"a BlobProto of shape {shape} holds {values.size} values")


def array_to_blobproto(arr: Array, diff: Array | None = None) -> BlobProto:
    """A BlobProto with an array of any shape and, if given, its diff."""
    if diff is not None and diff.shape != arr.shape:
        raise DataError(f"data and diff must have one shape; got {arr.shape} and {diff.shape}")
    blob = BlobProto()
    blob.shape.dim.extend(arr.shape)
    blob.data.extend(arr.astype(np.float32).ravel())
    if diff is not None:
        blob.diff.extend(diff.astype(np.float32).ravel())
    return blob


def arraylist_to_blobprotovector_str(arraylist: Iterable[Array]) -> bytes:
    """Arrays as the bytes of a BlobProtoVector."""
    return BlobProtoVector(blobs=map(array_to_blobproto, arraylist)).SerializeToString()


def blobprotovector_str_to_arraylist(data: bytes) -> list[NDArray[np.float64]]:
    """The arrays in the bytes of a BlobProtoVector."""
    return [blobproto_to_array(blob) for blob in BlobProtoVector.FromString(data).blobs]


def array_to_datum(arr: Array, label: int | None = None) -> Datum:
    """A Datum of an array (C, H, W): uint8 in `data`, all other types in `float_data`."""
    if arr.ndim != 3:
        raise DataError(f"Incorrect array shape: a Datum has the axes (C, H, W); got {arr.shape}")
    channels, height, width = arr.shape
    datum = Datum(channels=channels, height=height, width=width)
    if arr.dtype == np.uint8:
        datum.data = arr.tobytes()
    else:
        datum.float_data.extend(arr.astype(np.float32).ravel())
    if label is not None:
        datum.label = int(label)
    return datum


def datum_to_array(datum: Datum) -> Array:
    """The values (C, H, W) of a Datum: uint8, or float64 from `float_data`; encoded images are BGR."""
    from imae.layers.data.datum import array_from_datum  # here: it loads OpenCV

    values = array_from_datum(datum)
    return values.astype(np.uint8 if values.dtype == np.uint8 else np.float64)


# -- preprocessing -------------------------------------------------------------------------------------------


class Transformer:
    """Convert images (H, W, K) to the blobs of a net's inputs, and back.

        blob = ((image, resized, transposed, channels reordered) * raw_scale - mean) * input_scale

    inputs   shape (N, K, H, W) by input name; steps that are not set for an input are skipped

    DataError for a name that is not among the inputs, and for settings that do not fit its shape.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        self.inputs = inputs
        self.transpose: dict[str, Sequence[int]] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, Array] = {}
        self.input_scale: dict[str, float] = {}

    def preprocess(self, in_: str, data: Array) -> NDArray[np.float32]:
        """The blob (K, H, W) of an image (H', W', K)."""
        size = self._shape(in_)[2:]
        if data.shape[:2] == size:
            blob = data.astype(np.float32)  # a copy
        else:
            blob = resize_image(data.astype(np.float32), size)
        if in_ in self.transpose:
            blob = blob.transpose(self.transpose[in_])
        if in_ in self.channel_swap:
            blob = blob[list(self.channel_swap[in_])]
        if in_ in self.raw_scale:
            blob *= self.raw_scale[in_]
        if in_ in self.mean:
            blob -= self.mean[in_]
        if in_ in self.input_scale:
            blob *= self.input_scale[in_]
        return blob

    def deprocess(self, in_: str, data: Array) -> Array:
        """The image of a blob: undo `preprocess`, except for the resizing; axes of length 1 are dropped.

        Caffe: drops them before all else, so that it fails for a grey image with a mean or a transposition.
        """
        axes = len(self._shape(in_)) - 1
        picture = data.copy()
        if math.prod(picture.shape[:-axes]) == 1:  # the batch's axis, if there is one
            picture = picture.reshape((1, *picture.shape)[-axes:])
        else:
            picture = picture.squeeze()
        if in_ in self.input_scale:
            picture /= self.input_scale[in_]
        if in_ in self.mean:
            picture += self.mean[in_]
        if in_ in self.raw_scale:
            picture /= self.raw_scale[in_]
        if in_ in self.channel_swap:
            picture = picture[np.argsort(self.channel_swap[in_])]
        if in_ in self.transpose:
            picture = picture.transpose(np.argsort(self.transpose[in_]))
        return picture.squeeze()

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of the axes: (2, 0, 1) turns (H, W, K) into (K, H, W)."""
        axes = len(self._shape(in_)) - 1
        if len(order) != axes:
            raise DataError(
                "Transpose order needs to have the same number of dimensions as the input: "
                f"{axes} for input {in_!r}; got {tuple(order)}"
            )
        self.transpose[in_] = order

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of the channels, the first axis after transposing: (2, 1, 0) turns RGB into BGR."""
        channels = self._shape(in_)[1]
        if len(order) != channels:
            raise DataError(
                "Channel swap needs to have the same number of dimensions as the input channels: "
                f"{channels} for input {in_!r}; got {tuple(order)}"
            )
        self.channel_swap[in_] = order

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """Set the factor that is applied before the mean is subtracted: 255 for images from 0 to 1."""
        self._shape(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: Array) -> None:
        """Set the mean: (K,), one value per channel, or (K, H, W), which is resized to the input's size."""
        channels, *size = self._shape(in_)[1:]
        if mean.ndim == 1:
            if len(mean) != channels:
                raise DataError(
                    f"Mean channels incompatible with input: {channels} for input {in_!r}; got {len(mean)}"
                )
            mean = mean[:, None, None]
        elif mean.ndim not in (2, 3):
            raise DataError(f"Mean shape invalid: expected 1 to 3 axes, got {mean.shape}")
        else:
            mean = mean.reshape(-1, *mean.shape[-2:])
            if mean.shape != (channels, *size):
                mean = resize_image(mean.transpose(1, 2, 0), size).transpose(2, 0, 1)
        self.mean[in_] = mean

    def set_input_scale(self, in_: str, scale: float) -> None:
        """Set the factor that is applied after the mean is subtracted."""
        self._shape(in_)
        self.input_scale[in_] = scale

    def _shape(self, in_: str) -> tuple[int, ...]:
        if in_ not in self.inputs:
            raise DataError(f"{in_} is not one of the net inputs: {', '.join(self.inputs)}")
        return tuple(self.inputs[in_])


# -- images --------------------------------------------------------------------------------------------------


def load_image(filename: str | os.PathLike[str], color: bool = True) -> NDArray[np.float32]:
    """Read an image file as (H, W, 3), RGB from 0 to 1; without `color` as (H, W, 1). Alpha is dropped."""
    import cv2  # here: few scripts that use this package read images

    try:
        data = read_bytes(filename)
    except OSError as error:
        raise DataError(f"Could not load {filename}: {error.strerror}") from None
    check_picture_size(data, os.fspath(filename))
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise no_picture(data, os.fspath(filename))
    largest = 2 ** (8 * pixels.itemsize) - 1 if pixels.dtype.kind == "u" else 1
    grey_or_bgr = pixels[:, :, None] if pixels.ndim == 2 else pixels[:, :, :3]
    image: Array = grey_or_bgr[:, :, ::-1] / largest
    if color:
        image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    elif image.shape[2] == 3:
        image = (image @ GREY_OF_RGB)[:, :, None]
    return image.astype(np.float32)


def resize_image(im: Array, new_dims: Sequence[int], interp_order: int = 1) -> NDArray[np.float32]:
    """Resize (H, W, K) to (new_dims[0], new_dims[1], K), without antialiasing.

    interp_order   0: the nearest pixel; 1: linear between the pixels

    With one or three channels a pixel is a square, and everything outside the image has its least value, so
    an enlarged image may darken at its border (Caffe: skimage.transform.resize). With other numbers of
    channels a pixel is a point, and the outermost points stay in place (Caffe: scipy.ndimage.zoom).
    """
    if interp_order not in (0, 1):
        raise DataError(f"interp_order must be 0 (nearest) or 1 (linear); got {interp_order}")
    if im.ndim != 3 or not im.size:
        raise DataError(f"an image has the axes (H, W, K); got {im.shape}")
    squares = im.shape[2] in (1, 3)
    rows, columns = (
        _resampling(old, int(new), interp_order, squares)
        for old, new in zip(im.shape[:2], new_dims, strict=True)
    )
    values = im.astype(np.float64)
    least = values.min()
    resized: Array = np.einsum("ih,hwk,jw->ijk", rows, values - least, columns, optimize=True) + least
    return resized.astype(np.float32)


def _resampling(old: int, new: int, interp_order: int, squares: bool) -> NDArray[np.float64]:
    """The matrix (new, old) that resamples one axis; rows that reach past the border sum to less than 1."""
    if squares:
        source = (np.arange(new) + 0.5) * (old / new) - 0.5
    else:
        source = np.arange(new) * (old - 1) / max(new - 1, 1)
    matrix = np.zeros((new, old))
    if interp_order == 0:
        matrix[np.arange(new), np.floor(source + 0.5).astype(int).clip(0, old - 1)] = 1
        return matrix
    left = np.floor(source).astype(int)
    for place, weight in ((left, left + 1 - source), (left + 1, source - left)):
        inside = (place >= 0) & (place < old)
        matrix[inside, place[inside]] += weight[inside]
    return matrix


def oversample(images: Iterable[Array], crop_dims: Iterable[int]) -> NDArray[np.float32]:
    """Ten crops of each image, (10 N, *crop_dims, K): corners, centre, and these five mirrored."""
    height, width = (int(d) for d in crop_dims)
    crops = []
    for image in images:
        spare_rows, spare_columns = image.shape[0] - height, image.shape[1] - width
        if spare_rows < 0 or spare_columns < 0:
            raise DataError(f"crops of {height} x {width} do not fit an image of shape {image.shape}")
        corners = [(y, x) for y in (0, spare_rows) for x in (0, spare_columns)]
        places = [*corners, (spare_rows // 2, spare_columns // 2)]
        five = [image[y : y + height, x : x + width] for y, x in places]
        crops += five + [crop[:, ::-1] for crop in five]
    return np.array(crops, np.float32)
