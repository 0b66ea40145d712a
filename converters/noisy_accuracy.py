"""The accuracy of a net on the intact and on the corrupted records of an LMDB with label noise.

    records     number     against given labels    against true labels
    all           1500                   0.4587                 0.9433
    intact         600                   0.9600                 0.9600
    corrupted      900                   0.1244                 0.9322

A high accuracy on corrupted records against the given labels means that wrong labels are memorised. The true
labels are those of the .npz that `imae corrupt-labels` writes beside the LMDB; records are matched by key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from imae.converters.label_file import Labels, read_labels
from imae.converters.predict import Prediction
from imae.files.errors import DataError, printable

GROUPS = ("all", "intact", "corrupted")
# The end of an error: how another LMDB is read, since the labels of the train net's are the corrupted ones.
OF_THE_PHASE = " (--phase TRAIN reads the train net's; see also --stage)"


class Share(NamedTuple):
    """A group of records: how many, and the share that is classified as labelled; None of no records."""

    records: int
    given: float | None
    true: float | None


class TrueLabels:
    """The given (noisy) and the true labels of an LMDB, by key, of a file of `imae corrupt-labels`."""

    def __init__(self, path: str) -> None:
        self.path = path
        if not path.endswith(".npz"):
            raise DataError(
                f"'{path}': expected the file of clean labels that imae corrupt-labels writes beside an "
                "LMDB, NAME.clean_labels.npz"
            )
        true, given = read_labels(f"{path}:clean"), read_labels(f"{path}:noisy")
        if true.keys is None:
            raise DataError(
                f"'{path}' has no array 'key' with the LMDB keys of the labels; expected a file of imae "
                "corrupt-labels"
            )
        self.rows = {key: row for row, key in enumerate(true.keys)}
        self.true, self.given = true.labels, given.labels

    def __len__(self) -> int:
        return len(self.true)

    def find(self, keys: Sequence[bytes], labels: Labels, source: str) -> Labels:
        """The places of records by their keys; DataError where these or the labels are of another LMDB."""
        missing = [key for key in keys if key not in self.rows]
        if missing:
            raise DataError(
                f"'{self.path}' has no labels for records of '{source}', e.g. {printable(repr(missing[0]))}; "
                f"it must be the file of the LMDB that is read{OF_THE_PHASE}"
            )
        rows = np.array([self.rows[key] for key in keys], np.int64)
        wrong = np.flatnonzero(self.given[rows] != labels)
        if len(wrong):
            first = wrong[0]
            raise DataError(
                f"'{self.path}': the given label of {printable(repr(keys[first]))} is "
                f"{self.given[rows[first]]}, in '{source}' {labels[first]}; it must be the file of the LMDB "
                f"that is read{OF_THE_PHASE}"
            )
        return rows


class NoisyAccuracy:
    """Counts right predictions by group of records. A record that comes again is not counted again."""

    def __init__(self, labels: TrueLabels) -> None:
        self.labels = labels
        self.predicted = np.full(len(labels), -1, np.int64)

    def add(self, rows: Labels, predicted: Labels) -> None:
        """Note the predicted classes of the records at these places of the file."""
        new = self.predicted[rows] < 0
        self.predicted[rows[new]] = predicted[new]

    def shares(self) -> dict[str, Share]:
        """The accuracies by group."""
        seen = self.predicted >= 0
        intact = self.labels.given == self.labels.true
        members = (seen, seen & intact, seen & ~intact)
        return {
            name: Share(
                int(chosen.sum()),
                self._share(chosen, self.labels.given),
                self._share(chosen, self.labels.true),
            )
            for name, chosen in zip(GROUPS, members, strict=True)
        }

    def _share(self, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]], labels: Labels) -> float | None:
        return float(np.mean(self.predicted[chosen] == labels[chosen])) if chosen.any() else None

    def lines(self) -> list[str]:
        """The table."""
        lines = [f"{'records':12}{'number':>10}{'against given labels':>24}{'against true labels':>23}"]
        for name, share in self.shares().items():
            given, true = ("-" if value is None else f"{value:.4f}" for value in share[1:])
            lines.append(f"{name:12}{share.records:>10}{given:>24}{true:>23}")
        left = int(np.sum(self.predicted < 0))
        if left:
            lines.append(f"{left} of {len(self.labels)} records were not read; raise --iterations")
        return lines

    def json(self) -> dict[str, object]:
        """The same as JSON's objects."""
        shares = {name: share._asdict() for name, share in self.shares().items()}
        return {"clean_labels": self.labels.path, "records_of_file": len(self.labels), **shares}


def noted(predictions: Iterable[Prediction], accuracy: NoisyAccuracy, source: str) -> Iterator[Prediction]:
    """The predictions of the records of an LMDB, while their classes are noted."""
    for prediction in predictions:
        values = prediction.values
        if values.ndim != 1 or len(values) < 2:
            raise DataError(
                f"--clean-labels is for models with one class a record; this one has values of the shape "
                f"{values.shape}"
            )
        rows = accuracy.labels.find(
            [os.fsencode(prediction.source.path)], np.array([prediction.source.label], np.int64), source
        )
        accuracy.add(rows, np.array([values.argmax()], np.int64))
        yield prediction
