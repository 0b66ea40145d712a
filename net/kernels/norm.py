"""Batch normalisation of blobs whose memory is in the order N, H, W, C: by kernels in C, or by torch's.

torch's own kernels for that order add all N H W values of a channel up one after another, in single
precision: of 131,072 values the variance is wrong by 1e-5 of itself, and so are the top and the gradients.
Seen as N H rows of W C numbers, the same memory has W columns for each channel; their sums, put together, are
wrong by 2e-7, and torch's kernels are faster with long rows.

    forward   mean = mean_w means[w]      variance = mean_w variances[w] + mean_w (means[w] - mean)^2
    backward  with x' = (x - mean) factor, factor = 1 / sqrt(variance + eps), m = N H W, sums over all but C:
              bias_diff = sum top_diff    weight_diff = sum top_diff x'
              diff = weight factor (top_diff - bias_diff / m - x' weight_diff / m)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.net.kernels import native

aten = torch.ops.aten


def is_channels_last(x: Tensor) -> bool:
    """Whether `normalize` takes this blob: on the CPU, (N, C, H, W) with the channels last in memory."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.dim() == 4
        and min(x.shape) > 0
        and min(x.shape[1], x.shape[3]) > 1
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool = False,
    shortcut: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """x by its own statistics, times weight, plus bias, plus a shortcut of x's shape, and of that the ReLU.

    With its mean and its unbiased variance, (C) each.
    """
    found: tuple[Tensor, Tensor, Tensor]
    if _native_takes(x, shortcut, weight, bias):
        found = _Native.apply(x, weight, bias, shortcut, eps, relu)  # type: ignore[no-untyped-call]  # torch's
        return found
    found = _Normalize.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    return finished(found[0], relu, shortcut), *found[1:]


def normalize_by(
    mean: Tensor,
    variance: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool = False,
    shortcut: Tensor | None = None,
) -> Tensor:
    """The same by a given mean and variance, (C) each; x in any order of memory."""
    if (
        not native.learns(x, weight, bias, shortcut)
        and is_channels_last(x)
        and _native_takes(x, shortcut, weight, bias, mean, variance)
    ):
        return native.batch_norm_given(x, weight, bias, shortcut, mean, variance, eps, relu)
    top = torch.batch_norm(x, weight, bias, mean, variance, False, 0, eps, True)
    return finished(top, relu, shortcut)


def _native_takes(x: Tensor, shortcut: Tensor | None, *values: Tensor | None) -> bool:
    return (
        native.takes(x, *values, shortcut)
        and all(len(each) == x.shape[1] and each.is_contiguous() for each in values if each is not None)
        and (shortcut is None or (shortcut.shape == x.shape and is_channels_last(shortcut)))
    )


def finished(top: Tensor, relu: bool, shortcut: Tensor | None) -> Tensor:
    """The top plus the shortcut, and of that the ReLU, in the top's memory if it can be."""
    if shortcut is not None:
        top = added_within(top, shortcut)
    return F.relu_(top) if relu else top


def added_within(first: Tensor, second: Tensor) -> Tensor:
    """The sum of two blobs in the memory of the first, if it has the sum's type."""
    return first.add_(second) if first.dtype == second.dtype else first + second


class _Native(torch.autograd.Function):
    """By the kernels in C."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        shortcut: Tensor | None,
        eps: float,
        relu: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        top, mean, variance, factor = native.batch_norm(x, weight, bias, shortcut, eps, relu)
        needed = relu and shortcut is not None
        ctx.save_for_backward(x, top if needed else None, weight, bias, mean, factor)
        ctx.relu = relu
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        return top, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad
        if top_diff is None:
            return (None,) * len(wanted)
        x, top, weight, bias, mean, factor = ctx.saved_tensors
        top_diff = top_diff.contiguous(memory_format=torch.channels_last)
        diffs = native.batch_norm_gradients(x, top, top_diff, weight, bias, mean, factor, ctx.relu)
        return *(diff if want else None for diff, want in zip(diffs, wanted, strict=False)), None, None


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        c, w = x.shape[1], x.shape[3]
        columns = _columns(x)
        means, variances = (v.view(w, c) for v in aten.batch_norm_update_stats(columns, None, None, 0.0))
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square_().mean(0)
        values = (weight, bias, mean, variance)
        spread = iter(_of_each(w, *(value for value in values if value is not None)))
        each = [None if value is None else next(spread) for value in values]
        top, nothing = torch.empty_like(x), x.new_empty(0)  # no view, so that a ReLU may overwrite it
        aten.native_batch_norm.out(
            columns, *each, False, 0.0, eps,
            out=_columns(top), save_mean=nothing, save_invstd=nothing,
        )  # fmt: skip
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        m = x.numel() // c
        unbiased = variance * (m / (m - 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return top, mean, unbiased

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, top_diff: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight, mean, variance = ctx.saved_tensors
        top_diff = top_diff.contiguous(memory_format=torch.channels_last)
        n, c, h, w = x.shape
        factor = (variance + ctx.eps).rsqrt_()
        # By given statistics, this kernel gives the two sums of each column.
        _, weight_diffs, bias_diffs = aten.native_batch_norm_backward(
            _columns(top_diff), _columns(x), *_of_each(w, factor, mean, variance), None, None,
            False, ctx.eps, [False, True, True],
        )  # fmt: skip
        weight_diff, bias_diff = weight_diffs.view(w, c).sum(0), bias_diffs.view(w, c).sum(0)
        slope = factor if weight is None else weight * factor
        by_x = slope * factor * weight_diff / (-n * h * w)
        offset = slope * bias_diff / (-n * h * w) - by_x * mean
        offset, by_x, slope = _of_each(w, offset, by_x, slope)
        diff = torch.addcmul(offset, _rows(x), by_x)
        diff.addcmul_(_rows(top_diff), slope)
        wanted = ctx.needs_input_grad
        return (
            diff.view(n, h, w, c).permute(0, 3, 1, 2) if wanted[0] else None,
            weight_diff if wanted[1] else None,
            bias_diff if wanted[2] else None,
            None,
        )


def _of_each(w: int, *values: Tensor) -> tuple[Tensor, ...]:
    """For each of `w` columns the values (C) of all channels, (w C); at once, as small copies take long."""
    return torch.stack(values)[:, None].expand(-1, w, -1).reshape(len(values), -1).unbind()


def _rows(x: Tensor) -> Tensor:
    """(N H, W C)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0] * x.shape[2], x.shape[3] * x.shape[1])


def _columns(x: Tensor) -> Tensor:
    """The same as a blob (N, W C, H, 1) with the channels last."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).view(n, h, 1, w * c).permute(0, 3, 1, 2)
