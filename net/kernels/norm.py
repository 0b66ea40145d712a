"""Batch normalisation, then Scale, a sum with another blob and ReLU, for the fast plan.

On the CPU, blobs in the memory order N, H, W, C are normalised by kernels in C, or by torch's kernels on
another view of the same memory. All other blobs are normalised by `torch.batch_norm`.

Blobs may be in bfloat16, with statistics and factors in single precision. The kernels in C then compute in
single precision and round each number once, where torch rounds after each of BatchNorm, sum and ReLU.

torch's own kernels for that order add all N H W values of a channel one after another in single precision:
the variance of 131,072 values has a relative error of 1e-5, and so have the top and the gradients. Viewed as
N H rows of W C numbers, the same memory has W columns for each channel. The merged statistics of the columns
have a relative error of 2e-7, and torch's kernels are faster with long rows.

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
from imae.net.kernels.norm_call import NormCall

aten = torch.ops.aten


def normalize_by_batch(call: NormCall, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The top by the batch's own statistics, its mean and its unbiased variance, (C) each.

    mean, variance   zeros, (C) each, of the type of the results, which may use their memory
    """
    x = call.x
    if is_channels_last(x) and (x.dtype != torch.bfloat16 or _kernels_support(call)):
        return normalize_channels_last(call)
    # With momentum 1 torch writes the batch's mean and unbiased variance into these two.
    top = torch.batch_norm(x, call.weight, call.bias, mean, variance, True, 1, call.eps, True)
    if x.numel() == x.shape[1]:  # one number for each channel: the variance is 0, torch divides 0 by 0
        variance = torch.zeros_like(variance)
    return add_and_relu(top, call), mean, variance


def normalize_by_statistics(call: NormCall, mean: Tensor, variance: Tensor) -> Tensor:
    """The top by a given mean and variance, (C) each."""
    x, weight, bias, eps, _, shortcut = call
    if (
        not native.requires_grad_any(x, weight, bias, shortcut)
        and is_channels_last(x)
        and _kernels_support(call, mean, variance)
    ):
        return native.batch_norm_by_statistics(call, mean, variance)
    top = torch.batch_norm(x, weight, bias, mean, variance, False, 0, eps, True)
    return add_and_relu(top, call)


def is_channels_last(x: Tensor) -> bool:
    """Whether `normalize_channels_last` supports this blob: on the CPU, (N, C, H, W), order N, H, W, C.

    In bfloat16 only the kernels in C do.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64, torch.bfloat16)
        and x.dim() == 4
        and min(x.shape) > 0
        and min(x.shape[1], x.shape[3]) > 1
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def normalize_channels_last(call: NormCall) -> tuple[Tensor, Tensor, Tensor]:
    """Like `normalize_by_batch`, for a blob for which `is_channels_last` holds."""
    results: tuple[Tensor, Tensor, Tensor]
    if _kernels_support(call):
        results = _Native.apply(*call)  # type: ignore[no-untyped-call]  # torch's
        return results
    results = _Normalize.apply(*call[:4])  # type: ignore[no-untyped-call]
    return add_and_relu(results[0], call), *results[1:]


def _kernels_support(call: NormCall, *statistics: Tensor) -> bool:
    x, weight, bias, _, _, shortcut = call
    values = (weight, bias, *statistics)
    return (
        native.batch_norm_supports(x, shortcut, values=values)
        and all(len(value) == x.shape[1] and value.is_contiguous() for value in values if value is not None)
        and (shortcut is None or (shortcut.shape == x.shape and is_channels_last(shortcut)))
    )


def add_and_relu(top: Tensor, call: NormCall) -> Tensor:
    """The top plus the call's shortcut, then its ReLU, in-place where possible."""
    if call.shortcut is not None:
        top = add_in_place(top, call.shortcut)
    return F.relu_(top) if call.relu else top


def add_in_place(first: Tensor, second: Tensor) -> Tensor:
    """The sum of two blobs, in the memory of the first if it has the sum's type."""
    return first.add_(second) if first.dtype == second.dtype else first + second


class _Native(torch.autograd.Function):
    """By the kernels in C."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        relu: bool,
        shortcut: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        top, mean, variance, factor = native.batch_norm(NormCall(x, weight, bias, eps, relu, shortcut))
        needs_top = relu and shortcut is not None
        ctx.save_for_backward(x, top if needs_top else None, weight, bias, mean, factor)
        ctx.eps, ctx.relu = eps, relu
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
        call = NormCall(x, weight, bias, ctx.eps, ctx.relu)
        diffs = native.batch_norm_gradients(call, top, top_diff, mean, factor)
        diff, weight_diff, bias_diff, shortcut_diff = (
            d if want else None for d, want in zip(diffs, (*wanted[:3], wanted[5]), strict=True)
        )
        return diff, weight_diff, bias_diff, None, None, shortcut_diff


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
        repeated = iter(_repeat_for_columns(w, *(value for value in values if value is not None)))
        factors = [None if value is None else next(repeated) for value in values]
        top, nothing = torch.empty_like(x), x.new_empty(0)  # not a view, so that a ReLU may overwrite it
        aten.native_batch_norm.out(
            columns, *factors, False, 0.0, eps,
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
        # With given statistics, this kernel returns the two sums of each column.
        _, weight_diffs, bias_diffs = aten.native_batch_norm_backward(
            _columns(top_diff), _columns(x), *_repeat_for_columns(w, factor, mean, variance), None, None,
            False, ctx.eps, [False, True, True],
        )  # fmt: skip
        weight_diff, bias_diff = weight_diffs.view(w, c).sum(0), bias_diffs.view(w, c).sum(0)
        slope = factor if weight is None else weight * factor
        by_x = slope * factor * weight_diff / (-n * h * w)
        offset = slope * bias_diff / (-n * h * w) - by_x * mean
        offset, by_x, slope = _repeat_for_columns(w, offset, by_x, slope)
        diff = torch.addcmul(offset, _rows(x), by_x)
        diff.addcmul_(_rows(top_diff), slope)
        wanted = ctx.needs_input_grad
        return (
            diff.view(n, h, w, c).permute(0, 3, 1, 2) if wanted[0] else None,
            weight_diff if wanted[1] else None,
            bias_diff if wanted[2] else None,
            None,
        )


def _repeat_for_columns(w: int, *values: Tensor) -> tuple[Tensor, ...]:
    """Each of the values (C) repeated for `w` columns, (w C). One copy, since many small ones are slow."""
    return torch.stack(values)[:, None].expand(-1, w, -1).reshape(len(values), -1).unbind()


def _rows(x: Tensor) -> Tensor:
    """(N H, W C)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0] * x.shape[2], x.shape[3] * x.shape[1])


def _columns(x: Tensor) -> Tensor:
    """The same as a blob (N, W C, H, 1) with the channels last."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).view(n, h, 1, w * c).permute(0, 3, 1, 2)
