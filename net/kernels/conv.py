"""Convolutions of blobs whose memory is in the order N, H, W, C, by kernels in C where these are faster.

Windows of 3x3 with a stride of 1 use Winograd's algorithm, forward and backward. With AVX2 it takes half to
three quarters of the time of oneDNN's kernels; on processors with AVX-512 both are timed. The median of its
rounding errors is half of oneDNN's, and they are rarely larger. Infinities and NaN reach a few pixels more.

For other windows, a kernel computes the gradient of the weights. oneDNN takes 1.5 times as long for it as for
the top, and adds all N H W products of a weight one after another in single precision. In ResNet-20 with a
batch of 128 its gradients are wrong by 1e-5 of the largest; ours by 3e-7.

In bfloat16 a kernel that uses AMX computes the gradient of the weights of layers with few channels.

Where the top has few pixels for the layer's channels, one product of matrices (torch's) is the gradient of
the weights, of larger windows than one pixel after a copy of the bottom's windows as rows. With one image
oneDNN takes 1.1 to 2 times as long for windows of one pixel, up to 9 times for others.

torch computes all the rest, and where oneDNN's kernels are faster.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.layer import Shape
from imae.layers.vision.conv import Convolution
from imae.net.kernels import native

# Where the kernels in C are faster than oneDNN, measured on two cores of AMD Zen 3. Each thread has a sum for
# each weight, with Winograd's algorithm 16 sums for 9 weights; that algorithm transforms the weights first.
MAX_WEIGHTS, MAX_WINOGRAD_WEIGHTS = 200_000, 600_000
MIN_TILES, MIN_TILES_FOR_WEIGHTS = 64, 256  # of 2x2 pixels, for each thread
# In bfloat16, on two cores of an Intel Xeon with AMX: the kernel takes 0.4 to 1.0 of oneDNN's time up to 64
# channels and outputs, 1.1 to 1.5 times it from 128 on.
MAX_BFLOAT16_WEIGHTS, MIN_BFLOAT16_PIXELS = 40_000, 1024  # pixels: for each thread
FEW_CHANNELS = 8
# A product of matrices is faster for at most so many pixels of the top: with windows of one pixel, for the
# gradient of the weights so many for each channel of the top, for that of the bottom so many in all. With
# other windows one for each channel, so that the copy is not larger than the weights.
PIXELS_OF_A_CHANNEL, PIXELS_FOR_BOTTOM = 100, 2048


class ReplacedConvolution:
    """A convolution that is computed in another way; its tops are those of the layer's `forward`."""

    def __init__(self, layer: Convolution) -> None:
        self.layer = layer

    def __call__(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        tops = tuple(map(self._top, bottoms))
        return tops[0] if len(tops) == 1 else tops

    def _top(self, x: Tensor) -> Tensor:
        top = self.layer.forward(x)
        assert isinstance(top, Tensor)
        return top

    def _factors(self) -> tuple[Tensor, Tensor | None]:
        """Weights and bias."""
        return self.layer.blob(0), self.layer.blob(1) if self.layer.bias_term else None

    def _kernels_support(self, x: Tensor, weight: Tensor) -> bool:
        layer = self.layer
        return (
            native.conv_supports(x, weight)
            and x.shape[1] == weight.shape[1] * layer.group
            and not torch.is_autocast_enabled("cpu")
            and not any(layer.windows.overhang(x.shape[2:]))
        )


class SubsampledConvolution(ReplacedConvolution):
    """A strided 1x1 convolution, computed on the subsampled bottom.

    For such a layer with few channels oneDNN's kernel for the weights' gradient writes past the end of its
    memory (seen with 3 and 4 channels and stride 2, torch 2.13).
    """

    @staticmethod
    def is_needed(layer: Convolution, bottom: Shape) -> bool:
        """Whether the layer needs this replacement, with a bottom of this shape."""
        windows = layer.windows
        return (
            _is_2d(layer, bottom)
            and windows.kernel == (1, 1)
            and windows.stride != (1, 1)
            and windows.pad == (0, 0)
            and layer.blob_shapes[0][1] < FEW_CHANNELS
        )

    def _top(self, x: Tensor) -> Tensor:
        rows, columns = self.layer.windows.stride
        subsampled = x[:, :, ::rows, ::columns].contiguous(memory_format=torch.channels_last)
        return F.conv2d(subsampled, *self._factors(), groups=self.layer.group)


def _is_2d(layer: Convolution, bottom: Shape) -> bool:
    axis = layer.canonical_axis(layer.param.convolution_param.axis, len(bottom))
    return len(layer.windows.kernel) == 2 and axis == 1


def _uses_weight_kernel(layer: Convolution) -> bool:
    weight = layer.blob_shapes[0]
    return native.uses_conv_weight() and math.prod(weight[2:]) > 1 and math.prod(weight) <= MAX_WEIGHTS


def _uses_winograd(layer: Convolution) -> bool:
    windows = layer.windows
    return (
        (native.uses_winograd() or native.uses_winograd_weight())
        and windows.kernel == (3, 3)
        and windows.stride == (1, 1)
        and max(windows.pad) <= 2
        and layer.blob_shapes[0][1] % native.CHANNELS_AT_ONCE == 0
    )


def _uses_tiles(layer: Convolution) -> bool:
    windows, weight = layer.windows, layer.blob_shapes[0]
    return (
        native.uses_tiles()
        and windows.stride == (1, 1)
        and math.prod(windows.kernel) > 1
        and windows.kernel == tuple(2 * p + 1 for p in windows.pad)
        and not (weight[0] % native.TILE_CHANNELS or weight[1] % native.TILE_CHANNELS)
        and math.prod(weight) <= MAX_BFLOAT16_WEIGHTS
    )


class FastConvolution(ReplacedConvolution):
    """A convolution by the kernels in C."""

    def __init__(self, layer: Convolution) -> None:
        super().__init__(layer)
        self.uses_winograd = _uses_winograd(layer)
        self.uses_weight_kernel = _uses_weight_kernel(layer)
        self.uses_tiles = _uses_tiles(layer)

    @staticmethod
    def is_faster(layer: Convolution, bottom: Shape) -> bool:
        """Whether this is faster than the layer on this processor, with a bottom of this shape."""
        windows = layer.windows
        return (
            _is_2d(layer, bottom)
            and layer.group == 1
            and set(windows.dilation) == {1}
            and layer.num_output % native.CHANNELS_AT_ONCE == 0
            and (
                _uses_winograd(layer)
                or _uses_weight_kernel(layer)
                or _uses_tiles(layer)
                or _is_weight_product(layer.blob_shapes[0], layer.top_shapes([bottom])[0])
            )
        )

    def _top(self, x: Tensor) -> Tensor:
        (weight, bias), windows = self._factors(), self.layer.windows
        stride, pad = windows.stride, windows.pad
        reduced = self.uses_tiles and self._tiles_support(x, weight)
        if not (reduced or self._kernels_support(x, weight)):
            return super()._top(x)
        tiles = self._tiles(x.shape) if self.uses_winograd and not reduced else 0
        if not (tiles or native.requires_grad_any(x, weight, bias)):
            return super()._top(x)
        convolved: Tensor = _Convolve.apply(  # type: ignore[no-untyped-call]  # torch's
            x, weight, bias, stride, pad, tiles, self.uses_weight_kernel
        )
        return convolved

    def _tiles_support(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the gradient of the weights is wanted, in bfloat16, and faster by AMX's tiles."""
        return (
            x.dtype == torch.bfloat16
            and torch.is_autocast_enabled("cpu")
            and native.requires_grad_any(weight)
            and x.is_contiguous(memory_format=torch.channels_last)
            and x.shape[1] == weight.shape[1]
            and x.numel() // x.shape[1] >= MIN_BFLOAT16_PIXELS * torch.get_num_threads()
        )

    def _tiles(self, bottom: Shape) -> int:
        return tiles_of_a_thread(bottom, self.layer.windows.pad)


def _is_weight_product(weight: Shape, top: Shape) -> bool:
    """Whether the gradient of weights of this shape is computed as a product of matrices."""
    pixels = top[0] * top[2] * top[3]
    return native.uses_conv_weight() and pixels <= weight[0] * (
        PIXELS_OF_A_CHANNEL if weight[2:] == (1, 1) else 1
    )


def tiles_of_a_thread(bottom: Shape, pad: Shape) -> int:
    """How many tiles of the top each thread has; 0 if they are too few for Winograd's algorithm."""
    height, width = ((size + 2 * p - 1) // 2 for size, p in zip(bottom[2:], pad, strict=True))
    tiles = bottom[0] * height * width // torch.get_num_threads()
    return tiles if tiles >= MIN_TILES else 0


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Shape,
        pad: Shape,
        tiles: int,
        uses_weight_kernel: bool,
    ) -> Tensor:
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)  # as autocast does
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.pad, ctx.tiles, ctx.uses_weight_kernel = stride, pad, tiles, uses_weight_kernel
        if tiles and native.uses_winograd():
            return native.winograd(x, weight, bias, pad)
        return F.conv2d(x, weight, bias, stride, pad)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), wanted = ctx.saved_tensors, ctx.needs_input_grad
        diffs = convolution_gradients(
            x, weight, top_diff, wanted[:3], ctx.stride, ctx.pad, ctx.tiles, ctx.uses_weight_kernel
        )
        return *diffs, None, None, None, None


