"""Stand-in."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from imae.net.fold import fold_batch_norm
from imae.net.net import Net
from imae.net.step import Step


class InferencePlan:
    """Runs a TEST net by a folded plan."""

    def __init__(self, net: Net, keep: Collection[str] = ()) -> None:
        self.net, self.keep = net, tuple(keep)
        self._steps: list[Step] | None = None

    def run(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._steps is None:
            self._steps = fold_batch_norm(self.net, self.keep)
        with torch.inference_mode():
            return self.net(values, self.keep, self._steps)

    def weights_changed(self) -> None:
        self._steps = None


def plan_inference(net: Net, keep: Collection[str] = ()) -> InferencePlan:
    return InferencePlan(net, keep)
