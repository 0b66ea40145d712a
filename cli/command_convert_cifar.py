"""CIFAR-10 and CIFAR-100, as their authors distribute them, into LMDBs for training and test.

    imae convert-cifar cifar-10-binary.tar.gz data     # data/cifar10_train_lmdb, data/cifar10_test_lmdb

Reads the binary and the Python version, from the folder or straight from the .tar.gz archive. Keys have 5
digits, as in Caffe's convert_cifar_data. As there, the channels keep the file's order, red first. All other
images in Caffe have blue first: --bgr swaps the channels. --resize 36 --interpolation bicubic --bgr makes the
images that the authors of IMAE took their crops from (see exclude_last_crop in imae.layers.data.transformer).

Binary: records of a label (CIFAR-100: coarse, then fine label), then the red, green and blue plane of 32x32.
Python: a pickled dict, see cifar_pickle.py.  (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html)
"""

from __future__ import annotations

import argparse

from imae.cli.picture_options import add_image_options, add_interpolation_option, pixel_count
from imae.converters.convert_cifar import convert_cifar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("source", help="the folder or the .tar.gz archive as downloaded")
    parser.add_argument(
        "output", help="folder for cifar10_train_lmdb and cifar10_test_lmdb (or cifar100_...)"
    )
    parser.add_argument("--label", choices=("fine", "coarse"), help="CIFAR-100: which labels (default: fine)")
    parser.add_argument(
        "--bgr", action="store_true", help="blue first, as other images in Caffe; default: red first"
    )
    parser.add_argument(
        "--resize", type=pixel_count, default=0, metavar="N", help="make all images N x N, before --pad"
    )
    add_interpolation_option(parser)
    add_image_options(parser)


def run(args: argparse.Namespace) -> None:
    """Write the LMDBs."""
    convert_cifar(
        args.source,
        args.output,
        label=args.label,
        bgr=args.bgr,
        resize=args.resize,
        interpolation=args.interpolation,
        pad=args.pad,
        shuffle=args.shuffle,
    )
