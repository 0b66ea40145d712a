"""A loss that is defined by its gradient: one direction for all types, a weight w(p) for each example.

    d top / d z_ij = w(p_i) (1 - p_i) / (2 (1 - p_i) + epsilon) * d_ij / S
    d_ij           = -1 for the annotated label j = y_i, else the softmax of z_i over the OTHER classes
    top            = sum_i value(p_i) / S

With epsilon 0 the factor is w(p) / 2 and the L1 norm of an example's gradient w(p) / S. CCE, MAE, MSE, GCE,
IMAE and DM differ in w only (see example_weights.py): prob - onehot = (1 - p) d. Here d comes from the other
classes' logits alone, and p and 1 - p from their distance to z_y, so nothing is 0/0 or loses digits where p
is 0 or 1. The value need not be the integral of the gradient (IMAE's is not: the paper keeps MAE's).

epsilon is for weights that are not 0 at p = 1, those of IMAE and DM. Without it such a loss pushes an example
forever: at p = 1 its gradient is as large as at p = 0. No Caffe layer in single precision can have computed
that: p rounds to 1 at log-odds of about 17, where prob - onehot is 0 and equation 22 is 0/0. The authors'
layer has 2 (1 - p) + 1e-6 in the denominator, which ends the push where 1 - p is far below 1e-6. Types
without the field have epsilon 0.

S, by `normalizer` of the type's parameter:
    BATCH_SIZE      what loss_param.normalization counts, as in SoftmaxWithLoss, at least 1: VALID (default)
                    the labels that are not ignored, FULL all labels, BATCH_SIZE the first axes, NONE 1
    SUM_OF_WEIGHTS  1e-8 + sum_i w(p_i); the top is then the weighted mean sum_i w(p_i) value(p_i) / S
S counts as a constant in the gradient. Ignored examples are in no sum and get gradient 0.

bottom[0]  logits, (N, C, ...), C >= 2; softmax_param.axis is the axis of C
bottom[1]  labels 0 to C - 1: (N), (N, 1, H, W), (N, H, W) or any shape of as many elements
top[0]     (), the loss
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.labels import LabelReader, check_labels, ignored_label, refuse_gradient, reshape_labels
from imae.layers.layer import LossLayer, Shape
from imae.layers.loss.loss_normalizer import LOSS_FIELDS, normalization, normalizer
from imae.layers.plugins.example_weights import LARGEST_EXPONENT, largest_exponent
from imae.prototxt import LayerParameter
from imae.prototxt.caffe_pb2 import WeightNormalization


def examples(logits: Tensor, index: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """(p, 1 - p, d) of each example: p and 1 - p shaped like `index` (1 along `axis`), d like the logits."""
    others = logits.scatter(axis, index, -torch.inf)
    largest = others.amax(axis, keepdim=True)
    direction = torch.exp(others - largest)
    mass = direction.sum(axis, keepdim=True)
    direction = (direction / mass).scatter(axis, index, -1.0)
    log_odds = logits.gather(axis, index) - largest - torch.log(mass)
    return torch.sigmoid(log_odds), torch.sigmoid(-log_odds), direction


class DesignedLoss(LossLayer):
    """Base of these losses; a type defines `weight` and, unless it is MAE's, `value`."""

    reads: ClassVar[tuple[str, ...]] = ("softmax_param", *LOSS_FIELDS)

    def __init__(
        self, param: LayerParameter, normalize_by: WeightNormalization.Mode, epsilon: float = 0.0
    ) -> None:
        super().__init__(param)
        if not 0 <= epsilon < math.inf:
            raise self.error(f"epsilon must be a number, 0 or above, got {epsilon:g}")
        self.epsilon = epsilon
        loss = param.loss_param
        self.by_weights = normalize_by == WeightNormalization.SUM_OF_WEIGHTS
        self.labels = LabelReader(self, ignored_label(loss))
        self.normalization = normalization(loss)
        self.pre_fixed = loss.pre_fixed_normalizer
        fields = ("normalization", "normalize", "pre_fixed_normalizer")
        for field in fields if self.by_weights else ():
            if loss.HasField(field):
                raise self.error(f"loss_param.{field} does nothing with the sum of weights; remove it")

    def check_exponent(self, field: str, lambda_: float, beta: float) -> None:
        """LayerError where exp(beta p^lambda (1 - p)) does not stay finite; `field` is beta's name."""
        largest = largest_exponent(lambda_, beta)
        if not largest <= LARGEST_EXPONENT:
            raise self.error(
                f"{field} = {beta:g} makes weights up to exp({largest:g}), too large for single precision; "
                f"at most exp({LARGEST_EXPONENT:g}) is allowed"
            )

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        """w(p) of each example; rest = 1 - p."""
        raise self.error(f"{self.type} defines no weight")

    def value(self, p: Tensor, rest: Tensor) -> Tensor:
        """Loss of each example: MAE's 2 (1 - p), equation 11."""
        return 2 * rest

    def factor(self, weight: Tensor, rest: Tensor) -> Tensor:
        """The factor of the direction: half of the L1 norm."""
        if not self.epsilon:  # rest / (2 rest) is 0/0 at p = 1
            return weight / 2
        return weight * rest / (2 * rest + self.epsilon)

    def divisor(self, weight: Tensor, valid: Tensor | None, outer: int) -> Tensor | float:
        """S; `weight` is 0 where an example is ignored, `outer` the size of the axes before the classes."""
        if self.by_weights:
            return 1e-8 + weight.sum()
        inner = weight.numel() // max(outer, 1)
        return normalizer(self.normalization, outer, inner, valid, self.pre_fixed)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        logits, label = bottom_shapes[:2]
        axis = self.canonical_axis(self.param.softmax_param.axis, len(logits))
        if logits[axis] < 2:
            raise self.error(f"at least 2 classes are needed; axis {axis} of {logits} has {logits[axis]}")
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
        return apply(_Passes, logits, index, valid, axis, self)

    def forward_pass(
        self, logits: Tensor, index: Tensor, valid: Tensor | None, axis: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(top, factor, direction): factor * direction is the gradient for a top diff of 1."""
        if valid is not None:  # the logits of ignored examples must not matter, not even NaN
            logits = logits.masked_fill(~valid, 0)
        p, rest, direction = examples(logits, index, axis)
        weight, value = self.weight(p, rest), self.value(p, rest)
        if valid is not None:
            weight, value = weight.masked_fill(~valid, 0), value.masked_fill(~valid, 0)
        divisor = self.divisor(weight, valid, logits.shape[:axis].numel())
        total = (weight * value if self.by_weights else value).sum()
        return total / divisor, self.factor(weight, rest) / divisor, direction


class _Passes(torch.autograd.Function):
    """The forward and the backward pass; autograd records no operation inside them."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, index: Tensor, valid: Tensor | None, axis: int, layer: DesignedLoss
    ) -> Tensor:
        top, factor, direction = layer.forward_pass(logits, index, valid, axis)
        ctx.save_for_backward(factor, direction)
        return top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor | None, ...]:
        factor, direction = ctx.saved_tensors
        return top_diff * factor * direction, None, None, None, None
