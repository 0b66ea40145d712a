"""LRN across channels, for the fast plan: by a kernel in C that reads each blob once.

The plain layer keeps its bottom, its top and the base of the power for the backward pass; here this is the
bottom alone, as the kernel computes the others again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.normalization.lrn import LRN
from imae.net.kernels import native

BETA = 0.75  # of the kernel: Krizhevsky's, and Caffe's default


class FastLRN:
    """An LRN by the kernel in C; for a bottom that the kernel does not support, the layer itself."""

    def __init__(self, layer: LRN) -> None:
        self.layer = layer

    @staticmethod
    def is_faster(layer: LRN) -> bool:
        """Whether there is a kernel for this layer."""
        return native.available() and not layer.within_channel and layer.beta == BETA

    def __call__(self, x: Tensor) -> Tensor:
        if not native.lrn_supports(x):
            top: Tensor = self.layer(x)
            return top
        normalized: Tensor = _AcrossChannels.apply(  # type: ignore[no-untyped-call]  # torch's
            x, self.layer.size, self.layer.alpha, self.layer.k
        )
        return normalized


class _AcrossChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, k: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.values = size, alpha, k
        return native.lrn(x, size, alpha, k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, None, None, None]:
        (x,), (size, alpha, k) = ctx.saved_tensors, ctx.values
        top_diff = top_diff.contiguous(memory_format=torch.channels_last)
        return native.lrn(x, size, alpha, k, top_diff), None, None, None
