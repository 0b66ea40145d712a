"""The tables of a training log as CSV files, as Caffe's parse_log.py writes them.

The columns are NumIters, Seconds, LearningRate and the outputs of the net. The rows are Caffe's, where the
outputs of several test nets share a table (see `caffe_rows`), or there is one table for each test net.

Caffe: tools/extra/parse_log.py. Differs: NaN and a prefix with a year are read, and a single row is kept.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from imae.files.atomic import write_atomically
from imae.files.caffe_log import LogNumber, caffe_rows, read_log, rows
from imae.files.errors import FileError, ImaeError
from imae.files.read import AnyPath

Table = Sequence[Mapping[str, float]]


def write_tables(
    log: AnyPath, folder: AnyPath, delimiter: str = ",", per_net: bool = False
) -> dict[Path, bool]:
    """Write the tables of a log into a folder, except empty ones; returns for each file if it was written.

    delimiter   one character, between the columns
    per_net     whether each test net has its own table

    The folder is made where it is not there. DataError for a log that cannot be read.
    """
    if len(delimiter) != 1 or delimiter in '\r\n"':
        raise ImaeError(f"--delimiter must be one character, got {delimiter!r}")
    tables = _tables(read_log(log), per_net)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder '{folder}': {error.strerror}") from error
    paths = {ending: Path(folder, f"{Path(log).name}.{ending}") for ending in tables}
    for ending, table in tables.items():
        if table:
            write_atomically(paths[ending], csv_text(table, delimiter).encode())
    return {paths[ending]: bool(table) for ending, table in tables.items()}


def csv_text(table: Table, delimiter: str = ",") -> str:
    """A table as CSV, with the columns of all rows in the order in which they first occur."""
    text = io.StringIO(newline="")
    columns = dict.fromkeys(column for row in table for column in row)
    writer = csv.DictWriter(text, list(columns), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def _tables(numbers: Sequence[LogNumber], per_net: bool) -> dict[str, Table]:
    """The tables by the suffix of their file."""
    if not per_net:
        return {kind: caffe_rows(numbers, kind) for kind in ("train", "test")}
    nets = sorted({number.net for number in numbers if number.what == "test"})
    return {"train": rows(numbers), **{f"test.{net}": rows(numbers, "test", net) for net in nets}}
