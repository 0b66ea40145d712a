"""The UCI handwritten digits (see data/README.md), which come with this package, into LMDBs.

    imae convert-digits data             # data/digits_train_lmdb, data/digits_test_lmdb

1797 images of 8x8 pixels with grey values 0 to 16, stretched to 0 to 255. The first 1500 are for training,
the last 297 for test; keys have 8 digits.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np

from imae.converters.images import ImageSet, add_image_options, write_train_test

COMMAND = "convert-digits"
HELP = "the UCI handwritten digits, which come with this package, to LMDBs"

FILE = Path(__file__).with_name("data") / "digits.csv.gz"
TRAINING = 1500
KEY_DIGITS = 8
GREY = 15.9375  # 255 / 16; the product is cut to a whole number


def read_digits() -> tuple[ImageSet, ImageSet]:
    """Training and test images, (N, 1, 8, 8)."""
    with gzip.open(FILE, "rt", encoding="ascii") as file:
        rows = np.loadtxt(file, np.int64, delimiter=",")
    images = (rows[:, :64] * GREY).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = rows[:, 64]
    return ImageSet(images[:TRAINING], labels[:TRAINING]), ImageSet(images[TRAINING:], labels[TRAINING:])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", help="folder for digits_train_lmdb and digits_test_lmdb")
    add_image_options(parser)


def run(args: argparse.Namespace) -> None:
    train, test = read_digits()
    write_train_test(args.output, "digits", train, test, KEY_DIGITS, args.pad, args.shuffle)
