"""SoftmaxWithLoss: cross entropy of a softmax.

    prob = softmax of the scores along softmax_param.axis
    top  = sum_i -log max(prob_i[y_i], FLT_MIN) / S         S: see loss_normalizer.py, VALID by default
    diff = (prob - onehot(y)) / S                           FLT_MIN has no effect on it

bottom[0]  (N, C, ...) scores; softmax_param.axis (default 1) is the axis of C
bottom[1]  labels 0 to C - 1, one for each position on the other axes: (N, ...) or (N, 1, ...); cut to
           integers towards zero; positions with loss_param.ignore_label have loss and gradient 0
top[0]     (), the loss

Caffe: softmax_loss_layer.cpp. Differs: a label out of range is an error (Caffe reads out of bounds). A second
top, the probabilities, is not available, nor is it in Caffe: its loss_weight check refuses it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.labels import LabelReader, check_labels, ignored_label, refuse_gradient, reshape_labels
from imae.layers.layer import LossLayer, Shape
from imae.layers.loss.least_probability import FLT_MIN
from imae.layers.loss.loss_normalizer import LOSS_FIELDS, normalization, normalizer
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("SoftmaxWithLoss")
class SoftmaxWithLoss(LossLayer):
    num_tops = None
    min_tops, max_tops = 1, 2
    reads = ("softmax_param", *LOSS_FIELDS)

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.normalization = normalization(param.loss_param)
        self.pre_fixed = param.loss_param.pre_fixed_normalizer
        self.labels = LabelReader(self, ignored_label(param.loss_param))

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        super().setup(bottom_shapes)
        if len(self.param.top) > 1:
            raise self.error(
                "loss_weight must be unspecified or specified once per top blob.; only the first top is "
                "possible, use a Softmax layer for the probabilities"
            )

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        scores, labels = bottom_shapes
        check_labels(self, "softmax", self._axis(len(scores)), scores, labels)
        return [()]

    def forward(self, scores: Tensor, label: Tensor) -> Tensor:
        refuse_gradient(self, 1, label, f"{self.type} Layer cannot backpropagate to label inputs.")
        axis = self._axis(scores.dim())
        index, valid = self.labels(reshape_labels(label, scores, axis), scores.shape[axis])
        outer, inner = scores.shape[:axis].numel(), scores.shape[axis + 1 :].numel()
        divisor = normalizer(self.normalization, outer, inner, valid, self.pre_fixed)
        return apply(_CrossEntropy, scores, index, valid, divisor, axis)

    def _axis(self, num_axes: int) -> int:
        return self.canonical_axis(self.param.softmax_param.axis, num_axes)


class _CrossEntropy(torch.autograd.Function):
    """The forward and the backward pass. index and valid have size 1 on the class axis."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, index: Tensor, valid: Tensor | None, divisor: Tensor | float, axis: int
    ) -> Tensor:
        prob = torch.softmax(scores, axis)
        p = prob.gather(axis, index)
        loss = p.clamp(min=FLT_MIN).log().neg()
        if valid is not None:
            loss = loss.masked_fill(~valid, 0)
        ctx.save_for_backward(prob, p, index, valid)
        ctx.divisor, ctx.axis = divisor, axis
        return loss.sum() / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor | None, ...]:
        prob, p, index, valid = ctx.saved_tensors
        diff = prob.scatter(ctx.axis, index, p - 1)
        if valid is not None:
            diff = diff.masked_fill_(~valid, 0)
        return diff.mul_(top_diff / ctx.divisor), None, None, None, None
