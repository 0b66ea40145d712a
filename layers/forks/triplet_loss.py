"""TripletLoss: an anchor must be nearer to its positive than to its negative, by a margin.

    top = sum over i of max(margin + |a_i - p_i|^2 - |a_i - n_i|^2, 0) / (2 N)

The gradients are the derivatives, and 0 for a triplet whose term is below 1e-9.

bottom[0], bottom[1], bottom[2]  (N, C) or (N, C, 1, 1): a, p and n
top[0]                           (), the loss

caffe-windows (happynear/caffe-windows): triplet_loss_layer.cpp.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from imae.layers.layer import LossLayer, Shape
from imae.layers.registry import register_layer


@register_layer("TripletLoss")
class TripletLoss(LossLayer):
    num_bottoms = 3

    def allows_force_backward(self, bottom_index: int) -> bool:
        return True

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        a, p, n = (tuple(shape) for shape in bottom_shapes)
        first = (*a, 1)[:2]
        for shape in (a, p, n):
            if not 1 <= len(shape) <= 4 or (*shape, 1)[:2] != first or prod(shape) != prod(first):
                raise self.error(f"three bottoms (N, C) or (N, C, 1, 1) are needed; got {a}, {p} and {n}")
        return [()]

    def forward(self, a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        a, p, n = (bottom.reshape(len(bottom), bottom.shape[1:].numel()) for bottom in (a, p, n))
        margin = self.param.triplet_loss_param.margin
        terms = (margin + (a - p).square().sum(1) - (a - n).square().sum(1)).clamp(min=0)
        terms = torch.where(terms < 1e-9, terms.detach(), terms)
        return terms.sum() / len(a) / 2
