"""SmoothL1Loss (SSD): a squared difference where it is small, an absolute one elsewhere.

    d    = a - b
    top  = sum f(d) / N         f(d) = 0.5 d^2 where |d| < 1, |d| - 0.5 elsewhere
    diff = f'(d) / N for a, its negative for b

bottom[0], bottom[1]  (N, ...) of one shape
top[0]                (), the loss

SSD (weiliu89/caffe, branch ssd): smooth_L1_loss_layer.cpp. Faster R-CNN has another layer of this name, told
by its smooth_l1_loss_param or four bottoms: smooth_l1_loss_rcnn.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from imae.layers.layer import Layer, LossLayer, Shape
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("SmoothL1Loss")
class SmoothL1Loss(LossLayer):
    @classmethod
    def variant(cls, param: LayerParameter) -> type[Layer]:
        if not param.HasField("smooth_l1_loss_param") and len(param.bottom) != 4:
            return cls
        from imae.layers.forks.smooth_l1_loss_rcnn import RCNNSmoothL1Loss

        return RCNNSmoothL1Loss

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        a, b = (tuple(shape) for shape in bottom_shapes)
        if a + (1,) * (4 - len(a)) != b + (1,) * (4 - len(b)):
            raise self.error(f"the bottoms must have one shape; got {a} and {b}")
        return [()]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return True

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return F.smooth_l1_loss(a, b.reshape(a.shape), reduction="sum") / a.shape[0]
