"""Write a folder of class folders, or a .tar archive of one, into an LMDB.

    imae convert-folder cifar10.tar.xz train_lmdb --subfolder train --pad 4 --shuffle 1

Images are SOURCE/CLASS/IMAGE. Classes are labelled in the order of their names, or in that of --classes.
Records are sorted by class, then by name, under the keys %08d_CLASS/IMAGE. Channels are BGR.

Labels that were collected for the images in another order, such as human labels, need the records in that
order: --class-sequence gives the class of each record, and the images of a class are taken in the order of
their names. If that is not their order, --within-class gives it: an .npz with an array for each class; its
number k is the index, among the sorted names of the class, of the image that comes k-th.
"""

from __future__ import annotations

import argparse
import os

from imae.cli.picture_options import add_image_options, add_picture_options, chosen_form
from imae.converters.convert_folder import convert_folder
from imae.converters.label_file import FORMS
from imae.files.errors import DataError
from imae.files.read import is_own_pipe, read_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("source", help="folder, or .tar, .tar.gz, .tar.bz2, .tar.xz archive")
    parser.add_argument("output", help="LMDB to write")
    parser.add_argument(
        "--subfolder", default="", metavar="PATH", help="where in SOURCE the class folders are"
    )
    parser.add_argument(
        "--classes",
        default="",
        metavar="A,B,..|FILE",
        help="class folders in the order of their labels, or a file that lists them",
    )
    parser.add_argument(
        "--class-sequence", metavar="FILE", help=f"order by the class of each record: {FORMS}"
    )
    parser.add_argument(
        "--within-class", metavar="FILE.npz", help="order of the images of each class, an array per class"
    )
    parser.add_argument(
        "--labels", metavar="FILE", help=f"other labels, in the order of the unshuffled records: {FORMS}"
    )
    add_picture_options(parser)
    add_image_options(parser, "the images")


def run(args: argparse.Namespace) -> None:
    """Write the LMDB."""
    convert_folder(
        args.source,
        args.output,
        chosen_form(args),
        subfolder=args.subfolder,
        classes=read_classes(args.classes),
        class_sequence=args.class_sequence,
        within_class=args.within_class,
        labels=args.labels,
        shuffle=args.shuffle,
    )


def read_classes(text: str) -> list[str]:
    """The classes in the text A,B,.. or, if the text names a file, in the lines of that file."""
    if not os.path.isfile(text) and not is_own_pipe(text):
        return [name for name in text.split(",") if name]
    try:
        lines = read_bytes(text).decode().replace("\r", "\n").split("\n")
        return [line.strip() for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the classes '{text}': {error}") from error
