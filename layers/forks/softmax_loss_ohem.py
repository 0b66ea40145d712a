"""SoftmaxWithLossOHEM: SoftmaxWithLoss, and the loss of each position by itself.

bottom[0]  (N, C, ...) scores, as in softmax_loss.py
bottom[1]  labels, as there
top[0]     (), the loss of SoftmaxWithLoss
top[1]     the shape of bottom[0], optional: the probabilities; its diff has no effect
top[2]     the shape of bottom[1], optional: the loss at each position, 0 where the label is ignored; its
           diff has no effect

R-FCN, as in intel/caffe: softmax_loss_ohem_layer.cpp and .cu. Differs: as on the GPU, the probabilities are
there also with three tops, and with ignore_label all losses are summed; on the CPU the fork leaves the
second top as it is, and sums as many positions, from the first one, as are not ignored. A label out of range
is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply_for_several
from imae.layers.labels import LabelReader, check_labels, ignored_label, refuse_gradient, reshape_labels
from imae.layers.layer import LossLayer, Shape
from imae.layers.loss.least_probability import FLT_MIN
from imae.layers.loss.loss_normalizer import LOSS_FIELDS, normalization, normalizer
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("SoftmaxWithLossOHEM")
class SoftmaxWithLossOHEM(LossLayer):
    num_tops = None
    min_tops, max_tops = 1, 3
    reads = ("softmax_param", *LOSS_FIELDS)

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.normalization = normalization(param.loss_param)
        self.pre_fixed = param.loss_param.pre_fixed_normalizer
        self.labels = LabelReader(self, ignored_label(param.loss_param))

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        scores, labels = bottom_shapes
        check_labels(self, "softmax", self._axis(len(scores)), scores, labels)
        return [(), scores, labels][: max(len(self.param.top), 1)]

    def forward(self, scores: Tensor, label: Tensor) -> Tensor | tuple[Tensor, ...]:
        refuse_gradient(self, 1, label, f"{self.type} Layer cannot backpropagate to label inputs.")
        axis = self._axis(scores.dim())
        index, valid = self.labels(reshape_labels(label, scores, axis), scores.shape[axis])
        outer, inner = scores.shape[:axis].numel(), scores.shape[axis + 1 :].numel()
        divisor = normalizer(self.normalization, outer, inner, valid, self.pre_fixed)
        loss, prob, losses = apply_for_several(_CrossEntropy, scores, index, valid, divisor, axis)
        tops = loss, prob, losses.view(label.shape)
        return tops[: len(self.param.top)] if len(self.param.top) > 1 else loss

    def _axis(self, num_axes: int) -> int:
        return self.canonical_axis(self.param.softmax_param.axis, num_axes)


class _CrossEntropy(torch.autograd.Function):
    """The loss, the probabilities and the losses; only the first gives a gradient."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, index: Tensor, valid: Tensor | None, divisor: Tensor | float, axis: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        prob = torch.softmax(scores, axis)
        losses = prob.gather(axis, index).clamp(min=FLT_MIN).log().neg()
        if valid is not None:
            losses = losses.masked_fill(~valid, 0)
        ctx.save_for_backward(prob, index, valid)
        ctx.divisor, ctx.axis = divisor, axis
        ctx.mark_non_differentiable(prob, losses)
        return losses.sum() / divisor, prob, losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        prob, index, valid = ctx.saved_tensors
        diff = prob.scatter_add(ctx.axis, index, prob.new_full((), -1).expand(index.shape))
        if valid is not None:
            diff = diff.masked_fill_(~valid, 0)
        return diff.mul_(top_diff / ctx.divisor), None, None, None, None
