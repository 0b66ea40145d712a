"""UnifiedWeightLoss: IMAE and DM as the authors' Caffe fork computes them.

loss_param { lamda_p: L  scale: B }:
    w_i = exp(B p_i^L (1 - p_i))        S = 1e-8 + sum_i w_i
    top = sum_i w_i * -log max(p_i, FLT_MIN) / S
    d loss / d z_i = w_i (prob_i - onehot_i) / (2 - 2 p_i + 1e-6) / S

The 1e-6 removes the gradient of examples with 1 - p << 1e-6: `epsilon` of IMAELoss and DMLoss.

bottom[0], bottom[1], top[0]  as in label_loss.py
bottom[2]  optional: the examples' p (ExtractProb); not used
"""

from torch import Tensor

from imae.files.errors import LossError
from imae.layers.loss.least_probability import FLT_MIN
from imae.layers.plugins.designed_loss import DesignedLoss
from imae.layers.registry import register_layer
from imae.losses import DM
from imae.losses.designed import check_exponent


class _Unified(DM):
    def value(self, p: Tensor, rest: Tensor, log_p: Tensor) -> Tensor:
        return -p.clamp(min=FLT_MIN).log()


@register_layer("UnifiedWeightLoss")
class UnifiedWeightLoss(DesignedLoss):
    num_bottoms = None
    min_bottoms, max_bottoms = 2, 3
    reads = ("softmax_param", "loss_param.ignore_label", "loss_param.lamda_p", "loss_param.scale")
    unread_parts_are_leftovers = False
    field = "loss_param"

    def make_loss(self) -> _Unified:
        lamda_p, scale = self.param.loss_param.lamda_p, self.param.loss_param.scale
        if not lamda_p >= 0:
            raise LossError(f"lamda_p must not be below 0, got {lamda_p:g}")
        check_exponent("scale", lamda_p, scale)
        return _Unified(lamda_p, scale, epsilon=1e-6, normalizer="SUM_OF_WEIGHTS")
