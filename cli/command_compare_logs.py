"""`imae compare-logs`: two training logs side by side: where they begin to differ, and by how much.

    imae compare-logs caffe.log imae.log --rtol 0.01 --figure both.png

Two numbers are compared if they have the same kind (loss: the smoothed one, lr, train and test outputs),
iteration, test net and output. A relative difference is relative to the first log's number. With --rtol the
exit status is 1 if a number differs by more, or is missing in the second log.
"""

from __future__ import annotations

import argparse

from imae.files.caffe_log import compare, read_log
from imae.files.errors import DataError, ImaeError
from imae.train.compare_logs import draw_comparison, side_by_side, summary
from imae.train.plot_log import log_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("first", metavar="REFERENCE", help="a log, Caffe's or ours")
    parser.add_argument("second", metavar="OTHER", help="the log to compare with it")
    parser.add_argument(
        "--rtol", type=float, metavar="R", help="the relative difference above which numbers differ (0)"
    )
    parser.add_argument("--numbers", action="store_true", help="print the numbers of both, side by side")
    parser.add_argument(
        "--figure", "--picture", metavar="FILE", help="draw the curves of both: .png, .svg, .pdf ..."
    )


def run(args: argparse.Namespace) -> int:
    """Print the table. Return 1 if the logs differ by more than --rtol, else 0."""
    if args.rtol is not None and not args.rtol >= 0:
        raise ImaeError(f"--rtol must be 0 or more, got {args.rtol}")
    paths = [args.first, args.second]
    logs = list(zip(log_names(paths), map(read_log, paths), strict=True))
    differences = compare(logs[0][1], logs[1][1], args.rtol or 0)
    if not any(difference.common for difference in differences):
        raise DataError(f"'{args.first}' and '{args.second}' have no number in common")
    if args.numbers:
        print(side_by_side(logs[0][1], logs[1][1]), end="\n\n")
    print(summary(differences))
    if args.figure:
        draw_comparison(args.figure, logs)
    if args.rtol is None:
        return 0
    return int(any(difference.missing or difference.parted is not None for difference in differences))
