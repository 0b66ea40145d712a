"""Part of an LMDB as a new LMDB, and the rest as another.

The records stay in order and keep their keys. Where clean labels are kept beside an LMDB with noisy ones, the
class of a record is its clean label, and each part gets its clean labels as well. The random numbers are
those of numpy's RandomState(seed), whose streams are frozen.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imae.converters.label_file import Labels, clean_labels_file, read_clean_labels
from imae.converters.lmdb_writer import Record, fill_lmdb
from imae.files.atomic import atomic_folder
from imae.files.errors import DataError
from imae.files.read import AnyPath
from imae.layers.data.lmdb_source import LmdbSource, open_lmdb

DEFAULT_SEED = 123

Mask = NDArray[np.bool_]


class LmdbLabels(NamedTuple):
    """keys, labels and, where they are kept, clean labels of an LMDB's records."""

    keys: list[bytes]
    labels: Labels
    clean: Labels | None

    @property
    def classes(self) -> Labels:
        """The true classes of the records: the clean labels if there are any."""
        return self.labels if self.clean is None else self.clean


def read_lmdb_labels(source: LmdbSource) -> LmdbLabels:
    """The labels of all records; DataError where the clean labels beside them belong to another LMDB."""
    keys = source.keys()
    labels = np.array([source.datum(i).label for i in range(len(source))], np.int64)
    return LmdbLabels(keys, labels, read_clean_labels(source.path, keys, labels))


def subset_lmdb(source: AnyPath, output: AnyPath, per_class: int, rest: AnyPath | None = None) -> int:
    """Write the first `per_class` records of each class, and the others into `rest` if that is given.

    Returns how many were written into `output`. DataError where a class has fewer.
    """
    settings = {"per_class": per_class}
    return _write_parts(source, output, rest, lambda classes: first_of_each(classes, per_class), settings)


def split_lmdb(
    source: AnyPath, output: AnyPath, rest: AnyPath | None, share: float, seed: int, stratified: bool = False
) -> int:
    """Write a random share of the records, and the others into `rest` if that is given.

    Returns how many were written into `output`.
    """
    settings = {"share": share, "seed": seed, "stratified": stratified}
    return _write_parts(
        source, output, rest, lambda classes: random_share(classes, share, seed, stratified), settings
    )


def first_of_each(classes: Labels, per_class: int) -> Mask:
    """Which records are among the first `per_class` of their class."""
    if per_class < 1:
        raise DataError(f"--per-class must be 1 or more, got {per_class}")
    chosen = np.zeros(len(classes), np.bool_)
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        if len(members) < per_class:
            raise DataError(
                f"class {label} has {len(members)} records, fewer than the {per_class} that are asked for"
            )
        chosen[members[:per_class]] = True
    return chosen


def random_share(classes: Labels, share: float, seed: int, stratified: bool = False) -> Mask:
    """Which records belong to a share that is drawn without replacement, of all or of each class."""
    if not 0 < share < 1:
        raise DataError(f"--share must be between 0 and 1, got {share}")
    if not 0 <= seed < 2**32:
        raise DataError(f"--seed must be from 0 to 4294967295, got {seed}")
    random = np.random.RandomState(seed)
    chosen = np.zeros(len(classes), np.bool_)
    groups = classes if stratified else np.zeros_like(classes)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        chosen[random.permutation(members)[: round(share * len(members))]] = True
    return chosen


def _write_parts(
    path: AnyPath,
    output: AnyPath,
    rest: AnyPath | None,
    choose: Callable[[Labels], Mask],
    settings: dict[str, Any],
) -> int:
    """Write all parts, with their clean labels, or none."""
    if rest is not None and os.path.abspath(rest) == os.path.abspath(output):
        raise DataError(f"both parts cannot be written into '{output}'; name two places")
    with open_lmdb(path) as source:
        labels = read_lmdb_labels(source)
        chosen = choose(labels.classes)
        parts = [(part, mask) for part, mask in ((output, chosen), (rest, ~chosen)) if part is not None]
        write_parts(source, labels, parts, {"input": os.fspath(path), **settings})
    return int(chosen.sum())


def write_parts(
    source: LmdbSource,
    labels: LmdbLabels,
    parts: Sequence[tuple[AnyPath, Mask]],
    settings: dict[str, Any],
    new_labels: Labels | None = None,
) -> None:
    """Write the chosen records into each of the new LMDBs, with their clean labels; all parts or none.

    new_labels   of all records; None: those that they have
    """
    if new_labels is None:
        new_labels = labels.labels
    with ExitStack() as stack:
        for part, mask in parts:
            rows = np.flatnonzero(mask)
            if labels.clean is not None:
                keys = [labels.keys[row] for row in rows]
                clean, noisy = labels.clean[rows], new_labels[rows]
                stack.enter_context(clean_labels_file(part, keys, clean, noisy, settings))
            folder = stack.enter_context(atomic_folder(part))
            fill_lmdb(folder, part, chosen_records(source, rows, new_labels), len(rows))


def chosen_records(source: LmdbSource, rows: NDArray[np.int64], labels: Labels) -> Iterator[Record]:
    """The records at some places; `labels` has the label of every record."""
    for row in rows.tolist():
        datum = source.datum(row)
        datum.label = int(labels[row])
        yield source.key(row), datum
