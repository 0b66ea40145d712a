"""WeightedSoftmaxWithLoss: the losses that builds of the authors' Caffe fork have under this name.

weighted_softmax_loss_param.variant, with N the number of examples that are not ignored:

                top                    d loss / d z               S
    MAE         sum (1 - p) / S        p (prob - onehot) / S      N + 1e-8; half of the paper's gradient
    GCE         sum (1 - p) / S        p^0.7 (prob - onehot) / S  N + 1e-8
    MSE         sum (1 - p) / S        2p(1-p)(prob - onehot) / S N + 1e-8
    *_SUMW      sum w (1 - p) / S      the same                   sum w, w the L1 norm of the gradient times S
    CCE_SUMW    sum w (1 - p) / S      (prob - onehot) / S        sum w, w = 2 (1 - p)

Differs: where all w are 0 (every example ignored, or p = 1) loss and gradient are 0, not 0/0.

bottom[0], bottom[1], top[0]  as in label_loss.py
bottom[2]  optional: the examples' p (ExtractProb); not used
"""

import torch
from torch import Tensor

from imae.layers.plugins.designed_loss import DesignedLoss
from imae.layers.registry import register_layer
from imae.losses import example_weights
from imae.losses.designed import DesignedLoss as DesignedLossModule
from imae.prototxt.caffe_pb2 import WeightedSoftmaxLossParameter as Variant


def _half_mae(p: Tensor, rest: Tensor) -> Tensor:
    return 2 * p * rest


def _gce(p: Tensor, rest: Tensor) -> Tensor:
    return example_weights.gce(p, rest, 0.7)


WEIGHTS = {
    Variant.MAE: _half_mae,
    Variant.GCE: _gce,
    Variant.MSE: example_weights.mse,
    Variant.CCE_SUMW: example_weights.cce,
    Variant.MAE_SUMW: _half_mae,
    Variant.GCE_SUMW: _gce,
    Variant.MSE_SUMW: example_weights.mse,
}
BY_COUNT = (Variant.MAE, Variant.GCE, Variant.MSE)


class _Weighted(DesignedLossModule):
    def __init__(self, variant: Variant.Variant) -> None:
        super().__init__(normalizer="BATCH_SIZE" if variant in BY_COUNT else "SUM_OF_WEIGHTS")
        self.variant_weight = WEIGHTS[variant]

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        return self.variant_weight(p, rest)

    def value(self, p: Tensor, rest: Tensor, log_p: Tensor) -> Tensor:
        return rest

    def sum_of_weights(self, weight: Tensor) -> Tensor:
        return weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)


@register_layer("WeightedSoftmaxWithLoss")
class WeightedSoftmaxWithLoss(DesignedLoss):
    num_bottoms = None
    min_bottoms, max_bottoms = 2, 3
    reads = ("weighted_softmax_loss_param", "softmax_param", "loss_param.ignore_label")
    unread_parts_are_leftovers = False
    field = "weighted_softmax_loss_param"

    def make_loss(self) -> _Weighted:
        return _Weighted(self.param.weighted_softmax_loss_param.variant)

    def count(self, outer: int, inner: int, valid: Tensor | None) -> Tensor | float:
        return (outer * inner if valid is None else valid.sum()) + 1e-8
