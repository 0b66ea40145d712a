"""Caffe's compute_image_mean: the mean image of a database as a .binaryproto, and the means of its channels.

    imae compute-image-mean train_lmdb mean.binaryproto

The mean is a BlobProto with num 1, channels, height and width. It is summed in single precision in the order
of the records, so it equals Caffe's bit for bit.

Caffe: tools/compute_image_mean.cpp. Differs: images with the same number of values but different shapes are
refused, too.
"""

from __future__ import annotations

import argparse
import logging

from imae.converters.compute_image_mean import compute_image_mean

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("input", metavar="INPUT_DB", help="LMDB or LevelDB")
    parser.add_argument("output", metavar="OUTPUT_FILE", nargs="?", help=".binaryproto to write")
    parser.add_argument("--backend", choices=["lmdb", "leveldb"], default="lmdb")


def run(args: argparse.Namespace) -> None:
    """Compute the mean, and write it if a file is named."""
    compute_image_mean(args.input, args.output, args.backend)
    if not args.output:
        logger.info("No OUTPUT_FILE is named: the means above are all, and no mean image is written.")
