"""Convolution: learned filters slid over the spatial axes, which follow `axis`.

    top[n, o, y, x] = bias[o] + sum_c,i,j weight[o, c, i, j] * bottom[n, c, y s + i d - p, x s + j d - p]

with stride s, dilation d and zero padding p; the sum over c runs over the channels of o's group only. Each
spatial size becomes (size + 2 p - (d (k - 1) + 1)) / s + 1, the division rounded towards zero.

bottom[i]  (..., C, H, W); any number of axes before the channel axis, and of spatial axes after it
top[i]     (..., num_output, H', W'), all bottoms through the same filters
blobs      weight (num_output, C / group, kernel_h, kernel_w); bias (num_output) if bias_term

Caffe: base_conv_layer.cpp, conv_layer.cpp. Differs: stride 0 (stride_h without stride_w), group 0, dilation 0
and a top without pixels are errors.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cached_property, reduce
from math import prod
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imae.layers.blob import shape_string
from imae.layers.layer import Layer, ReceptiveWindow, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter

LARGE_STRIDE = 1000  # from here on it matters


class Windows(NamedTuple):
    """The geometry of a convolution_param, one number per spatial axis."""

    kernel: Shape
    stride: Shape
    pad: Shape
    dilation: Shape

    @property
    def extent(self) -> Shape:
        """The size that a window covers, holes included."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    def counts(self, sizes: Sequence[int]) -> Shape:
        """How many windows there are on each axis; 0 where none fits."""
        # Caffe: C++ rounds towards zero, so a window that sticks out by less than the stride counts as one.
        spans = [size + 2 * p - e for size, p, e in zip(sizes, self.pad, self.extent, strict=True)]
        return tuple(
            max(span, 0) // s + 1 if span > -s else 0 for span, s in zip(spans, self.stride, strict=True)
        )

    def within(self, sizes: Sequence[int]) -> "Windows":
        """The same windows on these sizes, with no stride that goes farther than needed to leave them.

        torch's backward pass takes memory for a stride, also where no second window follows.
        """
        if max(self.stride, default=1) < LARGE_STRIDE:
            return self
        spans = [size + 2 * p - e for size, p, e in zip(sizes, self.pad, self.extent, strict=True)]
        return self._replace(
            stride=tuple(min(s, max(span, 0) + 1) for s, span in zip(self.stride, spans, strict=True))
        )

    def covered_sizes(self, counts: Sequence[int]) -> Shape:
        """The sizes that `counts` windows cover, without the padding."""
        covered = zip(counts, self.stride, self.extent, self.pad, strict=True)
        return tuple(s * (count - 1) + e - 2 * p for count, s, e, p in covered)

    def overhang(self, sizes: Sequence[int]) -> Shape:
        """How far the first window sticks out of the padded end of each axis."""
        return tuple(
            max(0, e - size - 2 * p) for size, e, p in zip(sizes, self.extent, self.pad, strict=True)
        )


def read_windows(layer: Layer, axes: int) -> Windows:
    """The windows of a layer that has a convolution_param, for `axes` spatial axes."""
    kernel = _per_axis(layer, "kernel_size", axes, None, ("kernel_h", "kernel_w"))
    stride = _per_axis(layer, "stride", axes, 1, ("stride_h", "stride_w"))
    pad = _per_axis(layer, "pad", axes, 0, ("pad_h", "pad_w"))
    dilation = _per_axis(layer, "dilation", axes, 1)
    for kind, sizes in (("Filter", kernel), ("Stride", stride), ("Dilation", dilation)):
        if not all(sizes):
            raise layer.error(f"{kind} dimensions must be nonzero.; got {', '.join(map(str, sizes))}")
    return Windows(kernel, stride, pad, dilation)


def _per_axis(
    layer: Layer, name: str, axes: int, default: int | None, pair: tuple[str, str] | None = None
) -> Shape:
    """A field that is given once, once per spatial axis, or as the pair of fields _h and _w."""
    param = layer.param.convolution_param
    values = tuple(getattr(param, name))
    if pair and (param.HasField(pair[0]) or param.HasField(pair[1])):
        stem = pair[0].removesuffix("_h")
        if axes != 2:
            raise layer.error(
                f"{stem}_h & {stem}_w can only be used for 2D convolution.; there are {axes} spatial axes"
            )
        if values:
            raise layer.error(f"Either {name} or {stem}_h/w should be specified; not both.")
        return (getattr(param, pair[0]), getattr(param, pair[1]))
    if not values and default is not None:
        return (default,) * axes
    if len(values) not in (1, axes):
        raise layer.error(
            f"{name} must be specified once, or once per spatial dimension "
            f"({name} specified {len(values)} times; {axes} spatial dims)."
        )
    return values * axes if len(values) == 1 else values


