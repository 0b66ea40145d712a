"""The images of the MARS benchmark into an LMDB.

    imae convert-mars info bbox_train.tar train_lmdb --resize-height 256 --resize-width 256 --shuffle 1
    imae convert-mars info bbox_test test_lmdb --part test --encoded

A label for training is the person's place among the persons in ascending order, 0 to 624; for testing it is
the person. Keys are %08d_PPPP/NAME with the place in the order. Raw Datums are BGR.
"""

from __future__ import annotations

import argparse

import numpy as np

from imae.converters.convert_folder import folder_records, record_form
from imae.converters.images import Picture, add_image_options, add_picture_options, shuffled_order
from imae.converters.lmdb_writer import write_lmdb
from imae.files.errors import DataError
from imae.files.file_tree import open_tree
from imae.paper.mars import find_images, order_images, read_part

COMMAND = "convert-mars"
HELP = "the images of the MARS benchmark to an LMDB, labelled by person"


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
    form = record_form(args)
    tracklets = read_part(args.protocol, args.part)
    labels = tracklets.person
    if args.part == "train":
        if labels.min() < 1:
            raise DataError(
                f"'{args.protocol}': the persons to train with must be 1 or more, got {labels.min()}"
            )
        labels = np.unique(labels, return_inverse=True)[1]
    labels = np.repeat(labels, tracklets.end - tracklets.begin)
    with open_tree(args.images) as tree:
        found = find_images(tree.names)
        names = order_images(found, args.protocol, args.part, tracklets, f"'{args.images}'")
        order = shuffled_order(len(names), args.shuffle)
        pictures = [Picture(found[names[i]], int(labels[i])) for i in order]
        write_lmdb(args.output, folder_records(tree, pictures, form), len(pictures))
