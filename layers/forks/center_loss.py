"""CenterLoss: pulls features to the centre of their class.

    top          = sum over i of |x_i - C_label(i)|^2 / (2 M)
    diff of x_i  = (x_i - C_label(i)) / M
    diff of C_j  = sum over i with label j of (C_j - x_i) / (1 + number of these)

The centres' diff has neither the loss weight nor 1 / M: the rate of the centres is their lr_mult alone.

bottom[0]  (M, ...) features x; the axes from `axis` on hold K values
bottom[1]  M labels, 0 to num_output - 1; gets no gradient
top[0]     (), the loss
blobs      centres C (num_output, K)

caffe-face (ydwen/caffe-face): center_loss_layer.cpp. Differs: a label out of range, and axes between the
batch and `axis`, are errors (the fork uses foreign memory).
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
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("CenterLoss")
class CenterLoss(LossLayer):
    blob_names = ("centers",)

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        if param.center_loss_param.num_output < 1:
            raise self.error(f"num_output must be positive; got {param.center_loss_param.num_output}")
        self.labels = LabelReader(self)

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        center = self.param.center_loss_param
        shape = bottom_shapes[0]
        self.inputs = prod(shape[self.canonical_axis(center.axis, len(shape)) :])
        self.add_blob((center.num_output, self.inputs), center.center_filler)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        x, label = bottom_shapes
        axis = self.canonical_axis(self.param.center_loss_param.axis, len(x))
        if not axis or prod(x[1:axis]) != 1:
            raise self.error(f"axis {axis} must be the first after the batch; bottom[0] is {x}")
        if prod(x[axis:]) != self.inputs:
            raise self.error(f"bottom[0] has {prod(x[axis:])} features, {x}; the centres have {self.inputs}")
        if prod(label) != x[0]:
            raise self.error(f"bottom[1] must hold one label for each of {x[0]} items; got {label}")
        return [()]

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        refuse_gradient(self, 1, label, "CenterLoss Layer cannot backpropagate to label inputs.")
        index, _ = self.labels(label.flatten(), self.param.center_loss_param.num_output)
        return apply(_CenterLoss, x.reshape(len(x), self.inputs), self.blob(0), index)


class _CenterLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, centers: Tensor, label: Tensor) -> Tensor:
        difference = x - centers[label]
        ctx.save_for_backward(difference, label)
        ctx.classes = len(centers)
        return difference.square().sum() / len(x) / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, Tensor, None]:
        difference, label = ctx.saved_tensors
        sums = difference.new_zeros(ctx.classes, difference.shape[1]).index_add_(0, label, difference)
        counts = difference.new_zeros(ctx.classes).index_add_(0, label, difference.new_ones(len(label)))
        return difference * (top_diff / len(difference)), -sums / (counts + 1).unsqueeze(1), None
