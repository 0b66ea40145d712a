"""The running statistics of several BatchNorms, added to their blobs together at the end of a forward pass.

Updated one by one, each BatchNorm needs eight small operations a pass: two buffers of zeros, and three blobs
times a factor plus a number. Updated together, they share one buffer and need three operations for each
moving_average_fraction. The arithmetic is that of `BatchNorm.update`, so the blobs are equal bit for bit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from imae.layers.layer import Layer
from imae.layers.normalization.batch_norm import BatchNorm


class RunningStatistics:
    """Collects the statistics of a pass, and updates all blobs once those of the last BatchNorm are added.

    norms   in the order of a pass, without repeats; no other layer may use their blobs
    """

    def __init__(self, norms: Sequence[BatchNorm]) -> None:
        self._norms = list(norms)
        self._sizes = [norm.blob_shapes[0][0] for norm in norms for _ in range(2)]
        self._statistics: list[Tensor] = []

    def zeros(self, place: int) -> tuple[Tensor, Tensor]:
        """Memory for mean and variance of `norms[place]`, (C) each; all norms share one buffer."""
        if place == 0:  # always new ones: an interrupted pass leaves statistics here
            blob = self._norms[0].blob(0)
            self._statistics = list(torch.split(blob.new_zeros(sum(self._sizes)), self._sizes))
        return self._statistics[2 * place], self._statistics[2 * place + 1]

    def add(self, place: int, mean: Tensor, variance: Tensor) -> None:
        """Add the statistics of `norms[place]`; the last ones of a pass update the blobs of all norms."""
        self._statistics[2 * place : 2 * place + 2] = mean, variance
        if place == len(self._norms) - 1:
            self._update()

    @torch.no_grad()
    def _update(self) -> None:
        statistics, self._statistics = self._statistics, []
        by_fraction: defaultdict[float, list[int]] = defaultdict(list)
        for place, norm in enumerate(self._norms):
            by_fraction[norm.moving_average_fraction].append(place)
        for fraction, places in by_fraction.items():
            blobs = [self._norms[place].blob(index) for place in places for index in (0, 1)]
            counts = [self._norms[place].blob(2) for place in places]
            torch._foreach_mul_([*blobs, *counts], fraction)
            added = [statistics[2 * place + index] for place in places for index in (0, 1)]
            torch._foreach_add_(blobs, added)
            torch._foreach_add_(counts, 1)


def sole_owners(layers: Iterable[Layer], norms: Iterable[BatchNorm]) -> list[BatchNorm]:
    """The norms that use the statistics of the batch, and whose blobs no other layer uses."""
    users = Counter(id(blob) for layer in layers for blob in layer.blobs)
    return [
        norm
        for norm in norms
        if not norm.use_global_stats and all(users[id(blob)] == 1 for blob in norm.blobs)
    ]
