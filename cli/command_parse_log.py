"""`imae parse-log`: write the tables of a training log as CSV files, in the form of Caffe's parse_log.py.

    imae parse-log train.log .          writes ./train.log.train and ./train.log.test

The columns are NumIters, Seconds, LearningRate and the outputs of the net. The rows are Caffe's, which mix
the outputs of several test nets (see `caffe_rows`). With --per-net they are kept apart: each test net has its
own file, train.log.test.0 and so on, each element of a vector its own column, and each row the learning rate
of its iteration.

Caffe: tools/extra/parse_log.py. Differs: NaN and a prefix with a year are read; a log's only row is kept.
"""

from __future__ import annotations

import argparse

from imae.train.log_tables import write_tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("log", metavar="LOGFILE", help="the log, Caffe's or ours")
    parser.add_argument("folder", metavar="OUTPUT_DIR", help="where to put LOGFILE.train and LOGFILE.test")
    parser.add_argument("--delimiter", default=",", help="what separates the columns (a comma)")
    parser.add_argument("--verbose", action="store_true", help="print the names of the files")
    parser.add_argument("--per-net", action="store_true", help="a table of its own for each test net")


def run(args: argparse.Namespace) -> None:
    """Write the tables that have rows."""
    written = write_tables(args.log, args.folder, args.delimiter, args.per_net)
    for path, has_rows in written.items() if args.verbose else ():
        print(f"Wrote {path}" if has_rows else f"Not writing {path}; no lines to write")
