"""Find the layer that makes the first NaN or infinity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from imae.net.net import Net
from imae.net.step import run_step
from imae.net.streams import Streams


def all_finite(blobs: Iterable[Tensor]) -> bool:
    """Whether no blob holds a NaN or an infinity; waits for the device."""
    return all(bool(torch.isfinite(blob).all()) for blob in blobs)


@torch.no_grad()
def first_not_finite(net: Net, batch: dict[str, Tensor]) -> str:
    """A phrase that names the first layer whose top is not finite in a pass over `batch`; "" for none.

    batch   the tops of the data layers, on the net's device
    """
    values = dict(batch)
    for step in net.steps:
        if not step.tops:
            continue
        if not values.keys() >= set(step.tops) or step.bottoms:
            values.update(zip(step.tops, run_step(step, values), strict=True))
        for name in step.tops:
            if not all_finite([values[name]]):
                layer = step.layer
                broken = [str(place) for place, blob in enumerate(layer.blobs) if not all_finite([blob])]
                because = f" (and so is parameter blob {', '.join(broken)} of this layer)" if broken else ""
                return f"top '{name}' of layer '{layer.name}' ({layer.type}) is the first not finite{because}"
    return ""


class Tracer:
    """Repeats the passes of an iteration, to find what was not finite in them.

    passes   how many passes an iteration has
    """

    def __init__(self, net: Net, streams: Streams, passes: int) -> None:
        self.net, self.streams, self.passes = net, streams, passes
        self._before: dict[str, Any] = {}

    def remember(self) -> None:
        """Call this before the passes; it waits for the device only if layers keep buffers there."""
        self._before = self.streams.get_state()

    def culprit(self) -> str:
        """A phrase that names what was not finite first; streams and weights are restored afterwards."""
        after, learnable = self.streams.get_state(), [p.detach().clone() for p in self.net.learnable]
        self.streams.set_state(self._before)
        culprit = ""
        for _ in range(self.passes):
            batch = {name: blob.to(self.streams.device) for name, blob in self.net.next_batch().items()}
            culprit = culprit or first_not_finite(self.net, batch)
        self.streams.set_state(after)
        with torch.no_grad():
            for parameter, values in zip(self.net.learnable, learnable, strict=True):
                parameter.copy_(values)  # a pass changes BatchNorm's blobs
        return culprit or "every top of this iteration is finite, so it comes from one since the last display"
