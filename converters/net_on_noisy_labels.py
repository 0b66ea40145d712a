"""The predictions of a net while it is scored on an LMDB with label noise: see noisy_accuracy.py."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor

from imae.converters.label_file import Labels
from imae.converters.noisy_accuracy import NoisyAccuracy, TrueLabels
from imae.files.errors import DataError
from imae.layers.data.data import Data
from imae.net.net import Net
from imae.net.step import Step


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
