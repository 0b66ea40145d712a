"""Convolutions of blobs whose memory is in the order N, H, W, C, with the weights' gradient by a kernel in C.

oneDNN's kernel for processors without AVX-512 takes half as long again as it takes for the top, and adds all
N H W products of a weight up one after another in single precision: in ResNet-20 with a batch of 128 its
gradients are wrong by 1e-5 of the largest. Those of the kernel in C: 6e-7. The rest is torch's, and so is all
where oneDNN's kernels are faster: windows of one pixel, of which they make a product of two matrices, and
layers of many weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers import native
from imae.layers.layer import Shape
from imae.layers.vision.conv import Convolution

MOST_WEIGHTS = 200_000  # each thread of the kernel in C has a sum for each
FEW_CHANNELS = 8


class SubsampledConvolution:
    """A convolution of single pixels, only some of which it looks at: of those alone.

    For few channels, and such a bottom, oneDNN's kernel for the weights' gradient writes past the end of its
    memory (seen with 3 and 4 channels and stride 2, torch 2.13).
    """

    def __init__(self, layer: Convolution) -> None:
        self.layer = layer

    def __call__(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        layer = self.layer
        rows, columns = layer.windows.stride
        weight, bias = layer.blob(0), layer.blob(1) if layer.bias_term else None
        order = torch.channels_last
        seen = (x[:, :, ::rows, ::columns].contiguous(memory_format=order) for x in bottoms)
        tops = tuple(F.conv2d(x, weight, bias, groups=layer.group) for x in seen)
        return tops[0] if len(tops) == 1 else tops


def subsamples_few_channels(layer: Convolution, bottom: Shape) -> bool:
    """Whether `SubsampledConvolution` is for this layer with such a bottom."""
    windows = layer.windows
    return (
        _is_2d(layer, bottom)
        and windows.kernel == (1, 1)
        and windows.stride != (1, 1)
        and windows.pad == (0, 0)
        and layer.blob_shapes[0][1] < FEW_CHANNELS
    )


def _is_2d(layer: Convolution, bottom: Shape) -> bool:
    axis = layer.canonical_axis(layer.param.convolution_param.axis, len(bottom))
    return len(layer.windows.kernel) == 2 and axis == 1


def gains(layer: Convolution, bottom: Shape) -> bool:
    """Whether `Convolve` is for this layer with such a bottom, and this processor is one for the kernel."""
    windows = layer.windows
    return (
        native.conv_weight_wanted()
        and _is_2d(layer, bottom)
        and layer.group == 1
        and set(windows.dilation) == {1}
        and math.prod(windows.kernel) > 1
        and math.prod(layer.blob_shapes[0]) <= MOST_WEIGHTS
        and layer.num_output % native.OUTPUTS_AT_ONCE == 0
    )


class Convolve:
    """A convolution's tops, as its `forward` makes them."""

    def __init__(self, layer: Convolution) -> None:
        self.layer = layer

    def __call__(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        tops = tuple(map(self._one, bottoms))
        return tops[0] if len(tops) == 1 else tops

    def _one(self, x: Tensor) -> Tensor:
        layer = self.layer
        weight, bias = layer.blob(0), layer.blob(1) if layer.bias_term else None
        if (
            not (weight.requires_grad and torch.is_grad_enabled() and native.takes_conv(x, weight))
            or torch.is_autocast_enabled("cpu")
            or any(layer.windows.beyond(x.shape[2:]))
        ):
            top = layer.forward(x)
            assert isinstance(top, Tensor)
            return top
        stride, pad = layer.windows.stride, layer.windows.pad
        convolved: Tensor = _Convolve.apply(x, weight, bias, stride, pad)  # type: ignore[no-untyped-call]
        return convolved


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Shape, pad: Shape
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.pad = stride, pad
        return F.conv2d(x, weight, bias, stride, pad)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), wanted = ctx.saved_tensors, ctx.needs_input_grad
        top_diff = top_diff.contiguous(memory_format=torch.channels_last)
        diff = weight_diff = bias_diff = None
        if wanted[0]:
            diff = torch.ops.aten.convolution_backward(
                top_diff, x, weight, None, ctx.stride, ctx.pad, [1, 1], False, [0, 0], 1, [True, False, False]
            )[0]
        if wanted[1]:
            weight_diff = native.conv_weight_gradient(x, top_diff, weight.shape, ctx.stride, ctx.pad)
        if wanted[2]:
            bias_diff = top_diff.sum((0, 2, 3))
        return diff, weight_diff, bias_diff, None, None
