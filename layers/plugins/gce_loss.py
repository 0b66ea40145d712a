"""GCELoss: generalised cross entropy, (1 - p^q) / q; w = 2 p^q (1 - p) (Zhang and Sabuncu 2018).

q -> 0 is CCE, q = 1 half of MAE. Later version of the paper, table 2.
Bottoms, top, gradient and `normalizer`: see designed_loss.py.
"""

import math

from torch import Tensor

from imae.layers.plugins import example_weights
from imae.layers.plugins.designed_loss import DesignedLoss
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("GCELoss")
class GCELoss(DesignedLoss):
    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param, param.gce_loss_param.normalizer)
        self.q = param.gce_loss_param.q
        if not 0 < self.q < math.inf:
            raise self.error(f"gce_loss_param.q must be a number above 0, got {self.q:g}")

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.gce(p, rest, self.q)

    def value(self, p: Tensor, rest: Tensor) -> Tensor:
        return (1 - p**self.q) / self.q
