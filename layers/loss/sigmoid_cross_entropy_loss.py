"""SigmoidCrossEntropyLoss: cross entropy of a sigmoid for each value.

    top  = sum -(t log s + (1 - t) log(1 - s)) / S, s = sigmoid(x)    S: see loss_normalizer.py,
    diff = (s - t) / S                                                BATCH_SIZE by default

bottom[0]  (N, ...) scores
bottom[1]  targets t, usually 0 to 1, as many; one that is loss_param.ignore_label when cut to an integer is
           left out (with ignore_label 0 all between -1 and 1 are)
top[0]     (), the loss

Caffe: sigmoid_cross_entropy_loss_layer.cpp.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.labels import ignored_label, refuse_gradient
from imae.layers.layer import LossLayer, Shape
from imae.layers.loss.loss_normalizer import LOSS_FIELDS, normalization, normalizer
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter
from imae.prototxt.caffe_pb2 import LossParameter


@register_layer("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(LossLayer):
    reads = LOSS_FIELDS

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.normalization = normalization(param.loss_param, LossParameter.BATCH_SIZE)
        self.pre_fixed = param.loss_param.pre_fixed_normalizer
        self.ignore_label = ignored_label(param.loss_param)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        if prod(bottom_shapes[0]) != prod(bottom_shapes[1]):
            raise self.error(
                "SIGMOID_CROSS_ENTROPY_LOSS layer inputs must have the same count.; "
                f"got {bottom_shapes[0]} and {bottom_shapes[1]}"
            )
        return [()]

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        refuse_gradient(self, 1, target, f"{self.type} Layer cannot backpropagate to label inputs.")
        target = target.reshape(x.shape)
        valid = None if self.ignore_label is None else target.long() != self.ignore_label
        divisor = normalizer(self.normalization, x.shape[0], x.shape[1:].numel(), valid, self.pre_fixed)
        return apply(_CrossEntropy, x, target, valid, divisor)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, valid: Tensor | None, divisor: Tensor | float) -> Tensor:
        # x (t - [x >= 0]) - log(1 + exp(-|x|)): no overflow on either side
        loss = torch.log(1 + torch.exp(-x.abs())) - x * (target - (x >= 0).to(x.dtype))
        if valid is not None:
            loss = loss.masked_fill(~valid, 0)
        ctx.save_for_backward(x, target, valid)
        ctx.divisor = divisor
        return loss.sum() / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor | None, ...]:
        x, target, valid = ctx.saved_tensors
        diff = torch.sigmoid(x) - target
        if valid is not None:
            diff = diff.masked_fill_(~valid, 0)
        return diff.mul_(top_diff / ctx.divisor), None, None, None
