"""The arguments of all implementations of BatchNorm with Scale, a sum and ReLU."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class NormCall(NamedTuple):
    """The bottom and the factors of one operation:

        top = relu((x - mean) / sqrt(variance + eps) * weight + bias + shortcut)

    x          (N, C, ...)
    weight     (C); None for 1
    bias       (C); None for 0
    relu       whether the ReLU is applied
    shortcut   of x's shape; None for 0
    """

    x: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5
    relu: bool = False
    shortcut: Tensor | None = None
