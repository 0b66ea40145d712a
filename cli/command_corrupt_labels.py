"""Copy an LMDB and make part of its labels wrong on purpose.

    imae corrupt-labels train_lmdb train_noisy40_lmdb --noise symmetric --rate 0.4 --seed 123

The images, the keys and the order stay the same. NAME.clean_labels.npz, written beside the new LMDB, holds
the keys, the clean and the noisy labels, so that later the noisy and the clean part of the training set can
be told apart.

`imae corrupt-labels --help` explains the kinds of noise, as KINDS_OF_NOISE below does.

The random numbers are those of numpy's RandomState(seed) (mt19937), whose streams are frozen: a seed gives
the same labels with every version of numpy. The same numbers are drawn for every rate, so the labels that are
wrong at a low rate are wrong at a higher rate, too.
"""

from __future__ import annotations

import argparse

from imae.cli.options import whole_number
from imae.converters.corrupt_labels import DEFAULT_SEED, KINDS, MATRIX, corrupt_labels
from imae.converters.label_file import FORMS
from imae.files.errors import ImaeError

KINDS_OF_NOISE = """\
The kinds of noise, with rate R and C classes:

  symmetric            with probability R any of the C classes, its own included: R (C - 1) / C of the labels
                       are wrong (R 0.5, 10 classes: 45 %). The IMAE paper, section 5.1
  symmetric-exclusive  with probability R one of the C - 1 other classes: R of the labels are wrong
  pair-flip            with probability R the next class, c -> (c + 1) mod C
  asymmetric-cifar10   CIFAR-10's classes: with probability R truck -> automobile, bird -> airplane,
                       deer -> horse, cat <-> dog; half of the classes stay right
  asymmetric-cifar100  CIFAR-100's classes: in each of the 20 superclasses two classes are drawn, which
                       exchange the share R of their images; 0.4 R of the labels are wrong
  instance             depends on the pixels: each image has a rate of its own, normal(R, 0.1), and its own
                       likely wrong classes (Xia et al. 2020, arXiv 2006.07836); about R of the labels are
                       wrong
  matrix               --matrix FILE (.csv, .txt, .npy), C x C: row c has the probability of each noisy label
                       of an image of class c, and sums to 1
  file                 --labels FILE: given labels, such as those of people

Asymmetric noise for classes of your own is a matrix. The same --seed gives the same labels. A label
that is wrong at a low rate is wrong at a higher rate, too (all kinds with --rate).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("input", help="LMDB to read")
    parser.add_argument("output", help="LMDB to write")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = KINDS_OF_NOISE
    parser.add_argument("--noise", choices=KINDS, metavar="KIND", help=f"{', '.join(KINDS)}; see below")
    parser.add_argument("--rate", type=float, metavar="R", help="0 to 1; not for --noise file and matrix")
    parser.add_argument("--seed", type=whole_number, help=f"of the random numbers (default: {DEFAULT_SEED})")
    parser.add_argument(
        "--matrix", metavar="FILE", help="the transition matrix of --noise matrix, which may then be left out"
    )
    parser.add_argument("--classes", type=whole_number, metavar="N", help="default: the largest label + 1")
    parser.add_argument("--labels", metavar="FILE", help=f"for --noise file: {FORMS}")
    parser.add_argument(
        "--order",
        metavar="FILE",
        help="for --noise file: the index of each record's label in it; default: the record's own index",
    )


def run(args: argparse.Namespace) -> None:
    """Write the LMDB and the file of its clean labels."""
    noise = args.noise or (MATRIX if args.matrix else None)
    if noise is None:
        raise ImaeError(f"corrupt-labels: give --noise KIND ({', '.join(KINDS)}), or --matrix FILE")
    corrupt_labels(
        args.input,
        args.output,
        noise,
        rate=args.rate,
        seed=args.seed,
        classes=args.classes,
        labels=args.labels,
        order=args.order,
        matrix=args.matrix,
    )
