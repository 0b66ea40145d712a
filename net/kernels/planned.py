"""Convolutions without gradients, planned once for bottoms of one shape, in the memory order N, H, W, C.

    Winograd's kernel in C where it is faster than the others
    the kernels of direct.h where they are used
    oneDNN with weights that are packed once, where this torch has its operation
    F.conv2d otherwise

oneDNN's own ReLU makes 0 of NaN, so a ReLU is never part of its operation: a net that has diverged must show
it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from imae.layers.vision.conv import Windows
from imae.net.kernels import native
from imae.net.kernels.direct import ConvolutionCall, plan_direct

# Measured on two cores of AMD Zen 2 and 3. Winograd's kernel keeps 16 / 9 times as many weights, which is not
# worth it beyond so many. A call of oneDNN takes 50 microseconds at least: torch's own kernel is faster where
# there are few products.
MANY_WEIGHTS = 512 * 512
FEW_PRODUCTS = 1_500_000


Convolve = Callable[[Tensor], Tensor]
ConvolveAndAdd = Callable[[Tensor, Tensor], Tensor]  # bottom, other: the convolution + other


def plan_convolution(call: ConvolutionCall) -> Convolve:
    """A function that computes the top, in new memory, of a bottom in the order N, H, W, C."""
    if _direct_is_faster(call):
        return plan_direct(call)
    if _winograd_is_faster(call):
        return _planned_winograd(call)
    return _followed(call, _plan_plain_convolution(call))


def plan_convolution_and_sum(call: ConvolutionCall, overwrites: bool) -> ConvolveAndAdd:
    """The same, plus another blob of the top's shape and order, before a ReLU or PReLU.

    overwrites   whether the sum may be written to that blob's memory
    """
    _, bias, windows, group, *_ = call
    if _direct_is_faster(call) and not call.is_depthwise:
        direct = plan_direct(call)
        return (lambda x, other: direct(x, other, other)) if overwrites else direct
    if overwrites and not _winograd_is_faster(call) and _packing_is_faster(call):
        packed = _packed(call)
        convolve = _onednn()._convolution_pointwise_.binary
        stride, pad, dilation = map(list, (windows.stride, windows.pad, windows.dilation))

        def by_onednn(x: Tensor, other: Tensor) -> Tensor:
            top: Tensor = convolve(
                other, x, packed, bias, pad, stride, dilation, group, "add", 1.0, None, [], None
            )
            return top

        return _followed(call, by_onednn)
    top_of = _plan_plain_convolution(call)
    return _followed(call, lambda x, other: top_of(x).add_(other))


def _plan_plain_convolution(call: ConvolutionCall) -> Convolve:
    """A function that computes the top without a ReLU or PReLU, in new memory."""
    weight, bias, windows, group, *_ = call
    if _winograd_is_faster(call):
        return _planned_winograd(call._replace(relu=False, slopes=None))
    if _packing_is_faster(call):
        packed = _packed(call)
        convolve = _onednn()._convolution_pointwise.default
        stride, pad, dilation = map(list, (windows.stride, windows.pad, windows.dilation))

        def by_onednn(x: Tensor) -> Tensor:
            top: Tensor = convolve(x, packed, bias, pad, stride, dilation, group, "none", [], "")
            return top

        return by_onednn
    last, geometry = torch.channels_last, (windows.stride, windows.pad, windows.dilation, group)
    weight = weight.contiguous(memory_format=last)
    return lambda x: F.conv2d(x, weight, bias, *geometry).contiguous(memory_format=last)


def _followed(call: ConvolutionCall, compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, and then the call's ReLU or PReLU on the top's memory."""
    slopes = call.slopes
    if slopes is not None:
        return lambda *bottoms: F.prelu(compute(*bottoms), slopes)
    return (lambda *bottoms: torch.relu_(compute(*bottoms))) if call.relu else compute


def _direct_is_faster(call: ConvolutionCall) -> bool:
    """Whether to use the kernels of direct.h: not where most of the outputs of a vector would be none."""
    if not native.uses_direct() or _winograd_is_faster(call):
        return False
    outputs = len(call.weight) // call.group
    return call.is_depthwise or 2 * outputs > native.CHANNELS_AT_ONCE or call.products < FEW_PRODUCTS


def _winograd_is_faster(call: ConvolutionCall) -> bool:
    weight, _, windows, group, *_ = call
    outputs, channels, *kernel = weight.shape
    return (
        native.uses_winograd()
        and kernel == [3, 3]
        and set(windows.stride) == set(windows.dilation) == {1}
        and group == 1
        and max(windows.pad) <= 2
        and outputs % native.CHANNELS_AT_ONCE == channels % native.CHANNELS_AT_ONCE == 0
        and outputs * channels <= MANY_WEIGHTS
        and min(call.top[2:]) > 2  # in smaller images most of a window is outside
    )


def _packing_is_faster(call: ConvolutionCall) -> bool:
    return call.products > FEW_PRODUCTS and _has_packed()


def _planned_winograd(call: ConvolutionCall) -> Convolve:
    return native.plan_winograd(
        call.bottom, call.weight, call.bias, call.windows.pad, call.activation, call.slopes
    )


def _packed(call: ConvolutionCall) -> Tensor:
    """The weights in the order that oneDNN's kernel for this bottom reads."""
    weight, _, windows, group, bottom, *_ = call
    packed: Tensor = _onednn()._reorder_convolution_weight(
        weight.contiguous(), windows.pad, windows.stride, windows.dilation, group, bottom
    )
    return packed


def _onednn() -> Any:
    """torch's operations of oneDNN."""
    return torch.ops.mkldnn


@cache
def _has_packed() -> bool:
    """Whether this torch has oneDNN's operations with packed weights, as they are called here.

    They are not part of torch's documented interface, so a small convolution is tried.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch's
        return False
    generator = torch.Generator().manual_seed(1)
    x, weight, other = (
        torch.randint(-4, 5, shape, generator=generator).float().contiguous(memory_format=torch.channels_last)
        for shape in ((2, 8, 5, 6), (8, 8, 3, 3), (2, 8, 5, 6))
    )
    windows = Windows((3, 3), (1, 1), (1, 1), (1, 1))
    geometry = [1, 1], [1, 1], [1, 1], 1
    want = F.conv2d(x, weight, None, 1, 1)
    try:
        packed = _packed(ConvolutionCall(weight, None, windows, 1, tuple(x.shape)))
        top = _onednn()._convolution_pointwise.default(x, packed, None, *geometry, "none", [], "")
        total = _onednn()._convolution_pointwise_.binary(
            other.clone(), x, packed, None, *geometry, "add", 1.0, None, [], None
        )
    except (AttributeError, RuntimeError, TypeError):  # another torch: it has none, or calls them otherwise
        return False
    return torch.equal(top, want) and torch.equal(total, want + other)
