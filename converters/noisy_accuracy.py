"""The accuracy of a net on the intact and on the corrupted records of an LMDB with label noise.

    records     number     against given labels    against true labels
    all           1500                   0.4587                 0.9433
    intact         600                   0.9600                 0.9600
    corrupted      900                   0.1244                 0.9322

A high accuracy on corrupted records against the given labels means that wrong labels are memorised. The true
labels are those of the .npz that `imae corrupt-labels` writes beside the LMDB; records are matched by key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from imae.converters.label_file import Labels, read_labels
from imae.files.errors import DataError, printable
from imae.layers.data.data import Data
from imae.net.net import Net
from imae.net.step import Step

GROUPS = ("all", "intact", "corrupted")


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
                "it must be the file of the LMDB that is read (of the net's Data layer: see --stage)"
            )
        rows = np.array([self.rows[key] for key in keys], np.int64)
        wrong = np.flatnonzero(self.given[rows] != labels)
        if len(wrong):
            first = wrong[0]
            raise DataError(
                f"'{self.path}': the given label of {printable(repr(keys[first]))} is "
                f"{self.given[rows[first]]}, in '{source}' {labels[first]}; it must be the file of the LMDB "
                "that is read"
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


class NetOnNoisyLabels:
    """Collects the predictions of a net that reads an LMDB with label noise, batch by batch.

    keep      the blobs that `add` needs
    batches   how many batches have all records
    """

    def __init__(self, net: Net, path: str) -> None:
        self.accuracy = NoisyAccuracy(TrueLabels(path))
        layers = [step.layer for step in net.steps if isinstance(step.layer, Data)]
        if len(layers) != 1:
            raise DataError(
                f"--clean-labels needs a net with one Data layer, which reads the LMDB of '{path}'; this net "
                f"has {len(layers)} (see --stage and --phase)"
            )
        measured = accuracy_layer(net.steps)
        if measured is None:
            raise DataError(
                "--clean-labels needs an Accuracy layer, which says where the scores are; add one, or choose "
                "the stage that has one (--stage)"
            )
        (self.layer,) = layers
        self.rows: deque[Labels] = deque()
        self.layer.noted_rows = self.rows
        self.scores, self.label = measured.bottoms[:2]
        self.keep = (self.scores, self.label)
        self.batches = -(-len(self.layer.source) // self.layer.batch_size)

    def add(self, blobs: Mapping[str, Tensor]) -> None:
        """Note the predictions of a batch."""
        scores, given = blobs[self.scores], blobs[self.label]
        if scores.dim() < 2 or scores.numel() != scores.shape[0] * scores.shape[1]:
            raise DataError(
                f"--clean-labels is for nets with one class a record, (N, C) scores; {self.scores} has the "
                f"shape {tuple(scores.shape)}"
            )
        rows = self.rows.popleft()
        keys = [self.layer.source.key(row) for row in rows.tolist()]
        labels = given.flatten().cpu().numpy().astype(np.int64)
        places = self.accuracy.labels.find(keys, labels, self.layer.source.path)
        self.accuracy.add(places, scores.flatten(1).argmax(1).cpu().numpy())


def accuracy_layer(steps: Iterable[Step]) -> Step | None:
    """The Accuracy layer of a net: of several the first that counts the best class alone."""
    found = [step for step in steps if step.layer.type == "Accuracy"]
    best = [step for step in found if step.layer.param.accuracy_param.top_k == 1]
    return next(iter((*best, *found)), None)
