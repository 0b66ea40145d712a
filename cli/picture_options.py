"""The options of the commands that make databases of images: --pad, --gray, --encoded and others."""

from __future__ import annotations

import argparse
import logging
import secrets

from imae.cli.options import whole_number
from imae.converters.images import PictureForm
from imae.converters.resize import BILINEAR, INTERPOLATIONS

logger = logging.getLogger(__name__)

LONGEST_SIDE = 10000  # pixels that an option may ask for


def add_image_options(parser: argparse.ArgumentParser, images: str = "the training images") -> None:
    """--pad and --shuffle; `images` is what the help calls the images that they apply to."""
    parser.add_argument(
        "--pad", type=pixel_count, default=0, metavar="N", help=f"put N zeros on each side of {images}"
    )
    add_shuffle_option(parser, images)


def add_shuffle_option(parser: argparse.ArgumentParser, images: str = "the images") -> None:
    """--shuffle SEED; without a seed, as Caffe's flag is, one is chosen and logged."""
    parser.add_argument(
        "--shuffle",
        type=seed,
        metavar="SEED",
        help=f"write {images} in a random order given by SEED; bare, or true, as in Caffe: by some seed, "
        "which the log names",
    )


def seed(text: str) -> int | None:
    """An argument that is a seed, or a flag of gflags: some seed for true, none for false."""
    if text == "false":
        return None
    if text != "true":
        return int(text)
    chosen = secrets.randbits(31)
    logger.info("--shuffle has no seed; this order's seed is %d", chosen)
    return chosen


def add_interpolation_option(parser: argparse.ArgumentParser) -> None:
    """--interpolation, empty if it is not given."""
    parser.add_argument(
        "--interpolation",
        choices=INTERPOLATIONS,
        default="",
        help=f"for resizing (default: {BILINEAR}, as Caffe; bicubic is MATLAB's imresize)",
    )


def add_picture_options(
    parser: argparse.ArgumentParser, encoded: str = "store the image files as they are, undecoded"
) -> None:
    """--gray, --resize_height, --resize_width, --interpolation, --encoded; hyphens work as well.

    encoded   what --encoded does, for the help
    """
    parser.add_argument("--gray", action="store_true", help="one channel instead of three")
    for side in ("height", "width"):
        names = (f"--resize-{side}", f"--resize_{side}")
        parser.add_argument(*names, type=pixel_count, default=0, metavar="N", help=f"{side} to resize to")
    add_interpolation_option(parser)
    parser.add_argument("--encoded", action="store_true", help=encoded)


def chosen_form(args: argparse.Namespace) -> PictureForm:
    """The form of the stored images, from the options of add_picture_options and --pad."""
    return PictureForm(
        args.gray, args.resize_height, args.resize_width, args.interpolation, args.pad, args.encoded
    )


def pixel_count(text: str) -> int:
    """An argument that is a number of pixels, from 0 to LONGEST_SIDE."""
    number = whole_number(text)
    if number > LONGEST_SIDE:
        raise argparse.ArgumentTypeError(f"must be at most {LONGEST_SIDE}, got {number}")
    return number


def _written_backend(text: str) -> str:
    """The database that is written: an LMDB."""
    if text.lower() == "leveldb":
        raise argparse.ArgumentTypeError(
            "Caffe's LevelDB is read, not written; leave --backend out and write backend: LMDB into the net"
        )
    if text.lower() != "lmdb":
        raise argparse.ArgumentTypeError(f"the database that is written is an lmdb, got '{text}'")
    return "lmdb"


def add_database_options(parser: argparse.ArgumentParser) -> None:
    """How images of a list are stored: in which format and database, and whether their sizes must agree."""
    parser.add_argument(
        "--encode-type",
        "--encode_type",
        default="",
        metavar="TYPE",
        help="store images encoded in this format: png, jpg, ...",
    )
    parser.add_argument(
        "--check-size",
        "--check_size",
        action="store_true",
        help="stop at an image whose size differs from the first one's",
    )
    parser.add_argument("--backend", type=_written_backend, default="lmdb", metavar="lmdb")
