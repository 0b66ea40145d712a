"""The images of the MARS benchmark into an LMDB.

    imae convert-mars info bbox_train.tar train_lmdb --resize-height 256 --resize-width 256 --shuffle 1
    imae convert-mars info bbox_test test_lmdb --part test --encoded

A label for training is the person's place among the persons in ascending order, 0 to 624; for testing it is
the person. Keys are %08d_PPPP/NAME with the place in the order. Raw Datums are BGR.
"""

from __future__ import annotations

import argparse

from imae.cli.picture_options import add_image_options, add_picture_options, chosen_form
from imae.paper.convert_mars import convert_mars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "protocol", help="folder of tracks_train_info.mat and, if it is there, train_name.txt"
    )
    parser.add_argument("images", help="folder bbox_train, or a .tar archive of what is in it")
    parser.add_argument("output", help="LMDB to write")
    parser.add_argument("--part", choices=["train", "test"], default="train", help="of the benchmark (train)")
    add_picture_options(parser)
    add_image_options(parser, "the images")


def run(args: argparse.Namespace) -> None:
    """Write the LMDB."""
    convert_mars(args.protocol, args.images, args.output, args.part, chosen_form(args), shuffle=args.shuffle)
