"""Write the images of the MARS benchmark into an LMDB.

    imae convert-mars info bbox_train.tar train_lmdb --resize-height 256 --resize-width 256 --shuffle 1
    imae convert-mars info bbox_test test_lmdb --part test --encoded

A training label is the person's index among the persons in ascending order, 0 to 624. A test label is the
person's number. Keys are %08d_PPPP/NAME with the index in the order. Raw Datums are BGR.
"""

from __future__ import annotations

import argparse

from imae.cli.picture_options import add_image_options, add_picture_options, chosen_form
from imae.paper.convert_mars import convert_mars


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "protocol", help="folder of tracks_train_info.mat and, if there is one, train_name.txt"
    )
    parser.add_argument("images", help="folder bbox_train, or a .tar archive of its contents")
    parser.add_argument("output", help="LMDB to write")
    parser.add_argument("--part", choices=["train", "test"], default="train", help="which part (train)")
    add_picture_options(parser)
    add_image_options(parser, "the images")


def run(args: argparse.Namespace) -> None:
    """Write the LMDB."""
    convert_mars(args.protocol, args.images, args.output, args.part, chosen_form(args), shuffle=args.shuffle)
