"""SmoothL1Loss of Faster R-CNN: squares near 0 and absolute values elsewhere, with weights and sigma.

    d   = inside * (a - b)
    top = sum outside * f(d) / N      f(d) = sigma^2 d^2 / 2 where |d| < 1 / sigma^2, |d| - 0.5 / sigma^2 else

bottom[0]  a, predictions: (N, C, H, W); axes that are absent count as 1
bottom[1]  b, targets: the same shape; may get a gradient
bottom[2]  inside, bottom[3]  outside: both or none, no gradient; without them 1
top[0]     (), the loss

The variant of `smooth_l1_loss.py` for `smooth_l1_loss_param` and for four bottoms.

Faster R-CNN (rbgirshick/caffe-fast-rcnn, branch faster-rcnn): smooth_L1_loss_layer.cpp and .cu; on the CPU
as in intel/caffe. Differs: `loss_param { normalization: NONE }` is an error, as it divides by 1 in
intel/caffe and has no effect in the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from imae.layers.forks.rois import four_axes
from imae.layers.layer import LossLayer, Shape
from imae.prototxt import LayerParameter
from imae.prototxt.caffe_pb2 import LossParameter


class RCNNSmoothL1Loss(LossLayer):
    num_bottoms = None
    min_bottoms, max_bottoms = 2, 4
    reads = ("loss_param.normalization",)

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        sigma = param.smooth_l1_loss_param.sigma
        if not math.isfinite(sigma):
            raise self.error(f"smooth_l1_loss_param.sigma must be a number; got {sigma}")
        self.beta = 1 / sigma**2 if sigma else float("inf")
        if (
            param.loss_param.HasField("normalization")
            and param.loss_param.normalization == LossParameter.NONE
        ):
            raise self.error(
                "loss_param.normalization: NONE divides the sum by 1 in intel/caffe and by the number of "
                "images in Faster R-CNN's own layer; remove it (for intel's result, multiply loss_weight by "
                "that number)"
            )

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        if len(bottom_shapes) == 3:
            raise self.error(
                "If weights are used, must specify both inside and outside weights; got 3 bottoms, not 4"
            )

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        check_same_axes(self, bottom_shapes)
        return [()]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index < 2

    def forward(self, a: Tensor, b: Tensor, *weights: Tensor) -> Tensor:
        difference = a - b.reshape(a.shape)
        if weights:
            difference = weights[0].detach().reshape(a.shape) * difference
        zero = difference.new_zeros(()).expand(difference.shape)
        losses = F.smooth_l1_loss(difference, zero, reduction="none", beta=self.beta)
        if weights:
            losses = weights[1].detach().reshape(a.shape) * losses
        return losses.sum() / a.shape[0]


def check_same_axes(layer: LossLayer, bottom_shapes: Sequence[Shape]) -> None:
    """LayerError unless all bottoms have the shape of the first, but for trailing axes of size 1."""
    first = four_axes(layer, 0, bottom_shapes[0])
    for index, shape in enumerate(bottom_shapes[1:], 1):
        if four_axes(layer, index, shape) != first:
            raise layer.error(
                f"bottom[{index}] must have the shape of bottom[0], {tuple(bottom_shapes[0])}; "
                f"got {tuple(shape)}"
            )
    if not bottom_shapes[0]:
        raise layer.error("bottom[0] must have an axis of images at least; got ()")
