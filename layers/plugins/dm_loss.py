"""DMLoss: derivative manipulation, w = exp(beta p^lambda (1 - p)) (arXiv 1905.11233).

lambda 1 is IMAE, with beta for its T. normalize_by_integral divides w by its integral over p from 0 to 1.
The loss with this gradient is not elementary; the value of an example is MAE's 2 (1 - p), as IMAE's is, so
the gradient is not the derivative of the top.
Bottoms, top, gradient, `normalizer` and `epsilon`: see designed_loss.py.
"""

from functools import partial

from torch import Tensor

from imae.layers.plugins import example_weights
from imae.layers.plugins.designed_loss import DesignedLoss
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("DMLoss")
class DMLoss(DesignedLoss):
    def __init__(self, param: LayerParameter) -> None:
        dm = param.dm_loss_param
        super().__init__(param, dm.normalizer, dm.epsilon)
        lambda_: float = getattr(dm, "lambda")  # a keyword of Python
        if not lambda_ >= 0:
            raise self.error(f"dm_loss_param.lambda must not be below 0, got {lambda_:g}")
        self.check_exponent("dm_loss_param.beta", lambda_, dm.beta)
        self.dm = partial(example_weights.dm, lambda_=lambda_, beta=dm.beta)
        self.integral = example_weights.mean(self.dm) if dm.normalize_by_integral else 1.0

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return self.dm(p, rest) / self.integral
