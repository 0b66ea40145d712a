"""Copy an LMDB without the records whose labels are wrong, or with other labels for them.

    imae correct-labels train_lmdb kept_lmdb --issues issues.npy
    imae correct-labels train_lmdb kept_lmdb issues_lmdb --issues issues.csv
    imae correct-labels train_lmdb relabelled_lmdb --issues issues.npy --relabel pred_probs.npz:predicted

Another program says which labels are wrong, such as cleanlab, from the probabilities of `imae out-of-fold`:
for the records in the order of the LMDB's keys. docs/label-noise.md has an example. Keys and order of the
records stay. If a file of clean labels lies beside the LMDB, each new one gets its own, and what the issues
have hit and missed is logged.
"""

from __future__ import annotations

import argparse

from imae.converters import label_file
from imae.converters.correct_labels import FORMS, PREDICTED, correct_labels
from imae.files.errors import ImaeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("input", help="LMDB to read")
    parser.add_argument("output", help="LMDB to write")
    parser.add_argument("rest", nargs="?", help="LMDB to write the issues into; without it they are dropped")
    parser.add_argument("--issues", metavar="FILE", help=f"the records with wrong labels: {FORMS}")
    parser.add_argument(
        "--relabel",
        metavar="FILE",
        help="keep the issues, with the labels of this file: "
        f"{label_file.FORMS}, or FILE.csv with a column {PREDICTED}",
    )


def run(args: argparse.Namespace) -> None:
    """Write the LMDBs."""
    if not args.issues:
        raise ImaeError(f"correct-labels needs --issues FILE: {FORMS}")
    correct_labels(args.input, args.output, args.issues, args.relabel, args.rest)
