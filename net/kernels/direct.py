"""The kernels in C of direct.h: convolutions without gradients, planned for bottoms of one shape.

Bottom, other and top have the channels last in memory. Sizes and weights are checked once, in the plan; the
bottoms of a pass are checked as well, as the kernels read memory by addresses.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from imae.layers.layer import Shape
from imae.layers.vision.conv import Windows
from imae.net.kernels import native

VECTOR = native.CHANNELS_AT_ONCE  # outputs that are computed at once, at least
BLOCK = 2 * VECTOR
NO_ACTIVATION, RELU, SLOPES = range(3)  # as in activation.h


class ConvolutionCall(NamedTuple):
    """What a convolution of (N, C, H, W) does; `bottom` is the bottom's shape.

    relu     whether a ReLU follows, and after a sum
    slopes   a PReLU follows: its slopes, one for each output
    """

    weight: Tensor
    bias: Tensor | None
    windows: Windows
    group: int
    bottom: Shape
    relu: bool = False
    slopes: Tensor | None = None

    @property
    def top(self) -> Shape:
        """The top's shape."""
        return (self.bottom[0], len(self.weight), *self.windows.counts(self.bottom[2:]))

    @property
    def products(self) -> int:
        """How many products of two numbers it computes, those with padding included."""
        num, _, height, width = self.top
        return num * height * width * self.weight.numel()

    @property
    def activation(self) -> int:
        """What follows, as a number of activation.h."""
        return SLOPES if self.slopes is not None else RELU if self.relu else NO_ACTIVATION

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is a group, with one output."""
        return self.group == self.bottom[1] == len(self.weight)


def plan_direct(call: ConvolutionCall) -> Callable[..., Tensor]:
    """A function of the bottom, and of another blob that is added if there is one: the top, in new memory.

    With `into` the top is written there, which may be the other blob.
    """
    depthwise = call.is_depthwise and call.bottom[1] >= VECTOR
    sizes = _checked_sizes(call)
    weight = call.weight.permute(2, 3, 1, 0) if depthwise else packed_weight(call.weight, call.group)
    weight, groups = weight.contiguous(), 1 if depthwise else call.group
    bias = _padded(call.weight.new_zeros(len(call.weight)) if call.bias is None else call.bias, groups)
    slopes = bias if call.slopes is None else _padded(call.slopes, groups)
    kernel = native.direct_kernel("depthwise" if depthwise else "direct")
    before = [tensor.data_ptr() for tensor in (weight, bias, slopes)]
    address, most_threads = ctypes.addressof(sizes), native.most_threads(call.products)
    bottom, shape, last = call.bottom, call.top, torch.channels_last
    strides = torch.empty(shape, device="meta", memory_format=last).stride()

    def check(x: Tensor, shape: Shape) -> None:
        if x.shape != shape or x.dtype != torch.float32 or not x.is_contiguous(memory_format=last):
            raise ValueError(f"planned for {tuple(shape)}, got {x.dtype} {tuple(x.shape)} {x.stride()}")

    def convolve(
        x: Tensor,
        other: Tensor | None = None,
        into: Tensor | None = None,
        memory: Sequence[object] = (sizes, weight, bias, slopes),
    ) -> Tensor:
        check(x, bottom)
        if depthwise and other is not None:
            raise ValueError("nothing is added to a depthwise convolution")
        top = torch.empty_strided(shape, strides, dtype=torch.float32) if into is None else into
        for blob in (other, into):
            if blob is not None:
                check(blob, shape)
        threads = min(most_threads, torch.get_num_threads())
        if depthwise:
            failed = kernel(x.data_ptr(), *before, address, threads, top.data_ptr())
        else:
            added = None if other is None else other.data_ptr()
            failed = kernel(x.data_ptr(), *before, added, address, threads, top.data_ptr())
        if failed:
            raise MemoryError
        return top

    return convolve


def packed_weight(weight: Tensor, group: int) -> Tensor:
    """The weights in the order of imae_direct: for each group and block of outputs, [i][j][c][output]."""
    outputs, channels, *kernel = weight.shape
    rows = weight.reshape(group, outputs // group, channels, *kernel)
    blocks = []
    for begin in range(0, rows.shape[1], BLOCK):
        block = rows[:, begin : begin + BLOCK]
        width = VECTOR if block.shape[1] <= VECTOR else BLOCK
        filled = weight.new_zeros(group, *kernel, channels, width)
        filled[..., : block.shape[1]] = block.permute(0, 3, 4, 2, 1)
        blocks.append(filled.flatten(1))
    return torch.cat(blocks, 1)


def _padded(values: Tensor, groups: int) -> Tensor:
    """One number for each output; the outputs of each group are followed by zeros up to whole vectors."""
    rows = values.reshape(groups, -1)
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % VECTOR)).contiguous()


def _checked_sizes(call: ConvolutionCall) -> ctypes.Array[ctypes.c_int64]:
    weight, bias, windows, group, bottom, _, slopes = call
    outputs, channels, *kernel = weight.shape
    factors = [weight, *(t for t in (bias, slopes) if t is not None)]
    if (
        len(bottom) != 4
        or group < 1
        or outputs % group
        or bottom[1] != channels * group
        or tuple(kernel) != tuple(windows.kernel)
        or any(t.dtype != torch.float32 or not t.is_cpu for t in factors)
        or any(t.shape != (outputs,) for t in factors[1:])
        or min(*call.top, *bottom, *windows.stride, *windows.dilation) < 1
        or min(windows.pad) < 0
    ):
        raise ValueError(f"no kernel for bottom {bottom}, weights {tuple(weight.shape)}, {windows}")
    num, _, *size = bottom
    values = (num, *size, bottom[1], *call.top[2:], outputs, *kernel, *windows.stride, *windows.pad)
    numbers = (*values, *windows.dilation, group, call.activation)
    return (ctypes.c_int64 * len(numbers))(*numbers)
