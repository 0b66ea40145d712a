"""Caffe's convert_imageset: write the images of a list of lines "FILE LABEL" into an LMDB.

    imae convert-imageset --resize_height=256 --resize_width=256 ./ list.txt train_lmdb

Keys are %08d_FILE with the line's index in the list. An image that cannot be read is reported and left out;
the indices of the others do not change. Raw Datums are BGR.

Caffe: tools/convert_imageset.cpp, io.cpp. Differs: --shuffle may have a seed; --pad and --interpolation are
added; an LMDB without records is refused.
"""

from __future__ import annotations

import argparse

from imae.cli.picture_options import add_database_options, add_image_options, add_picture_options, chosen_form
from imae.converters.convert_imageset import convert_imageset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "root", metavar="ROOTFOLDER/", help="prefix of each file name; the final slash is needed"
    )
    parser.add_argument("list", metavar="LISTFILE", help='lines "FILE LABEL"')
    parser.add_argument("output", metavar="DB_NAME", help="LMDB to write")
    add_picture_options(parser)
    add_database_options(parser)
    add_image_options(parser, "the images")


def run(args: argparse.Namespace) -> None:
    """Write the LMDB."""
    convert_imageset(
        args.root,
        args.list,
        args.output,
        chosen_form(args),
        encode_type=args.encode_type,
        check_size=args.check_size,
        shuffle=args.shuffle,
    )
