"""The base of the layers that compute a loss of `imae.losses` from logits and labels.

    top = sum_i loss_i / S

S is what loss_param.normalization counts, as in SoftmaxWithLoss, at least 1: VALID (the default) the labels
that are not ignored, FULL all labels, BATCH_SIZE the first axes, NONE 1, PRE_FIXED pre_fixed_normalizer.

bottom[0]  logits, (N, C, ...), C >= 2; softmax_param.axis is the axis of C
bottom[1]  labels 0 to C - 1: (N), (N, 1, H, W), (N, H, W) or any shape of as many elements; examples with
           loss_param.ignore_label have loss and gradient 0
top[0]     (), the loss
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from imae.files.errors import LossError
from imae.layers.labels import LabelReader, check_labels, ignored_label, refuse_gradient, reshape_labels
from imae.layers.layer import LossLayer, Shape
from imae.layers.loss.loss_normalizer import LOSS_FIELDS, normalization, normalizer
from imae.losses.loss import Loss
from imae.prototxt import LayerParameter


class LabelLoss(LossLayer):
    """A type has `make_loss`, and the field of its parameter."""

    reads: ClassVar[tuple[str, ...]] = ("softmax_param", *LOSS_FIELDS)
    field: ClassVar[str]  # of LayerParameter, for errors

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.labels = LabelReader(self, ignored_label(param.loss_param))
        self.normalization = normalization(param.loss_param)
        self.pre_fixed = param.loss_param.pre_fixed_normalizer
        try:
            self.loss = self.make_loss()
        except LossError as error:
            raise self.error(f"{self.field}.{error}") from None

    def make_loss(self) -> Loss:
        """The loss that the prototxt asks for; a LossError begins with the name of a field."""
        raise self.error(f"{self.type} defines no loss")

    def count(self, outer: int, inner: int, valid: Tensor | None) -> Tensor | float:
        """S for outer * inner labels."""
        return normalizer(self.normalization, outer, inner, valid, self.pre_fixed)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        logits, label = bottom_shapes[:2]
        axis = self.canonical_axis(self.param.softmax_param.axis, len(logits))
        if logits[axis] < 2:
            raise self.error(f"at least 2 classes are needed; axis {axis} of {logits} has {logits[axis]}")
        if self.loss.classes not in (None, logits[axis]):
            raise self.error(
                f"{self.field} is for {self.loss.classes} classes; axis {axis} of {logits} has {logits[axis]}"
            )
        check_labels(self, "softmax", axis, logits, label)
        return [()]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index == 0

    def forward(self, *bottoms: Tensor) -> Tensor:
        logits, label = bottoms[:2]
        for i in range(1, len(bottoms)):
            refuse_gradient(self, i, bottoms[i], f"{self.type} Layer cannot backpropagate to label inputs")
        axis = self.canonical_axis(self.param.softmax_param.axis, logits.dim())
        index, valid = self.labels(reshape_labels(label, logits, axis), logits.shape[axis])
        outer, inner = logits.shape[:axis].numel(), logits.shape[axis + 1 :].numel()
        return self.loss.compute(logits, index, valid, axis, self.count(outer, inner, valid))
