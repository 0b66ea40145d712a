"""HingeLoss: one against all, with margin 1.

    margin_ij = max(0, 1 - x_ij) for the label j = y_i, max(0, 1 + x_ij) for the other classes
    L1   top = sum margin / N
    L2   top = sum margin^2 / N

bottom[0]  (N, ...) scores of C classes, C the number of values of an item
bottom[1]  N labels 0 to C - 1, cut to integers towards zero
top[0]     (), the loss

The gradient of L1 is 0 where the margin is exactly 0.

Caffe: hinge_loss_layer.cpp. Differs: a label out of range, or more than one label per item, is an error; the
diff of bottom[0] is not used as scratch memory.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from imae.layers.labels import LabelReader, refuse_gradient
from imae.layers.layer import LossLayer, Shape
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("HingeLoss")
class HingeLoss(LossLayer):
    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.norm = param.hinge_loss_param.norm
        self.labels = LabelReader(self)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        scores, labels = bottom_shapes
        if not scores or prod(labels) != scores[0]:
            raise self.error(f"there must be one label for each item; got scores {scores}, labels {labels}")
        return [()]

    def forward(self, scores: Tensor, label: Tensor) -> Tensor:
        refuse_gradient(self, 1, label, f"{self.type} Layer cannot backpropagate to label inputs.")
        num = scores.shape[0]
        scores = scores.reshape(num, scores.shape[1:].numel())
        index, _ = self.labels(label.reshape(num, 1), scores.shape[1])
        sign = torch.ones_like(scores).scatter(1, index, -1)
        margin = torch.relu(1 + sign * scores)
        if self.norm == self.param.hinge_loss_param.L2:
            margin = margin * margin
        return margin.sum() / num
