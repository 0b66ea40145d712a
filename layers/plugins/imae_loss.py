"""IMAELoss: MAE whose weights are spread by an exponential, w = exp(T p (1 - p)) (equations 21 and 22).

The value of an example is MAE's 2 (1 - p): "the loss computation during forward propagation is unchanged"
(section 4), so the gradient is not the derivative of the top.
The paper has T = 8 for noisy and 0.5 for clean labels, and divides by the batch size; the authors' later code
divides by the sum of weights. `epsilon` is from that code, too: 1e-6; 0 gives equation 22 exactly.
Bottoms, top, gradient, `normalizer` and `epsilon`: see designed_loss.py.
"""

from torch import Tensor

from imae.layers.plugins import example_weights
from imae.layers.plugins.designed_loss import DesignedLoss
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("IMAELoss")
class IMAELoss(DesignedLoss):
    def __init__(self, param: LayerParameter) -> None:
        imae = param.imae_loss_param
        super().__init__(param, imae.normalizer, imae.epsilon)
        self.t = imae.t
        self.check_exponent("imae_loss_param.t", 1, self.t)

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.imae(p, rest, self.t)
