"""The UCI handwritten digits (see data/README.md), which come with this package, into LMDBs.

1797 images of 8x8 pixels with grey values 0 to 16, stretched to 0 to 255. The first 1500 are for training,
the last 297 for test; keys have 8 digits.
"""

import gzip
from pathlib import Path

import numpy as np

from imae.converters.images import ImageSet, write_train_test
from imae.files.read import AnyPath

FILE = Path(__file__).with_name("data") / "digits.csv.gz"
TRAINING = 1500
KEY_DIGITS = 8
GREY = 15.9375  # 255 / 16; the product is truncated to a whole number


def read_digits() -> tuple[ImageSet, ImageSet]:
    """Training and test images, (N, 1, 8, 8)."""
    with gzip.open(FILE, "rt", encoding="ascii") as file:
        rows = np.loadtxt(file, np.int64, delimiter=",")
    images = (rows[:, :64] * GREY).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = rows[:, 64]
    return ImageSet(images[:TRAINING], labels[:TRAINING]), ImageSet(images[TRAINING:], labels[TRAINING:])


def convert_digits(output: AnyPath, *, pad: int = 0, shuffle: int | None = None) -> None:
    """Write digits_train_lmdb and digits_test_lmdb into the folder `output`.

    pad       number of zeros on each side of the training images
    shuffle   seed of the order of the training images; None: not shuffled
    """
    train, test = read_digits()
    write_train_test(output, "digits", train, test, KEY_DIGITS, pad, shuffle)
