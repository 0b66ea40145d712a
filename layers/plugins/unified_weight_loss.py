"""UnifiedWeightLoss: IMAE and DM as the authors' Caffe fork computes them.

loss_param { lamda_p: L  scale: B }:
    w_i = exp(B p_i^L (1 - p_i))        S = 1e-8 + sum_i w_i
    top = sum_i w_i * -log max(p_i, FLT_MIN) / S
    d loss / d z_i = w_i (prob_i - onehot_i) / (2 - 2 p_i + 1e-6) / S

The 1e-6 removes the gradient of examples with 1 - p << 1e-6: `epsilon` of IMAELoss and DMLoss.

bottom[0], bottom[1], top[0]  as in designed_loss.py
bottom[2]  optional: the examples' p (ExtractProb); not used
"""

from torch import Tensor

from imae.layers.loss.least_probability import FLT_MIN
from imae.layers.plugins import example_weights
from imae.layers.plugins.designed_loss import DesignedLoss
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter
from imae.prototxt.caffe_pb2 import WeightNormalization


@register_layer("UnifiedWeightLoss")
class UnifiedWeightLoss(DesignedLoss):
    num_bottoms = None
    min_bottoms, max_bottoms = 2, 3
    reads = ("softmax_param", "loss_param.ignore_label", "loss_param.lamda_p", "loss_param.scale")
    unread_parts_are_leftovers = False

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param, WeightNormalization.SUM_OF_WEIGHTS, epsilon=1e-6)
        self.lamda_p, self.scale = param.loss_param.lamda_p, param.loss_param.scale
        if not self.lamda_p >= 0:
            raise self.error(f"loss_param.lamda_p must not be below 0, got {self.lamda_p:g}")
        self.check_exponent("loss_param.scale", self.lamda_p, self.scale)

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return example_weights.dm(p, rest, self.lamda_p, self.scale)

    def value(self, p: Tensor, rest: Tensor) -> Tensor:
        return -p.clamp(min=FLT_MIN).log()
