"""Copy an LMDB and make part of its labels wrong on purpose.

    imae corrupt-labels train_lmdb train_noisy40_lmdb --noise symmetric --rate 0.4 --seed 123

The images, the keys and the order stay the same. NAME.clean_labels.npz, written beside the new LMDB, holds
the keys, the clean and the noisy labels, so that later the noisy and the clean part of the training set can
be told apart.

Kinds of noise, with rate r and C classes:

    symmetric            with probability r, any of the C classes, the right one included (the paper, section
                         5.1): about r (C - 1) / C of the labels are wrong
    symmetric-exclusive  with probability r, one of the C - 1 other classes (the paper's later version)
    asymmetric-cifar10   with probability r: truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog
    asymmetric-cifar100  in each of the 20 superclasses two classes A and B are drawn; a share r of A's
                         images gets B's label, and a share r of B's images gets A's
    pair-flip            with probability r, the next class: c -> (c + 1) mod C
    file                 the labels of a file, e.g. human labels

The random numbers are those of numpy's RandomState(seed) (mt19937), whose streams are frozen: a seed gives
the same labels with every version of numpy. The same numbers are drawn for every r, so the labels that are
wrong at a low rate are wrong at a higher rate, too.
"""

from __future__ import annotations

import argparse

from imae.cli.options import whole_number
from imae.converters.corrupt_labels import DEFAULT_SEED, NOISES, corrupt_labels
from imae.converters.label_file import FORMS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("input", help="LMDB to read")
    parser.add_argument("output", help="LMDB to write")
    parser.add_argument("--noise", required=True, choices=[*NOISES, "file"])
    parser.add_argument("--rate", type=float, metavar="R", help="0 to 1; not for --noise file")
    parser.add_argument("--seed", type=whole_number, help=f"of the random numbers (default: {DEFAULT_SEED})")
    parser.add_argument("--classes", type=whole_number, metavar="N", help="default: the largest label + 1")
    parser.add_argument("--labels", metavar="FILE", help=f"for --noise file: {FORMS}")
    parser.add_argument(
        "--order",
        metavar="FILE",
        help="for --noise file: the index of each record's label in it; default: the record's own index",
    )


def run(args: argparse.Namespace) -> None:
    """Write the LMDB and the file of its clean labels."""
    corrupt_labels(
        args.input,
        args.output,
        args.noise,
        rate=args.rate,
        seed=args.seed,
        classes=args.classes,
        labels=args.labels,
        order=args.order,
    )