def convolution_gradients(
    x: Tensor,
    weight: Tensor,
    top_diff: Tensor,
    wanted: Sequence[bool],
    stride: Shape,
    pad: Shape,
    tiles: int,
    uses_weight_kernel: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of bottom, weights and bias, those that are wanted; `tiles`: see FastConvolution."""
    top_diff = top_diff.contiguous(memory_format=torch.channels_last)
    diff = weight_diff = bias_diff = None
    if wanted[0] and tiles and native.uses_winograd():
        diff = native.winograd_bottom_gradient(top_diff, weight, pad)
    if wanted[1] and x.dtype == torch.bfloat16:
        weight_diff = native.conv_weight_gradient_bfloat16(x, top_diff, weight.shape, pad)
    elif (
        wanted[1]
        and native.uses_winograd_weight()
        and tiles >= MIN_TILES_FOR_WEIGHTS
        and weight.numel() <= MAX_WINOGRAD_WEIGHTS
    ):
        weight_diff = native.winograd_weight_gradient(x, top_diff, weight.shape, pad)
    elif wanted[1] and uses_weight_kernel:
        weight_diff = native.conv_weight_gradient(x, top_diff, weight.shape, stride, pad)
    elif wanted[1] and _is_weight_product(weight.shape, top_diff.shape):
        weight_diff = _weight_product(x, top_diff, weight.shape, stride, pad)
    if (
        wanted[0]
        and _is_of_pixels(weight.shape, stride, pad)
        and top_diff.numel() <= PIXELS_FOR_BOTTOM * weight.shape[0]
    ):
        diff = _as_blob(_pixels(top_diff) @ weight.flatten(1), x.shape)
    missing = [want and got is None for want, got in zip(wanted, (diff, weight_diff), strict=False)]
    if any(missing):
        gradients = torch.ops.aten.convolution_backward(
            top_diff, x, weight, None, stride, pad, [1, 1], False, [0, 0], 1, [*missing, False]
        )
        diff = gradients[0] if missing[0] else diff
        weight_diff = gradients[1] if missing[1] else weight_diff
    if wanted[2]:
        bias_diff = top_diff.sum((0, 2, 3), dtype=torch.float32)
    return diff, weight_diff, bias_diff


def _is_of_pixels(weight: Shape, stride: Shape, pad: Shape) -> bool:
    """Whether the windows are the bottom's pixels, one by one."""
    return weight[2:] == (1, 1) and set(stride) == {1} and set(pad) == {0}


def _weight_product(x: Tensor, top_diff: Tensor, weight: Shape, stride: Shape, pad: Shape) -> Tensor:
    """The gradient of the weights as a product: (O, pixels of the top) with (pixels, channels and window)."""
    if _is_of_pixels(weight, stride, pad):
        rows = _pixels(x)
    else:
        windows = F.unfold(x.contiguous(), weight[2:], padding=pad, stride=stride)  # (N, C kh kw, H W)
        rows = windows.transpose(0, 1).flatten(1).t()
    return (_pixels(top_diff).t() @ rows).view(weight)


def _pixels(blob: Tensor) -> Tensor:
    """A blob whose channels are last in memory, as the matrix (N H W, C)."""
    return blob.permute(0, 2, 3, 1).reshape(-1, blob.shape[1])


def _as_blob(pixels: Tensor, shape: Shape) -> Tensor:
    """The matrix (N H W, C) as a blob of this shape whose channels are last in memory."""
    return pixels.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
