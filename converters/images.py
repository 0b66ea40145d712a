"""What the image converters have in common: sets of images, decoding, padding, order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from imae.converters.lmdb_writer import Record, fill_lmdb
from imae.converters.resize import BILINEAR, INTERPOLATIONS
from imae.files.atomic import atomic_folder
from imae.files.errors import DataError, FileError
from imae.files.read import AnyPath
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.datum import datum_from_array, decode_image
from imae.prototxt import Datum

Image = NDArray[np.uint8]

LOOKED_AT = 10  # images of a list, to see whether the root folder lacks its slash


class ImageSet(NamedTuple):
    """images (N, C, H, W) of bytes, labels (N,)."""

    images: Image
    labels: NDArray[np.int64]


def write_train_test(
    output: AnyPath,
    name: str,
    train: ImageSet,
    test: ImageSet,
    digits: int,
    pad: int = 0,
    seed: int | None = None,
) -> None:
    """Write NAME_train_lmdb and NAME_test_lmdb, both or none, into the folder `output`, made if missing.

    The records are raw Datums; their key is their place in `digits` digits. The training images get `pad`
    zeros on each side and are shuffled with `seed`; the test images do not change.
    """
    if pad < 0:
        raise DataError(f"pad must be at least 0, got {pad}")
    new = not os.path.lexists(output)
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder '{output}': {error.strerror}") from error
    train_path, test_path = Path(output, f"{name}_train_lmdb"), Path(output, f"{name}_test_lmdb")
    order, test_order = shuffled_order(len(train.labels), seed), range(len(test.labels))
    try:
        with atomic_folder(train_path) as train_folder, atomic_folder(test_path) as test_folder:
            fill_lmdb(train_folder, train_path, image_records(train, order, digits, pad), len(order))
            fill_lmdb(test_folder, test_path, image_records(test, test_order, digits), len(test_order))
    except BaseException:
        if new:
            with suppress(OSError):  # another process has put a file there
                Path(output).rmdir()
        raise


def image_records(images: ImageSet, order: Sequence[int], digits: int, pad: int = 0) -> Iterator[Record]:
    """The images in this order as raw Datums; the key is the place in it."""
    for place, i in enumerate(order):
        yield (
            b"%0*d" % (digits, place),
            datum_from_array(pad_image(images.images[i], pad), int(images.labels[i])),
        )


def shuffled_order(count: int, seed: int | None) -> Sequence[int]:
    """0 .. count - 1 as Caffe's convert_imageset --shuffle orders them with this seed; None: not shuffled."""
    return range(count) if seed is None else CaffeRandom(seed).shuffle(count).tolist()


def check_root(root: str, names: Sequence[str]) -> None:
    """DataError where none of the first images is there, and one would be with a slash after `root`."""
    first = names[:LOOKED_AT]
    if not root or root.endswith("/") or any(os.path.exists(root + name) for name in first):
        return
    for name in first:
        if os.path.exists(f"{root}/{name}"):
            raise DataError(
                f"'{root}{name}' is not there, '{root}/{name}' is: add the slash, {root}/ (names are joined "
                "to ROOTFOLDER as they are)"
            )


def pad_image(image: Image, pad: int) -> Image:
    """(C, H, W) -> (C, H + 2 pad, W + 2 pad): `pad` zeros on each side."""
    if not pad:
        return image
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 2 * pad, width + 2 * pad), np.uint8)
    padded[:, pad : pad + height, pad : pad + width] = image
    return padded


def resize_all(images: Image, size: int, interpolation: str = "") -> Image:
    """(N, C, H, W) -> (N, C, size, size), by one of INTERPOLATIONS, bilinearly if none is named."""
    resize = INTERPOLATIONS[interpolation or BILINEAR]
    resized = np.empty((*images.shape[:2], size, size), np.uint8)
    for image, new in zip(images, resized, strict=True):
        new[:] = resize(image.transpose(1, 2, 0), size, size).transpose(2, 0, 1)
    return resized


def decode_picture(
    data: bytes, name: str, gray: bool = False, height: int = 0, width: int = 0, interpolation: str = ""
) -> Image:
    """Pixels (H, W, 3), BGR, or (H, W, 1) if gray, of an image file's bytes; DataError if it is no image.

    If both `height` and `width` are given, it is resized by one of INTERPOLATIONS, by default bilinearly.

    Caffe: io.cpp, ReadImageToCVMat.
    """
    pixels = decode_image(data, cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR, name)
    if height > 0 and width > 0:
        pixels = INTERPOLATIONS[interpolation or BILINEAR](pixels, height, width)
    return pixels


class Picture(NamedTuple):
    """The name of an image file, and its label."""

    name: str
    label: int


class PictureForm(NamedTuple):
    """How image files are decoded and stored.

    gray             one channel instead of three
    height, width    the size to resize to; 0: not resized
    interpolation    one of INTERPOLATIONS, for resizing; bilinear if it is empty
    pad              number of zeros on each side
    encoded          the files are stored unchanged
    """

    gray: bool = False
    height: int = 0
    width: int = 0
    interpolation: str = ""
    pad: int = 0
    encoded: bool = False

    def check(self) -> None:
        """DataError for an unknown interpolation, one without a size to resize to, and sizes below 0."""
        if self.interpolation and self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise DataError(f"unknown interpolation '{self.interpolation}' (known: {known})")
        if min(self.height, self.width, self.pad) < 0:
            sizes = f"{self.height}, {self.width} and {self.pad}"
            raise DataError(f"height, width and pad must be at least 0, got {sizes}")
        if self.interpolation and not (self.height and self.width):
            raise DataError("--interpolation is for resizing; it needs --resize-height and --resize-width")

    def pixels(self, data: bytes, name: str) -> Image:
        """The pixels of a file's bytes, not yet padded; DataError if it is no image."""
        return decode_picture(data, name, self.gray, self.height, self.width, self.interpolation)


def raw_datum(pixels: Image, label: int, pad: int = 0) -> Datum:
    """The Datum of pixels (H, W, C), with `pad` zeros on each side.  Caffe: io.cpp, CVMatToDatum."""
    datum = datum_from_array(pad_image(pixels.transpose(2, 0, 1), pad), label)
    datum.encoded = False  # set here, but not by convert_cifar_data, as in Caffe's files
    return datum


def encoded_datum(data: bytes, label: int) -> Datum:
    """An image file's unchanged bytes; as in Caffe without channels, height and width."""
    return Datum(data=data, label=label, encoded=True)
