"""`imae compare`: any number of trainings beside each other, by their logs.

    imae compare cce.log mae.log imae.log
    imae compare logs/*.log --group '_seed[0-9]+' --figure runs.png --csv runs.csv

Each run has a line: of each test output the best value, its iteration, and the last value; then the last
train loss (smoothed, as logged), the last iteration, and the seconds. With --group or --group-folders the
logs of several seeds are one run, with mean ± standard deviation. `imae compare-logs` shows where two part.
"""

from __future__ import annotations

import argparse
import sys

from imae.files.atomic import write_atomically
from imae.files.errors import ImaeError
from imae.train.compare_runs import as_csv, as_json, compare_runs, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("logs", metavar="LOG", nargs="+", help="logs, Caffe's or ours")
    parser.add_argument(
        "--group",
        metavar="REGEX",
        help="logs whose names are the same without what this matches are seeds of one run: '_seed[0-9]+'",
    )
    parser.add_argument(
        "--group-folders", action="store_true", help="logs in one folder are seeds of one run"
    )
    parser.add_argument(
        "--output",
        action="append",
        default=[],
        metavar="NAME",
        help="the test output to compare, may be given several times (those that all logs "
        "have, without vectors)",
    )
    parser.add_argument("--figure", "--picture", metavar="FILE", help="draw the curves: .png, .svg, .pdf ...")
    parser.add_argument("--csv", metavar="FILE", help="write the table as CSV; - for the standard output")
    parser.add_argument(
        "--json", metavar="FILE", help="write the numbers of all seeds as JSON; - for the standard output"
    )


def run(args: argparse.Namespace) -> None:
    """Print the table; write the files."""
    if args.csv == args.json == "-":
        raise ImaeError("--csv and --json cannot both be written to the standard output")
    groups, outputs = compare_runs(
        args.logs,
        pattern=args.group,
        by_folder=args.group_folders,
        outputs=args.output,
        picture=args.figure,
    )
    # What programs read on the standard output has nothing beside it.
    print(table(groups, outputs), file=sys.stderr if "-" in (args.csv, args.json) else sys.stdout)
    for path, make in ((args.csv, as_csv), (args.json, as_json)):
        if path == "-":
            print(make(groups, outputs), end="")
        elif path is not None:
            write_atomically(path, make(groups, outputs).encode("utf-8", "surrogateescape"))
