"""IMAELoss: MAE whose weights are spread by an exponential, w = exp(T p (1 - p)) (equations 21 and 22).

The value of an example is MAE's 2 (1 - p): "the loss computation during forward propagation is unchanged"
(section 4), so the gradient is not the derivative of the top.
The paper has T = 8 for noisy and 0.5 for clean labels, and divides by the batch size. The defaults are those
of the authors' later code: divided by the sum of the weights, with an `epsilon` of 1e-6. `normalizer:
BATCH_SIZE epsilon: 0` is equation 22 exactly.
Bottoms, top and `normalizer`: see designed_loss.py.
"""

from imae.layers.plugins.designed_loss import DesignedLoss
from imae.layers.registry import register_layer
from imae.losses import IMAE


@register_layer("IMAELoss")
class IMAELoss(DesignedLoss):
    field = "imae_loss_param"

    def make_loss(self) -> IMAE:
        param = self.param.imae_loss_param
        return IMAE(param.t, epsilon=param.epsilon, normalizer=self.normalizer())
