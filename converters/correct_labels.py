"""A copy of an LMDB without the records whose labels are wrong, or with other labels for them.

Which labels are wrong another program has found, such as cleanlab. Its answer is a file for the records in
the order of the LMDB's keys, in one of FORMS:

    a mask       FILE.npy or FILE.npz:KEY: N truth values, or N numbers 0 and 1
    indices      FILE.npy or FILE.npz:KEY: the places of the records, each once, in any order; may be empty
    a table      FILE.csv with a line for each record and a column is_label_issue: True or False

Where clean labels are kept beside the LMDB, the new one gets its own.
"""

import csv
import io
import logging
import os

import numpy as np
from numpy.typing import NDArray

from imae.converters.corrupt_labels import labels_from_file
from imae.converters.label_file import Labels, check_range, read_array
from imae.converters.split_lmdb import read_lmdb_labels, write_parts
from imae.files.errors import DataError
from imae.files.file_kinds import mistaken_file
from imae.files.limits import LARGEST_TEXT
from imae.files.read import AnyPath, file_size, open_to_read
from imae.layers.data.lmdb_source import open_lmdb

logger = logging.getLogger(__name__)

FORMS = "FILE.npy, FILE.npz:KEY (a mask or indices) or FILE.csv (with a column is_label_issue)"
ISSUE, PREDICTED = "is_label_issue", "predicted_label"  # columns of cleanlab's tables
TRUTH = {"true": True, "1": True, "false": False, "0": False}

Mask = NDArray[np.bool_]


def read_issues(source: str, records: int) -> Mask:
    """Which of the records have wrong labels; DataError for none of FORMS, or for other records."""
    if source.endswith(".csv"):
        words = _column(source, ISSUE)
        wrong = [word for word in words if word.strip().lower() not in TRUTH]
        if wrong:
            raise DataError(f"'{source}': {ISSUE} must be True or False, got {wrong[0][:40]!r}")
        return _mask(source, np.array([TRUTH[word.strip().lower()] for word in words]), records)
    values = read_array(source)
    if values.ndim != 1 or values.dtype.kind not in "biu":
        raise DataError(
            f"'{source}' must be a mask or a list of indices, got an array of {values.dtype} with shape "
            f"{values.shape}"
        )
    if values.dtype.kind == "b":
        return _mask(source, values, records)
    if len(values) == records > 2 and np.isin(values, (0, 1)).all():  # as indices these would come twice
        return values.astype(np.bool_)
    indices = values.astype(np.int64)
    check_range(indices, records, f"'{source}', whose numbers are places of the {records} records")
    places, counts = np.unique(indices, return_counts=True)
    if len(places) < len(indices):
        raise DataError(f"'{source}': the place {places[counts.argmax()]} is there {counts.max()} times")
    mask = np.zeros(records, np.bool_)
    mask[indices] = True
    return mask


def _mask(source: str, mask: Mask, records: int) -> Mask:
    if len(mask) != records:
        raise DataError(f"'{source}' is for {len(mask)} records; the LMDB has {records}")
    return mask


def _column(path: str, name: str) -> list[str]:
    """A column of a CSV file with a header."""
    try:
        with open_to_read(path) as file:
            if file_size(file) > LARGEST_TEXT:
                raise DataError(f"'{path}' has {file_size(file)} bytes; at most {LARGEST_TEXT} are read")
            text = file.read().decode("utf-8-sig")
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = next(rows, [])
        if name not in header:
            kind = mistaken_file(path) or f"; there is {', '.join(header)[:200] or 'nothing'}"
            raise DataError(f"'{path}' has no column {name}{kind}")
        place = header.index(name)
        return [row[place] for row in rows if row]
    except OSError as error:
        raise DataError(f"cannot read the table '{path}': {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error, IndexError) as error:
        raise DataError(f"'{path}' is no table in CSV with a header: {error}") from None


def correct_labels(
    source: AnyPath, output: AnyPath, issues: str, relabel: str | None = None, rest: AnyPath | None = None
) -> None:
    """Write the records of the LMDB `source` that are no issues into `output`; log what was done.

    issues   one of FORMS
    relabel  a label file (label_file.py), or a .csv with a column predicted_label: the issues are written,
             too, with these labels
    rest     an LMDB for the issues, with their labels as given; None: they are dropped

    DataError where the files do not fit the LMDB, or no record is left.
    """
    if relabel and rest is not None:
        raise DataError("--relabel keeps all records, so that there is no rest; leave one of the two out")
    if rest is not None and os.path.abspath(rest) == os.path.abspath(output):
        raise DataError(f"both parts cannot be written into '{output}'; name two places")
    with open_lmdb(source) as lmdb:
        labels = read_lmdb_labels(lmdb)
        wrong = read_issues(issues, len(labels.keys))
        new = labels.labels
        if relabel:
            others = _new_labels(relabel, labels.keys)
            check_range(others[wrong], 2**31, f"the labels of '{relabel}'")
            new = np.where(wrong, others, labels.labels)
        parts = [(output, np.ones_like(wrong) if relabel else ~wrong)]
        if rest is not None:
            parts.append((rest, wrong))
        for path, chosen in parts:
            if not chosen.any():
                raise DataError(
                    f"nothing to write into '{path}': {int(wrong.sum())} of {len(wrong)} records are issues"
                )
        settings = {"input": os.fspath(source), "issues": issues, "relabel": relabel}
        write_parts(lmdb, labels, parts, settings, new)
    for line in summary(wrong, labels.labels, new, labels.clean, bool(relabel)):
        logger.info("%s", line)


def _new_labels(source: str, keys: list[bytes]) -> Labels:
    """The label of each record in a label file or a table."""
    if not source.endswith(".csv"):
        return labels_from_file(keys, source)
    words = _column(source, PREDICTED)
    try:
        labels = np.array([int(word) for word in words], np.int64)
    except (ValueError, OverflowError):
        raise DataError(f"'{source}': {PREDICTED} must be whole numbers, the classes") from None
    if len(labels) != len(keys):
        raise DataError(f"'{source}' is for {len(labels)} records; the LMDB has {len(keys)}")
    return labels


def summary(wrong: Mask, given: Labels, new: Labels, clean: Labels | None, relabelled: bool) -> list[str]:
    """Lines that say how many records were dropped or relabelled; and how rightly, if that is known."""
    done = "have the new labels" if relabelled else "are left out"
    lines = [f"{int(wrong.sum())} of {len(wrong)} records {done}."]
    if clean is not None:
        corrupted = given != clean
        left = int(np.sum((new != clean) if relabelled else corrupted & ~wrong))
        lines.append(
            f"By the clean labels {int(corrupted.sum())} labels were wrong: "
            f"{int(np.sum(corrupted & wrong))} of them are among the issues, as are "
            f"{int(np.sum(wrong & ~corrupted))} right ones. {left} of "
            f"{len(wrong) if relabelled else int(np.sum(~wrong))} labels are wrong now."
        )
    return lines
