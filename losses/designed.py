"""Losses of p alone: a weight w(p) and a value for each example, and one direction of the gradient for all.

    d loss / d z_ij = w(p_i) (1 - p_i) / (2 (1 - p_i) + epsilon) * d_ij / S
    d_ij            = -1 for the annotated label j = y_i, else the softmax of z_i over the OTHER classes
    loss            = sum_i value(p_i) / S

p is the softmax probability of the annotated label. With epsilon 0 the factor is w(p) / 2 and the L1 norm of
an example's gradient w(p) / S. These losses differ in w only (see example_weights.py): prob - onehot = (1 -
p) d. Here d comes from the other classes' logits alone, and p and 1 - p from their distance to z_y, so
nothing is 0/0 or loses digits where p is 0 or 1. The value need not be the integral of the gradient (IMAE's
is not: the paper keeps MAE's).

epsilon is for weights that are not 0 at p = 1, those of IMAE and DM. Without it such a loss pushes an example
forever: at p = 1 its gradient is as large as at p = 0. No Caffe layer in single precision can have computed
that: p rounds to 1 at log-odds of about 17, where prob - onehot is 0 and equation 22 is 0/0. The authors'
layer has 2 (1 - p) + 1e-6 in the denominator, which ends the push where 1 - p is far below 1e-6. Losses
without the argument have epsilon 0.

S is the count of the labels; by the sum of weights it is 1e-8 + sum_i w(p_i), and the loss then the weighted
mean sum_i w(p_i) value(p_i) / S. S counts as a constant in the gradient. Ignored examples are in no sum and
get gradient 0.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.files.errors import LossError
from imae.losses.example_weights import LARGEST_EXPONENT, largest_exponent
from imae.losses.loss import Loss, Reduction, check_number, least_log

Normalizer = Literal["BATCH_SIZE", "SUM_OF_WEIGHTS"]


class Examples(NamedTuple):
    """p, rest = 1 - p and log p of each label (size 1 on the class axis), and d of its logits."""

    p: Tensor
    rest: Tensor
    log_p: Tensor
    direction: Tensor


def examples(logits: Tensor, index: Tensor, axis: int) -> Examples:
    """What the losses need of each example; `index` has size 1 on `axis`."""
    others = logits.scatter(axis, index, -torch.inf)
    largest = others.amax(axis, keepdim=True)
    direction = torch.exp(others - largest)
    mass = direction.sum(axis, keepdim=True)
    direction = (direction / mass).scatter(axis, index, -1.0)
    log_odds = logits.gather(axis, index) - largest - torch.log(mass)
    log_p = F.logsigmoid(log_odds).clamp(min=least_log(logits.dtype))
    return Examples(torch.sigmoid(log_odds), torch.sigmoid(-log_odds), log_p, direction)


class DesignedLoss(Loss):
    """Base of the losses of p alone; a type defines `weight` and, unless it is MAE's, `value`.

    normalizer  BATCH_SIZE: the mean; SUM_OF_WEIGHTS: divided by the sum of the weights, for reduction "mean";
                None: the type's own, with reduction "mean"
    """

    own_normalizer: Normalizer = "BATCH_SIZE"

    def __init__(
        self,
        *,
        normalizer: Normalizer | None = None,
        epsilon: float = 0.0,
        reduction: Reduction = "mean",
        ignore_label: int | None = None,
    ) -> None:
        super().__init__(reduction=reduction, ignore_label=ignore_label)
        normalizer = self._default_normalizer if normalizer is None else normalizer
        if normalizer not in get_args(Normalizer):
            raise LossError(
                f"normalizer must be one of {', '.join(get_args(Normalizer))}, got {normalizer!r}"
            )
        if normalizer == "SUM_OF_WEIGHTS" and reduction != "mean":
            raise LossError(f'normalizer SUM_OF_WEIGHTS needs reduction "mean", got {reduction!r}')
        check_number("epsilon", epsilon)
        self.by_weights = normalizer == "SUM_OF_WEIGHTS"
        self.epsilon = epsilon

    def extra_repr(self) -> str:
        named = [super().extra_repr()] if super().extra_repr() else []
        normalizer = "SUM_OF_WEIGHTS" if self.by_weights else "BATCH_SIZE"
        if normalizer != self._default_normalizer:
            named.append(f"normalizer={normalizer!r}")
        return ", ".join(named)

    @property
    def _default_normalizer(self) -> Normalizer:
        return self.own_normalizer if self.reduction == "mean" else "BATCH_SIZE"

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        """w(p) of each example; rest = 1 - p."""
        raise LossError(f"{type(self).__name__} defines no weight")

    def value(self, p: Tensor, rest: Tensor, log_p: Tensor) -> Tensor:
        """Loss of each example: MAE's 2 (1 - p), equation 11."""
        return 2 * rest

    def sum_of_weights(self, weight: Tensor) -> Tensor:
        """S by the sum of weights; `weight` is 0 where an example is ignored."""
        return 1e-8 + weight.sum()

    def compute(
        self,
        logits: Tensor,
        index: Tensor,
        valid: Tensor | None,
        axis: int,
        count: Tensor | float,
        reduce: bool = True,
    ) -> Tensor:
        result: Tensor = _Passes.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
            logits, index, valid, axis, count, reduce, self
        )
        return result

    def _factor(self, weight: Tensor, rest: Tensor) -> Tensor:
        """The factor of the direction: half of the L1 norm."""
        if not self.epsilon:  # rest / (2 rest) is 0/0 at p = 1
            return weight / 2
        return weight * rest / (2 * rest + self.epsilon)

    def forward_pass(
        self,
        logits: Tensor,
        index: Tensor,
        valid: Tensor | None,
        axis: int,
        count: Tensor | float,
        reduce: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(loss, factor, direction): factor * direction is the gradient where the loss's own is 1."""
        if valid is not None:  # the logits of ignored examples must not matter, not even NaN
            logits = logits.masked_fill(~valid, 0)
        p, rest, log_p, direction = examples(logits, index, axis)
        weight, value = self.weight(p, rest), self.value(p, rest, log_p)
        if valid is not None:
            weight, value = weight.masked_fill(~valid, 0), value.masked_fill(~valid, 0)
        divisor = self.sum_of_weights(weight) if self.by_weights else count
        losses = weight * value if self.by_weights else value
        loss = (losses.sum() if reduce else losses) / divisor
        return loss, self._factor(weight, rest) / divisor, direction


class _Passes(torch.autograd.Function):
    """The forward and the backward pass; autograd records no operation inside them."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        index: Tensor,
        valid: Tensor | None,
        axis: int,
        count: Tensor | float,
        reduce: bool,
        loss: DesignedLoss,
    ) -> Tensor:
        top, factor, direction = loss.forward_pass(logits, index, valid, axis, count, reduce)
        ctx.save_for_backward(factor, direction)
        return top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor | None, ...]:
        factor, direction = ctx.saved_tensors
        return top_diff * factor * direction, None, None, None, None, None, None


def check_exponent(name: str, lambda_: float, beta: float) -> None:
    """LossError where exp(beta p^lambda (1 - p)) does not stay finite; `name` is beta's."""
    largest = largest_exponent(lambda_, beta)
    if not largest <= LARGEST_EXPONENT:
        raise LossError(
            f"{name} = {beta:g} makes weights up to exp({largest:g}), too large for single precision; "
            f"at most exp({LARGEST_EXPONENT:g}) is allowed"
        )
