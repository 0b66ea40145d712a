"""MAELoss: mean absolute error between softmax and one-hot label, 2 (1 - p); w = 4 p (1 - p).

Equations 3, 18 and 20, with the factor 2. Bottoms, top, gradient and `normalizer`: see designed_loss.py.
"""

from torch import Tensor

from imae.layers.plugins import example_weights
from imae.layers.plugins.designed_loss import DesignedLoss
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("MAELoss")
class MAELoss(DesignedLoss):
    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param, param.mae_loss_param.normalizer)

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.mae(p, rest)
