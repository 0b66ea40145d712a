"""Copy part of an LMDB into an LMDB of its own, and the rest into another.

    imae split-lmdb train_lmdb fit_lmdb validation_lmdb --share 0.8 --seed 123
    imae split-lmdb train_lmdb small_lmdb --per-class 500

    --share S       round(S N) of the N records, drawn at random; with --stratified round(S N_c) of the N_c
                    records of each class c
    --per-class K   the first K records of each class

The records keep their order and their keys. If a file of clean labels lies beside the LMDB, the class of a
record is its clean label, and each part gets its own file of clean labels. The random numbers are those of
numpy's RandomState(seed), whose streams are frozen.

The authors of IMAE want intact labels in a validation set: split first, then corrupt the labels of the larger
part only.
"""

from __future__ import annotations

import argparse

from imae.cli.options import whole_number
from imae.converters.split_lmdb import DEFAULT_SEED, split_lmdb, subset_lmdb
from imae.files.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("input", help="LMDB to read")
    parser.add_argument("output", help="LMDB to write")
    parser.add_argument(
        "rest", nargs="?", help="LMDB to write the other records into; without it they are dropped"
    )
    parser.add_argument("--share", type=float, metavar="S", help="of the records, drawn at random")
    parser.add_argument("--seed", type=whole_number, help=f"for --share (default: {DEFAULT_SEED})")
    parser.add_argument("--stratified", action="store_true", help="for --share: the same share of each class")
    parser.add_argument(
        "--per-class", type=whole_number, metavar="K", help="the first K records of each class"
    )


def run(args: argparse.Namespace) -> None:
    """Write the LMDBs."""
    if (args.share is None) == (args.per_class is None):
        raise DataError("split-lmdb takes --share S or --per-class K, one of the two")
    if args.share is not None:
        seed = DEFAULT_SEED if args.seed is None else args.seed
        split_lmdb(args.input, args.output, args.rest, args.share, seed, args.stratified)
    elif args.seed is not None or args.stratified:
        raise DataError("--per-class takes no --seed and no --stratified: nothing is drawn")
    else:
        subset_lmdb(args.input, args.output, args.per_class, args.rest)
