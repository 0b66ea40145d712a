"""Write the UCI handwritten digits (see data/README.md), which come with this package, into LMDBs.

    imae convert-digits data             # data/digits_train_lmdb, data/digits_test_lmdb

1797 images of 8x8 pixels with grey values 0 to 16, stretched to 0 to 255. The first 1500 are for training,
the last 297 for test; keys have 8 digits.
"""

from __future__ import annotations

import argparse

from imae.cli.picture_options import add_image_options
from imae.converters.convert_digits import convert_digits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("output", help="folder for digits_train_lmdb and digits_test_lmdb")
    add_image_options(parser)


def run(args: argparse.Namespace) -> None:
    """Write the LMDBs."""
    convert_digits(args.output, pad=args.pad, shuffle=args.shuffle)