class BaseConvolution(Layer):
    """What Convolution and Deconvolution share; `reverse` tells them apart."""

    min_bottoms = min_tops = 1
    same_count = True
    reads = ("convolution_param",)
    reverse: ClassVar[bool]  # True: Deconvolution, whose weight has the bottom's channels first
    operator: ClassVar[str]  # ONNX
    functions: ClassVar[tuple[Callable[..., Tensor], ...]]  # for 1, 2, 3 spatial axes
    reads_bottom = True

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        convolution = param.convolution_param
        self.num_output, self.group = convolution.num_output, convolution.group
        self.bias_term = convolution.bias_term
        for name in ("num_output", "group"):
            if getattr(self, name) < 1:
                raise self.error(f"convolution_param.{name} must be positive, got {getattr(self, name)}")

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        shape, convolution = bottom_shapes[0], self.param.convolution_param
        axis = self.canonical_axis(convolution.axis, len(shape))
        spatial = len(shape) - axis - 1
        if shape[axis] % self.group:
            raise self.error(
                f"Number of input channels should be multiples of group {self.group}.; got {shape[axis]}"
            )
        if self.num_output % self.group:
            raise self.error(
                f"Number of output should be multiples of group {self.group}.; got {self.num_output}"
            )
        channels = (shape[axis], self.num_output) if self.reverse else (self.num_output, shape[axis])
        windows = read_windows(self, spatial)
        kernel = windows.kernel
        self.add_blob((channels[0], channels[1] // self.group, *kernel), convolution.weight_filler)
        is_1x1 = windows.kernel == windows.stride == (1,) * spatial and not any(windows.pad)
        self.spoils_in_place = "data" if is_1x1 else ""  # Caffe: others copy a window before they use it
        if self.bias_term:
            self.add_blob((self.num_output,), convolution.bias_filler)

    @cached_property
    def windows(self) -> Windows:
        return read_windows(self, len(self.blob_shapes[0]) - 2)

    @property
    def channels(self) -> int:
        """Number of channels of a bottom."""
        shape = self.blob_shapes[0]
        return shape[0] if self.reverse else shape[1] * self.group

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        first, windows = bottom_shapes[0], self.windows
        axis = self.canonical_axis(self.param.convolution_param.axis, len(first))
        if len(first) != axis + 1 + len(windows.kernel):
            raise self.error(
                f"bottom num_axes may not change.; got {first} for {len(windows.kernel)} spatial axes"
            )
        if first[axis] != self.channels:
            raise self.error(
                f"Input size incompatible with convolution kernel.; got {first[axis]} channels (axis {axis} "
                f"of {first}), the weights are for {self.channels}"
            )
        for index, shape in enumerate(bottom_shapes):
            if shape != first:
                raise self.error(
                    f"shape mismatch - bottom[0]: {shape_string(first)} vs. "
                    f"bottom[{index}]: {shape_string(shape)}"
                )
        sizes = first[axis + 1 :]
        new_sizes = windows.covered_sizes(sizes) if self.reverse else windows.counts(sizes)
        if any(size < 1 for size in (*sizes, *new_sizes)):
            raise self.error(
                f"nothing would be left of bottom {first}: the top's spatial sizes would be {new_sizes} with "
                f"windows of {windows.extent}, stride {windows.stride}, pad {windows.pad}"
            )
        return [(*first[:axis], self.num_output, *new_sizes)] * len(bottom_shapes)

    def multiply_adds(self, bottom_shapes: Sequence[Shape], top_shapes: Sequence[Shape]) -> int:
        """Each weight once for each place, where padding counts, too."""
        places = bottom_shapes if self.reverse else top_shapes
        return sum(prod(shape) for shape in places) * prod(self.blob_shapes[0][1:])

    def receptive_window(self, bottom_shape: Shape) -> ReceptiveWindow:
        strides = tuple(map(Fraction, self.windows.stride))
        if not self.reverse:
            return ReceptiveWindow(self.windows.extent, strides)
        sizes = zip(self.windows.extent, self.windows.stride, strict=True)
        return ReceptiveWindow(tuple(-(-e // s) for e, s in sizes), tuple(1 / stride for stride in strides))

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        weight, bias = self.blob(0), self.blob(1) if self.bias_term else None
        if len(bottoms) == 1:
            return self._convolve_bottom(bottoms[0], weight, bias)
        return tuple(self._convolve_bottom(bottom, weight, bias) for bottom in bottoms)

    def _convolve_bottom(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        windows, spatial = self.windows, len(self.windows.kernel)
        shape = x.shape
        axis = len(shape) - spatial - 1
        overhang = (0,) if self.reverse else windows.overhang(shape[axis + 1 :])
        if any(overhang):
            x = F.pad(x, [n for end in reversed(overhang) for n in (0, end)])
        if axis == 1 and spatial:
            return self._convolve(x, weight, bias, windows)
        if not spatial:  # a convolution over one pixel
            x, weight, windows = x.unsqueeze(-1), weight.unsqueeze(-1), ONE_PIXEL
        top = self._convolve(x.flatten(0, axis - 1) if axis else x.unsqueeze(0), weight, bias, windows)
        return top.reshape(*shape[:axis], self.num_output, *(top.shape[2:] if spatial else ()))

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows) -> Tensor:
        """(N, C, ...) to (N, num_output, ...), over one spatial axis or more."""
        spatial = len(windows.kernel)
        if spatial > len(self.functions):
            top = self._convolve_first_axis(x, weight, windows)
            return top if bias is None else top + bias.view(-1, *[1] * spatial)
        function = self.functions[spatial - 1]
        if self.reverse:
            return function(x, weight, bias, windows.stride, windows.pad, 0, self.group, windows.dilation)
        windows = windows.within(x.shape[2:])
        return function(x, weight, bias, windows.stride, windows.pad, windows.dilation, self.group)

    def _convolve_first_axis(self, x: Tensor, weight: Tensor, windows: Windows) -> Tensor:
        """The sum, over the kernel's positions on the first spatial axis, of convolutions over the others."""
        kernel, stride, pad, dilation = (field[0] for field in windows)
        others = Windows(*(field[1:] for field in windows))
        reach = dilation * (kernel - 1)

        def over_the_others(rows: Tensor, place: int) -> Tensor:
            top = self._convolve(rows.transpose(1, 2).flatten(0, 1), weight[:, :, place], None, others)
            return top.reshape(len(x), -1, *top.shape[1:]).transpose(1, 2)

        if self.reverse:
            parts = [over_the_others(x, place) for place in range(kernel)]
            span = stride * (x.shape[2] - 1) + 1
            top = parts[0].new_zeros(*parts[0].shape[:2], span + reach, *parts[0].shape[3:])
            for place, part in enumerate(parts):
                top[:, :, place * dilation :][:, :, :span:stride].add_(part)
            return top[:, :, pad : span + reach - pad]
        x = F.pad(x, [0, 0] * len(others.kernel) + [pad, pad])  # F.pad begins with the last axis
        span = x.shape[2] - reach
        rows = (x[:, :, place * dilation :][:, :, :span:stride] for place in range(kernel))
        return reduce(torch.add, (over_the_others(part, place) for place, part in enumerate(rows)))

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        weight = self.blob(0)
        spatial = len(self.windows.kernel)
        windows = self.windows if spatial else ONE_PIXEL
        blobs = [graph.constant(weight if spatial else weight.unsqueeze(-1), blob=0)]
        if self.bias_term:
            blobs.append(graph.constant(self.blob(1), blob=1))
        for bottom, top in zip(bottoms, tops, strict=True):
            shape = graph.shape(bottom)
            axis = len(shape) - spatial - 1
            sizes = shape[axis + 1 :] or (1,)
            no_overhang = self.reverse or graph.free_axes(bottom)  # only sizes below the kernel have one
            overhang = (0,) * len(sizes) if no_overhang else windows.overhang(sizes)
            plain = axis == 1 and spatial > 0
            flat = bottom if plain else graph.node(
                "Reshape", [bottom, graph.constant(np.array([-1, self.channels, *sizes]))]
            )  # fmt: skip
            value = graph.node(
                self.operator,
                [flat, *blobs],
                [top] if plain else None,
                kernel_shape=windows.kernel,
                strides=windows.stride,
                pads=[*windows.pad, *(p + end for p, end in zip(windows.pad, overhang, strict=True))],
                dilations=windows.dilation,
                group=self.group,
            )
            if not plain:
                new_shape = self.top_shapes([shape])[0]
                graph.node("Reshape", [value, graph.constant(np.array([-1, *new_shape[1:]]))], [top])


ONE_PIXEL = Windows(kernel=(1,), stride=(1,), pad=(0,), dilation=(1,))


@register_layer("Convolution")
class Convolution(BaseConvolution):
    reverse = False
    operator = "Conv"
    functions = (F.conv1d, F.conv2d, F.conv3d)
