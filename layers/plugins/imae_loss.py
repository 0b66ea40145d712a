"""IMAELoss: MAE whose weights are spread by an exponential, w = exp(T p (1 - p)) (equations 21 and 22).

The value of an example is MAE's 2 (1 - p): "the loss computation during forward propagation is unchanged"
(section 4), so the gradient is not the derivative of the top.
The paper has T = 8 for noisy and 0.5 for clean labels, and divides by the batch size; the authors' later code
divides by the sum of weights. Bottoms, top, gradient and `normalizer`: see designed_loss.py.
"""

from torch import Tensor

from imae.layers import example_weights
from imae.layers.designed_loss import DesignedLoss
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("IMAELoss")
class IMAELoss(DesignedLoss):
    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param, param.imae_loss_param.normalizer)
        self.t = param.imae_loss_param.t
        self.check_exponent("imae_loss_param.t", 1, self.t)

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.imae(p, rest, self.t)
