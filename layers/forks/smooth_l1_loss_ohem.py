"""SmoothL1LossOHEM: a smooth L1 loss, and the loss of each position by itself.

    d        = w * (a - b)
    f(d)     = d^2 / 2 where |d| < 1, else |d| - 1/2
    top[0]   = sum f(d) / S       S: VALID (the default) and FULL the positions, BATCH_SIZE the images,
                                  PRE_FIXED pre_fixed_normalizer, NONE 1; at least 1
    top[1]   = sum of f(d) over the channels
    diff     = f'(d) / S          without the factor w; negative for b

bottom[0]  a, predictions: (N, C, H, W); axes that are absent count as 1
bottom[1]  b, targets: the same shape; may get a gradient
bottom[2]  w, optional: the same shape; no gradient
top[0]     (), the loss
top[1]     (N, 1, H, W), optional; its diff has no effect

R-FCN, as in intel/caffe: smooth_L1_loss_ohem_layer.cpp and .cu.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply_for_several
from imae.layers.forks.rois import four_axes
from imae.layers.forks.smooth_l1_loss_rcnn import check_same_axes
from imae.layers.layer import LossLayer, Shape
from imae.layers.loss.loss_normalizer import LOSS_FIELDS, normalization, normalizer
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("SmoothL1LossOHEM")
class SmoothL1LossOHEM(LossLayer):
    num_bottoms = num_tops = None
    min_bottoms, max_bottoms = 2, 3
    min_tops, max_tops = 1, 2
    reads = tuple(field for field in LOSS_FIELDS if field != "loss_param.ignore_label")

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.normalization = normalization(param.loss_param)
        self.pre_fixed = param.loss_param.pre_fixed_normalizer

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        check_same_axes(self, bottom_shapes)
        images, _, height, width = four_axes(self, 0, bottom_shapes[0])
        return [(), (images, 1, height, width)][: max(len(self.param.top), 1)]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index < 2

    def forward(self, a: Tensor, b: Tensor, w: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        images, channels, height, width = four_axes(self, 0, tuple(a.shape))
        divisor = normalizer(self.normalization, images, height * width, None, self.pre_fixed)
        loss, losses = apply_for_several(_SmoothL1, a, b, w, divisor)
        if len(self.param.top) < 2:
            return loss
        return loss, losses.view(images, channels, height, width).sum(1, keepdim=True)


class _SmoothL1(torch.autograd.Function):
    """The loss, and what each value adds to its sum; the latter gives no gradient."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, w: Tensor | None, divisor: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        difference = a - b.reshape(a.shape)
        if w is not None:
            difference = w.reshape(a.shape) * difference
        losses = F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none")
        ctx.save_for_backward(difference)
        ctx.divisor, ctx.shape = divisor, b.shape
        ctx.mark_non_differentiable(losses)
        return losses.sum() / divisor, losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (difference,) = ctx.saved_tensors
        diff = difference.clamp(-1, 1) * (top_diff / ctx.divisor)
        return diff, -diff.reshape(ctx.shape), None, None
