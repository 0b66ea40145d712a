"""The running statistics of several BatchNorms, added to their blobs together at the end of a forward pass.

Each BatchNorm alone takes eight small operations a pass (two sums from zero on, three blobs times a factor
plus a number); together they take one buffer and two operations for each moving_average_fraction. The
arithmetic is that of `BatchNorm.update`, number by number, so the blobs are the same bit for bit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from imae.layers.layer import Layer
from imae.layers.normalization.batch_norm import BatchNorm


class RunningStatistics:
    """Collects the statistics of a pass; with those of the last BatchNorm, all blobs are brought up to date.

    norms   in the order in which a pass runs them, each once; nobody else may use their blobs
    """

    def __init__(self, norms: Sequence[BatchNorm]) -> None:
        self._norms = list(norms)
        self._sizes = [norm.blob_shapes[0][0] for norm in norms for _ in range(2)]
        self._found: list[Tensor] = []

    def zeros(self, place: int) -> tuple[Tensor, Tensor]:
        """Memory for mean and variance of `norms[place]`, (C) each; all norms share one buffer."""
        if place == 0:  # a pass that was broken off has left some
            blob = self._norms[0].blob(0)
            self._found = list(torch.split(blob.new_zeros(sum(self._sizes)), self._sizes))
        return self._found[2 * place], self._found[2 * place + 1]

    def add(self, place: int, mean: Tensor, variance: Tensor) -> None:
        """What `norms[place].update` does, once the last one of a pass has been added."""
        self._found[2 * place : 2 * place + 2] = mean, variance
        if place == len(self._norms) - 1:
            self._update()

    @torch.no_grad()
    def _update(self) -> None:
        found, self._found = self._found, []
        alike: defaultdict[float, list[int]] = defaultdict(list)
        for place, norm in enumerate(self._norms):
            alike[norm.moving_average_fraction].append(place)
        for fraction, places in alike.items():
            blobs = [self._norms[place].blob(index) for place in places for index in (0, 1)]
            counts = [self._norms[place].blob(2) for place in places]
            torch._foreach_mul_([*blobs, *counts], fraction)
            torch._foreach_add_(blobs, [found[2 * place + index] for place in places for index in (0, 1)])
            torch._foreach_add_(counts, 1)


def sole_owners(layers: Iterable[Layer], norms: Iterable[BatchNorm]) -> list[BatchNorm]:
    """Those of the norms that go by the batch and whose blobs no other of the layers uses."""
    users = Counter(id(blob) for layer in layers for blob in layer.blobs)
    return [
        norm
        for norm in norms
        if not norm.use_global_stats and all(users[id(blob)] == 1 for blob in norm.blobs)
    ]
