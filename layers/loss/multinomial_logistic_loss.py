"""MultinomialLogisticLoss: cross entropy of probabilities that an earlier layer has computed.

    top  = sum_i -log max(p_i[y_i], 1e-20) / N
    diff = -1 / (N max(p_i[y_i], 1e-20)) at the label, 0 elsewhere

bottom[0]  (N, ...) probabilities of C classes, C the number of values of an item
bottom[1]  (N) or (N, 1, 1, 1) labels 0 to C - 1, cut to integers towards zero
top[0]     (), the loss

Caffe: multinomial_logistic_loss_layer.cpp. Differs: a label out of range is an error.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.labels import LabelReader, refuse_gradient
from imae.layers.layer import LossLayer, Shape
from imae.layers.loss.least_probability import LOG_THRESHOLD
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("MultinomialLogisticLoss")
class MultinomialLogisticLoss(LossLayer):
    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.labels = LabelReader(self)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        prob, labels = bottom_shapes
        if not prob or prod(labels) != prob[0]:
            raise self.error(f"labels must be (N) or (N, 1, 1, 1); got {labels} for probabilities {prob}")
        return [()]

    def forward(self, prob: Tensor, label: Tensor) -> Tensor:
        refuse_gradient(self, 1, label, f"{self.type} Layer cannot backpropagate to label inputs.")
        num = prob.shape[0]
        prob = prob.reshape(num, prob.shape[1:].numel())
        index, _ = self.labels(label.reshape(num, 1), prob.shape[1])
        return apply(_NegativeLog, prob.gather(1, index))


class _NegativeLog(torch.autograd.Function):
    """Mean of -log max(p, 1e-20); the gradient is not 0 below 1e-20."""

    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        raised = p.clamp(min=LOG_THRESHOLD)
        ctx.save_for_backward(raised)
        return -raised.log().sum() / len(p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> Tensor:
        raised: Tensor = ctx.saved_tensors[0]
        return -top_diff / len(raised) / raised
