"""EuclideanLoss: half the mean squared distance of two blobs.

    top    = sum (x0 - x1)^2 / (2 N)
    diff_0 = (x0 - x1) / N,  diff_1 = -diff_0

bottom[0], bottom[1]  (N, ...) of equal counts
top[0]                (), the loss

Caffe: euclidean_loss_layer.cpp.
"""

from collections.abc import Sequence
from math import prod

from torch import Tensor

from imae.layers.layer import LossLayer, Shape
from imae.layers.registry import register_layer


@register_layer("EuclideanLoss")
class EuclideanLoss(LossLayer):
    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        a, b = bottom_shapes
        if prod(a[1:]) != prod(b[1:]):
            raise self.error(f"Inputs must have the same dimension.; got {a} and {b}")
        return [()]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return True

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        distance = a - b.reshape(a.shape)
        return (distance * distance).sum() / a.shape[0] / 2
