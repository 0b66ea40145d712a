"""ContrastiveLoss: pull similar pairs together, push others apart (Hadsell et al. 2006).

    d    = |a - b|
    top  = sum_i (d^2 if similar else max(margin - d, 0)^2) / (2 N)
    diff of a (b: its negative)
         = (a - b) / N                                    similar
         = -(margin - d) (a - b) / (d + 1e-4) / N         not similar, d < margin; else 0
    legacy_version: max(margin - d^2, 0) in the loss, -(a - b) / N in the gradient where d^2 < margin

bottom[0], bottom[1]  (N, C) or (N, C, 1, 1): a and b
bottom[2]             (N) or (N, 1, 1, 1): 0 when cut to an integer means not similar; gets no gradient
top[0]                (), the loss

Caffe: contrastive_loss_layer.cpp.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.layer import LossLayer, Shape
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("ContrastiveLoss")
class ContrastiveLoss(LossLayer):
    num_bottoms = 3

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        contrastive = param.contrastive_loss_param
        self.margin, self.legacy = contrastive.margin, contrastive.legacy_version

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        a, b, similar = bottom_shapes
        if prod(a[:2]) != prod(a) or prod(b[:2]) != prod(b) or a[:2] != b[:2] or prod(similar) != a[0]:
            raise self.error(f"pairs (N, C), (N, C) and (N) are needed; got bottoms {a}, {b} and {similar}")
        return [()]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 2

    def forward(self, a: Tensor, b: Tensor, similar: Tensor) -> Tensor:
        num = a.shape[0]
        size = a.shape[1:].numel()
        difference = a.reshape(num, size) - b.reshape(num, size)
        return apply(_Contrast, difference, similar.reshape(num).long() != 0, self.margin, self.legacy)


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, difference: Tensor, similar: Tensor, margin: float, legacy: bool) -> Tensor:
        square = (difference * difference).sum(1)
        short = margin - square if legacy else margin - square.sqrt()
        hinge = short.clamp(min=0)
        ctx.save_for_backward(difference, similar, square, short)
        ctx.legacy = legacy
        return torch.where(similar, square, hinge if legacy else hinge * hinge).sum() / len(square) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor | None, ...]:
        difference, similar, square, short = ctx.saved_tensors
        push = torch.ones_like(short) if ctx.legacy else short / (square.sqrt() + 1e-4)
        factor = torch.where(similar, 1, torch.where(short > 0, -push, 0))
        return difference * (factor * (top_diff / len(square))).unsqueeze(1), None, None, None
