"""`imae parse-log`: the tables of a training log as CSV files, as Caffe's parse_log.py writes them.

    imae parse-log train.log .          writes ./train.log.train and ./train.log.test

The columns are NumIters, Seconds, LearningRate and the outputs of the net; the rows are Caffe's, in which the
outputs of several test nets mix (see `caffe_rows`). With --per-net nothing mixes: each test net has a file
of its own, train.log.test.0 and so on, each element of a vector a column, and each row the rate of its
iteration.

Caffe: tools/extra/parse_log.py. Differs: NaN and a prefix with a year are read, and the only row of a log is
kept.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from imae.files.atomic import write_atomically
from imae.files.caffe_log import LogNumber, caffe_rows, read_log, rows
from imae.files.errors import ImaeError

Table = Sequence[Mapping[str, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("log", metavar="LOGFILE", help="the log, Caffe's or ours")
    parser.add_argument("folder", metavar="OUTPUT_DIR", help="where to put LOGFILE.train and LOGFILE.test")
    parser.add_argument("--delimiter", default=",", help="what separates the columns (a comma)")
    parser.add_argument("--verbose", action="store_true", help="say what is written")
    parser.add_argument("--per-net", action="store_true", help="a table of its own for each test net")


def run(args: argparse.Namespace) -> None:
    """Write the tables that have rows."""
    if len(args.delimiter) != 1 or args.delimiter in '\r\n"':
        raise ImaeError(f"--delimiter must be one character, got {args.delimiter!r}")
    tables = _tables(read_log(args.log), args.per_net)
    for ending, table in tables.items():
        path = Path(args.folder, f"{Path(args.log).name}.{ending}")
        if table:
            write_atomically(path, csv_text(table, args.delimiter).encode())
        if args.verbose:
            print(f"Wrote {path}" if table else f"Not writing {path}; no lines to write")


def csv_text(table: Table, delimiter: str = ",") -> str:
    """A table as CSV, with the columns of all rows in the order in which they first occur."""
    text = io.StringIO(newline="")
    columns = dict.fromkeys(column for row in table for column in row)
    writer = csv.DictWriter(text, list(columns), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _tables(numbers: Sequence[LogNumber], per_net: bool) -> dict[str, Table]:
    """The tables by the ending of their file."""
    if not per_net:
        return {what: caffe_rows(numbers, what) for what in ("train", "test")}
    nets = sorted({number.net for number in numbers if number.what == "test"})
    return {"train": rows(numbers), **{f"test.{net}": rows(numbers, "test", net) for net in nets}}
