"""DMLoss: derivative manipulation, w = exp(beta p^lambda (1 - p)) (arXiv 1905.11233).

lambda 1 is IMAE, with beta for its T. normalize_by_integral divides w by its integral over p from 0 to 1.
The loss with this gradient is not elementary; the value of an example is MAE's 2 (1 - p), as IMAE's is, so
the gradient is not the derivative of the top.
Bottoms, top and `normalizer`: see designed_loss.py.
"""

from imae.layers.plugins.designed_loss import DesignedLoss
from imae.layers.registry import register_layer
from imae.losses import DM


@register_layer("DMLoss")
class DMLoss(DesignedLoss):
    field = "dm_loss_param"

    def make_loss(self) -> DM:
        param = self.param.dm_loss_param
        return DM(
            getattr(param, "lambda"),  # a keyword of Python
            param.beta,
            normalize_by_integral=param.normalize_by_integral,
            epsilon=param.epsilon,
            normalizer=self.normalizer(),
        )
