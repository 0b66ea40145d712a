"""Convolutions in groups, as CaffeNet's conv4 and conv5: Winograd's algorithm for each group.

With groups, oneDNN's kernels are slower for blobs in the order N, H, W, C than for N, C, H, W. A group's part
of a blob is copied, which is little beside the convolution: on AMD Zen 3 forward and backward of conv4 take
0.63 of oneDNN's time in the one order, 0.75 in the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.layer import Shape
from imae.layers.vision.conv import Convolution
from imae.net.kernels import native
from imae.net.kernels.conv import MAX_WEIGHTS, ReplacedConvolution, convolution_gradients, tiles_of_a_thread

MIN_CHANNELS = 32  # of a group, on both sides: with fewer the copies count, and each has a kernel of its own


class GroupedConvolution(ReplacedConvolution):
    """A convolution with windows of 3x3 in some groups."""

    @staticmethod
    def is_faster(layer: Convolution, bottom: Shape) -> bool:
        """Whether this is faster than the layer on this processor, with a bottom of this shape."""
        windows = layer.windows
        axis = layer.canonical_axis(layer.param.convolution_param.axis, len(bottom))
        outputs, channels = layer.num_output // layer.group, layer.blob_shapes[0][1]
        return (
            native.uses_winograd()
            and layer.group > 1
            and windows.kernel == (3, 3)
            and axis == 1
            and windows.stride == windows.dilation == (1, 1)
            and max(windows.pad) <= 2
            and min(outputs, channels) >= MIN_CHANNELS
            and outputs % native.CHANNELS_AT_ONCE == channels % native.CHANNELS_AT_ONCE == 0
        )

    def _top(self, x: Tensor) -> Tensor:
        layer, (weight, bias) = self.layer, self._factors()
        tiles = tiles_of_a_thread(x.shape, layer.windows.pad) if x.dim() == 4 else 0
        if not tiles or not self._kernels_support(x, weight):
            return super()._top(x)
        top: Tensor = _Convolve.apply(  # type: ignore[no-untyped-call]  # torch's
            x, weight, bias, layer.group, layer.windows.pad, tiles
        )
        return top


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: int, pad: Shape, tiles: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.group, ctx.pad, ctx.tiles = group, pad, tiles
        biases = [None] * group if bias is None else bias.chunk(group)
        parts = zip(x.chunk(group, 1), weight.chunk(group), biases, strict=True)
        return torch.cat([native.winograd(_last(part), w, b, pad) for part, w, b in parts], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        parts = zip(x.chunk(ctx.group, 1), weight.chunk(ctx.group), top_diff.chunk(ctx.group, 1), strict=True)
        diffs = [
            convolution_gradients(
                _last(part), w, diff, wanted, (1, 1), ctx.pad, ctx.tiles,
                native.uses_conv_weight() and w.numel() <= MAX_WEIGHTS,
            )
            for part, w, diff in parts
        ]  # fmt: skip
        results = [
            torch.cat(list(group), axis) if want else None
            for group, axis, want in zip(zip(*diffs, strict=True), (1, 0, 0), wanted, strict=True)
        ]
        return *results, None, None, None


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
