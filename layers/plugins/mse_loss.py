"""MSELoss: squared error of the annotated label's probability, (1 - p)^2; w = 4 p (1 - p)^2.

Later version of the paper, table 2. Bottoms, top, gradient and `normalizer`: see designed_loss.py.
"""

from torch import Tensor

from imae.layers.plugins import example_weights
from imae.layers.plugins.designed_loss import DesignedLoss
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("MSELoss")
class MSELoss(DesignedLoss):
    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param, param.mse_loss_param.normalizer)

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.mse(p, rest)

    def value(self, p: Tensor, rest: Tensor) -> Tensor:
        return rest * rest
