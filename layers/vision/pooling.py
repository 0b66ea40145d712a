"""Pooling: the maximum, the average or a random pixel of each window.

    MAX         top = max of the window's pixels; the first of equal ones gets the gradient; padding never
                wins
    AVE         top = sum of the window's pixels / size of the window, which counts padding, up to the padded
                end
    STOCHASTIC  TRAIN: top = a pixel, drawn in proportion to its value; it alone gets the gradient
                TEST:  top = sum of the window's pixels squared / their sum, or 0 where the sum is not above 0

An axis has ceil((size + 2 pad - kernel) / stride) + 1 windows (round_mode FLOOR: floor), or, with any
padding, one less if the last would start at or after size + pad. So windows may stick out of the far end.
Forks write ceil_mode: true for CEIL, ceil_mode: false for FLOOR. Without padding and with stride > kernel the
last window may be empty: its maximum is then the lowest float, its average NaN.

bottom[0]  (N, C, H, W)
top[0]     (N, C, H', W')
top[1]     MAX only, optional: where the maximum is, y W + x, as a number (-1 for an empty window)

STOCHASTIC takes no padding and, as in Caffe, computes on a GPU only. Each output draws one number of the
random stream, in memory order; `device_masks` lets the device draw them itself.

Caffe: pooling_layer.cpp, pooling_layer.cu; ceil_mode: foss-for-synopsys-dwc-arc-processors/synopsys-caffe and
BVLC/caffe#3057. Differs: stride 0 and a top without pixels are errors, and so are a ceil_mode and a
round_mode that contradict each other (synopsys-caffe follows round_mode). MAX gives NaN for a window with a
NaN, where Caffe ignores it. Where no pixel can be drawn, STOCHASTIC gives 0 (the sum is negative, or the
window empty) or NaN (the sum is NaN); Caffe leaves the top's memory as it was. In TEST the gradient of
STOCHASTIC is the derivative; Caffe sends it to pixels that were not drawn.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.layer import Layer, ReceptiveWindow, Shape
from imae.layers.near_ties import near_ties_as
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.onnx_sizes import integers, reshaped, sizes_of
from imae.layers.registry import register_layer
from imae.prototxt import TRAIN, LayerParameter

Pair = tuple[int, int]


class PoolWindows(NamedTuple):
    """Where the windows lie, (height, width) each."""

    kernel: Pair
    stride: Pair
    pad: Pair = (0, 0)
    floor: bool = False

    def counts(self, sizes: Sequence[int]) -> Pair:
        """How many windows there are on each axis; less than 1 where the kernel is too large."""
        height, width = (self._count(axis, size) for axis, size in enumerate(sizes))
        return height, width

    def _count(self, axis: int, size: int) -> int:
        kernel, stride, pad = self.kernel[axis], self.stride[axis], self.pad[axis]
        span = size + 2 * pad - kernel
        count = (span // stride if self.floor else -(-span // stride)) + 1
        return count - 1 if any(self.pad) and (count - 1) * stride >= size + pad else count

    def filled(self, sizes: Sequence[int]) -> Pair:
        """Number of windows that begin before the padded end, and so are not empty."""
        axes = zip(self.counts(sizes), self.stride, sizes, self.pad, strict=True)
        height, width = (min(count, -(-(size + p) // s)) for count, s, size, p in axes)
        return height, width

    def ends_of_any_size(self) -> Pair | None:
        """Padding after each axis with which floor((size + pad + end - kernel) / stride) + 1 is `counts`.

        None where that needs padding as large as the kernel: for windows that may be empty.
        """
        if self.floor:  # with pad < kernel no window then starts after the padded end
            return self.pad
        clips = any(self.pad)
        ends = []
        for kernel, stride, pad in zip(self.kernel, self.stride, self.pad, strict=True):
            # ceil(x / s) is floor((x + s - 1) / s). A window that starts after the padded end is left out:
            # there are at most floor((size + pad - 1) / s) + 1.
            end = pad + stride - 1
            if end >= kernel and not clips:
                return None
            ends.append(min(end, kernel - 1))
        return ends[0], ends[1]

    def ends(self, sizes: Sequence[int], counts: Pair) -> Pair:
        """Padding that the last of `counts` windows needs after each axis."""
        axes = zip(counts, self.stride, self.kernel, sizes, self.pad, strict=True)
        height, width = (max(0, (count - 1) * s + k - size - p) for count, s, k, size, p in axes)
        return height, width

    def areas(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """AVE's divisors, (H', W'), of x's dtype and device."""
        height, width = (self._lengths(axis, size, x) for axis, size in enumerate(sizes))
        return height[:, None] * width

    def _lengths(self, axis: int, size: int, x: Tensor) -> Tensor:
        pad = self.pad[axis]
        start = (
            torch.arange(self._count(axis, size), dtype=x.dtype, device=x.device) * self.stride[axis] - pad
        )
        return (start + self.kernel[axis]).clamp(max=size + pad) - start

    def fits_torch(self, sizes: Sequence[int]) -> bool:
        """Whether torch can place the windows like Caffe: none is empty, pad is at most half the kernel."""
        narrow = all(2 * p <= k for p, k in zip(self.pad, self.kernel, strict=True))
        return narrow and self.filled(sizes) == self.counts(sizes)

    @property
    def is_subsampling(self) -> bool:
        """Whether every window is one pixel of the bottom, without padding."""
        return self.kernel == (1, 1) and not any(self.pad)

    def clip_stride(self, sizes: Sequence[int]) -> "PoolWindows":
        """As many windows with the same pixels, but no stride larger than needed (torch's has 31 bits)."""
        axes = zip(self.stride, sizes, self.pad, self.kernel, strict=True)
        down, right = (min(s, max(size + p, k)) for s, size, p, k in axes)
        return self._replace(stride=(down, right))

    def padded(self, x: Tensor, value: float) -> Tensor:
        """`x` with `value` around it, so that every window lies inside."""
        (top, left), (bottom, right) = self.pad, self.ends(x.shape[2:], self.counts(x.shape[2:]))
        return F.pad(x, (left, right, top, bottom), value=value)


class _Subsample(torch.autograd.Function):
    """Every stride[0]th row, every stride[1]th column; the gradient has the bottom's memory format."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: Pair) -> Tensor:
        ctx.shape, ctx.stride = x.shape, stride
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return x[:, :, :: stride[0], :: stride[1]].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, None]:
        diff = torch.empty(
            ctx.shape, dtype=top_diff.dtype, device=top_diff.device, memory_format=ctx.memory_format
        ).zero_()
        diff[:, :, :: ctx.stride[0], :: ctx.stride[1]] = top_diff
        return diff, None


def subsample(x: Tensor, windows: PoolWindows) -> Tensor:
    """The pixels of windows of one pixel, which lie inside the bottom."""
    return apply(_Subsample, x, windows.stride)


def max_pool(x: Tensor, windows: PoolWindows) -> Tensor:
    """The maxima."""
    fits, windows = windows.fits_torch(x.shape[2:]), windows.clip_stride(x.shape[2:])
    if fits:
        if windows.is_subsampling:
            return subsample(x, windows)
        return F.max_pool2d(x, windows.kernel, windows.stride, windows.pad, ceil_mode=not windows.floor)
    return F.max_pool2d(windows.padded(x, torch.finfo(x.dtype).min), windows.kernel, windows.stride)


def max_pool_with_mask(x: Tensor, windows: PoolWindows) -> tuple[Tensor, Tensor]:
    """The maxima and their positions, y W + x."""
    fits, windows = windows.fits_torch(x.shape[2:]), windows.clip_stride(x.shape[2:])
    dtype = torch.promote_types(x.dtype, torch.float32)  # of positions: see precision.py
    if fits:
        top, index = F.max_pool2d_with_indices(
            x, windows.kernel, windows.stride, windows.pad, ceil_mode=not windows.floor
        )
        return top, index.to(dtype)
    padded = windows.padded(x, torch.finfo(x.dtype).min)
    top, index = F.max_pool2d_with_indices(padded, windows.kernel, windows.stride)
    row = index // padded.shape[3] - windows.pad[0]
    column = index % padded.shape[3] - windows.pad[1]
    height, width = x.shape[2:]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return top, (row * width + column).where(inside, -1).to(dtype)


def average_pool(x: Tensor, windows: PoolWindows) -> Tensor:
    """The averages."""
    clipped = windows.clip_stride(x.shape[2:])
    if windows.fits_torch(x.shape[2:]):  # torch's divisor is then Caffe's
        if clipped.is_subsampling:
            return subsample(x, clipped)
        return F.avg_pool2d(x, clipped.kernel, clipped.stride, clipped.pad, ceil_mode=not clipped.floor)
    sums = F.avg_pool2d(clipped.padded(x, 0), clipped.kernel, clipped.stride, divisor_override=1)
    return sums / windows.areas(x, x.shape[2:])


def drawn_pool(x: Tensor, windows: PoolWindows, draws: Tensor) -> Tensor:
    """The pixel of each window at which the running sum, row by row, reaches draw * sum of the window.

    draws   numbers of [0, 1], of the top's shape
    """
    windows = windows.clip_stride(x.shape[2:])
    padded = windows.padded(x, 0)  # zeros add nothing, so none of them is the first to reach the draw
    (height, width), (down, right) = windows.kernel, windows.stride
    with torch.no_grad():
        sums = padded.unfold(2, height, down).unfold(3, width, right).flatten(4).cumsum(4)
        reached = sums >= draws.unsqueeze(4) * sums[..., -1:]
        place = reached.to(torch.uint8).argmax(4)  # the first 1
        rows = torch.arange(place.shape[2], device=x.device) * down
        columns = torch.arange(place.shape[3], device=x.device) * right
        index = (rows[:, None] + place // width) * padded.shape[3] + columns + place % width
    drawn = padded.flatten(2).gather(2, index.flatten(2)).view(place.shape)
    return torch.where(reached.any(4), drawn, sums[..., -1] * 0)


def expected_pool(x: Tensor, windows: PoolWindows) -> Tensor:
    """The mean of each window's pixels, weighted by the pixels; 0 where their sum is not above 0."""
    windows = windows.clip_stride(x.shape[2:])
    padded = windows.padded(x, 0)
    sums, squares = (
        F.avg_pool2d(value, windows.kernel, windows.stride, divisor_override=1)
        for value in (padded, padded * padded)
    )
    above = sums > 0
    return torch.where(above, squares / torch.where(above, sums, 1), 0)


def pool_to_onnx(
    graph: OnnxGraph,
    bottom: str,
    tops: Sequence[str],
    windows: PoolWindows,
    method: str,
    sizes: Sequence[int],
) -> None:
    """Nodes that pool `bottom`, of spatial `sizes`, to `tops`; all padding is explicit, without ceil_mode."""
    counts, filled = windows.counts(sizes), windows.filled(sizes)
    ends = windows.ends(sizes, filled)

    def complete(value: str, fill: float, top: str | None) -> str:
        """Append the values of empty windows to those of the other windows."""
        empty = graph.constant(np.array([0] * 6 + [counts[0] - filled[0], counts[1] - filled[1]]))
        return graph.node("Pad", [value, empty, graph.constant(np.array(fill, np.float32))], top and [top])

    geometry = {"kernel_shape": windows.kernel, "strides": windows.stride, "pads": [*windows.pad, *ends]}
    if method == "STOCHASTIC":
        means = [
            graph.node("AveragePool", [value], None, count_include_pad=1, **geometry)
            for value in (bottom, graph.node("Mul", [bottom, bottom]))
        ]
        zero = graph.constant(np.array(0, np.float32))
        ratio = graph.node("Div", [means[1], means[0]])
        above = graph.node("Greater", [means[0], zero])
        value = graph.node("Where", [above, ratio, zero], tops if counts == filled else None)
        if counts != filled:
            complete(value, 0, tops[0])
        return
    if method == "AVE":
        areas = windows.areas(torch.empty(0), sizes)
        factor = windows.kernel[0] * windows.kernel[1] / areas  # the node divides by the whole kernel
        plain = bool((factor == 1).all())
        value = graph.node("AveragePool", [bottom], tops if plain else None, count_include_pad=1, **geometry)
        if not plain:
            value = value if counts == filled else complete(value, 0, None)
            graph.node("Mul", [value, graph.constant(factor)], tops)
        return
    names = list(tops) if counts == filled else [graph.value("filled") for _ in tops]
    if len(tops) == 1:
        graph.node("MaxPool", [bottom], names, **geometry)
    else:
        from onnx import TensorProto  # here, because it is slow to import

        index = graph.value("index")  # counted through the whole blob
        graph.node("MaxPool", [bottom], [names[0], index], **geometry)
        place = graph.node("Mod", [index, graph.constant(np.array(sizes[0] * sizes[1]))])
        graph.node("Cast", [place], names[1:], to=TensorProto.FLOAT)
    if counts != filled:
        for name, fill, top in zip(names, (float(np.finfo(np.float32).min), -1.0), tops, strict=False):
            complete(name, fill, top)


def pool_any_size_to_onnx(
    graph: OnnxGraph, bottom: str, tops: Sequence[str], windows: PoolWindows, ends: Pair, method: str
) -> None:
    """Nodes that pool `bottom`, of free spatial sizes, to `tops`; `ends` is `windows.ends_of_any_size()`."""
    geometry: dict[str, Any] = {"kernel_shape": windows.kernel, "strides": windows.stride}
    pads = [*windows.pad, *ends]
    if method == "AVE":
        # Caffe's divisor counts padding, up to the padded end only. So this padding becomes zeros of the
        # bottom, and what the last windows need beyond it is not counted.
        if all(end <= pad for end, pad in zip(ends, windows.pad, strict=True)):
            graph.node("AveragePool", [bottom], tops, count_include_pad=1, pads=pads, **geometry)
            return
        if any(windows.pad):
            zeros = [0, 0, *windows.pad] * 2
            bottom = graph.node("Pad", [bottom, integers(graph, *zeros)])
            pads = [0, 0, *(max(end - pad, 0) for end, pad in zip(ends, windows.pad, strict=True))]
        graph.node("AveragePool", [bottom], tops, pads=pads, **geometry)
        return
    if method == "STOCHASTIC":
        _expected_to_onnx(
            graph, bottom, tops, lambda value: graph.node(
                "AveragePool", [value], count_include_pad=1, pads=pads, **geometry
            )
        )  # fmt: skip
        return
    if len(tops) == 1:
        graph.node("MaxPool", [bottom], tops, pads=pads, **geometry)
        return
    from onnx import TensorProto  # here, because it is slow to import

    index = f"{tops[1]}@index"  # counted through the whole blob
    graph.node("MaxPool", [bottom], [tops[0], index], pads=pads, **geometry)
    height, width = (sizes_of(graph, bottom, [axis]) for axis in (2, 3))
    place = graph.node("Mod", [index, graph.node("Mul", [height, width])])
    graph.node("Cast", [place], tops[1:], to=TensorProto.FLOAT)


def global_pool_to_onnx(graph: OnnxGraph, bottom: str, tops: Sequence[str], method: str) -> None:
    """Nodes that pool each plane of `bottom`, of free spatial sizes, to one pixel."""
    if method == "AVE":
        graph.node("GlobalAveragePool", [bottom], tops)
    elif method == "STOCHASTIC":
        _expected_to_onnx(graph, bottom, tops, lambda value: graph.node("GlobalAveragePool", [value]))
    else:
        graph.node("GlobalMaxPool", [bottom], tops[:1])
    if len(tops) > 1:
        from onnx import TensorProto  # here, because it is slow to import

        place = graph.node("ArgMax", [reshaped(graph, bottom, [0, 0, -1, 1])], axis=2)
        graph.node("Cast", [place], tops[1:], to=TensorProto.FLOAT)


def _expected_to_onnx(graph: OnnxGraph, bottom: str, tops: Sequence[str], mean: Callable[[str], str]) -> None:
    """Nodes for STOCHASTIC in TEST, of the means of windows of one size: the sums' quotient."""
    means = [mean(value) for value in (bottom, graph.node("Mul", [bottom, bottom]))]
    zero = graph.constant(np.array(0, np.float32))
    above = graph.node("Greater", [means[0], zero])
    graph.node("Where", [above, graph.node("Div", [means[1], means[0]]), zero], tops)


class PoolingMethod(Layer):
    """What Pooling and SPP share: the method that their `pool` names.

    method         MAX, AVE or STOCHASTIC
    device_masks   let a device draw the random numbers itself; may be set on a layer
    on_cpu         compute STOCHASTIC on the CPU, too; the check of an export sets it
    """

    method: str
    device_masks: bool = False
    on_cpu: bool = False
    spoils_in_place = "data"

    @property
    def draws(self) -> bool:
        """Whether the forward pass draws random numbers."""
        return self.method == "STOCHASTIC" and self.phase == TRAIN

    @property
    def capturable(self) -> bool:
        return not self.draws or self.device_masks

    @property
    def repeatable(self) -> bool:
        return not self.draws

    def pool(self, x: Tensor, windows: PoolWindows) -> Tensor:
        """The top of a bottom, without the mask."""
        if not x.numel():
            return x.reshape(*x.shape[:2], *windows.counts(x.shape[2:]))
        if self.method == "MAX":
            return max_pool(x, windows)
        if self.method == "AVE":
            return average_pool(x, windows)
        if x.device.type == "cpu" and not self.on_cpu:
            raise self.error(
                "Not Implemented Yet: pool STOCHASTIC on the CPU; compute on a GPU, or use MAX or AVE"
            )
        if not self.draws:
            return expected_pool(x, windows)
        shape = (*x.shape[:2], *windows.counts(x.shape[2:]))
        if self.device_masks and x.device.type != "cpu":
            return drawn_pool(x, windows, 1 - torch.rand(shape, dtype=x.dtype, device=x.device))
        draws = torch.from_numpy(self.random.uniform(prod(shape), 0, 1)).view(shape)
        return drawn_pool(x, windows, draws.to(x.device, x.dtype, non_blocking=True))

    def check_pad(self, pad: Pair) -> None:
        """LayerError for padding that the method does not support."""
        if self.method == "STOCHASTIC" and any(pad):
            raise self.error(f"Padding implemented only for average and max pooling.; got pad {pad}")


@register_layer("Pooling")
class Pooling(PoolingMethod):
    num_bottoms = 1
    min_tops, max_tops = 1, 2

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        pooling = param.pooling_param
        self.method = pooling.PoolMethod.Name(pooling.pool)
        if len(param.top) > 1 and self.method != "MAX":
            raise self.error(
                f"Pooling Layer produces at most 1 top blob(s) as output.; got {len(param.top)} for "
                f"{self.method}"
            )
        sides = pooling.HasField("kernel_h") and pooling.HasField("kernel_w")
        if pooling.global_pooling:
            if any(pooling.HasField(name) for name in ("kernel_size", "kernel_h", "kernel_w")):
                raise self.error("With Global_pooling: true Filter size cannot specified; remove the kernel")
        elif pooling.HasField("kernel_size") == sides:
            raise self.error("Filter size is kernel_size OR kernel_h and kernel_w; not both, and not neither")
        self._check_pair("pad", "pad is pad OR pad_h and pad_w are required.")
        self._check_pair("stride", "Stride is stride OR stride_h and stride_w are required.")
        kernel = (pooling.kernel_h, pooling.kernel_w) if sides else (pooling.kernel_size,) * 2
        pad = (pooling.pad_h, pooling.pad_w) if pooling.HasField("pad_h") else (pooling.pad,) * 2
        stride = (
            (pooling.stride_h, pooling.stride_w) if pooling.HasField("stride_h") else (pooling.stride,) * 2
        )
        self.fixed = PoolWindows(kernel, stride, pad, self._rounds_down())
        self.decision_top = 1 if len(param.top) > 1 else None
        if pooling.global_pooling:
            if pad != (0, 0) or stride != (1, 1):
                raise self.error(
                    f"With Global_pooling: true; only pad = 0 and stride = 1; got {pad} and {stride}"
                )
            return
        if 0 in kernel:
            raise self.error(f"Filter dimensions cannot be zero.; got {kernel[0]} x {kernel[1]}")
        if 0 in stride:
            raise self.error(f"Stride dimensions cannot be zero.; got {stride[0]} and {stride[1]}")
        if any(pad) and (pad[0] >= kernel[0] or pad[1] >= kernel[1]):
            raise self.error(f"pad must be smaller than the kernel; got pad {pad} and kernel {kernel}")
        self.check_pad(pad)

    def _rounds_down(self) -> bool:
        """What round_mode or ceil_mode say; LayerError where both are written and contradict each other."""
        pooling = self.param.pooling_param
        if not pooling.HasField("ceil_mode"):
            return pooling.round_mode == pooling.FLOOR
        mode = pooling.CEIL if pooling.ceil_mode else pooling.FLOOR
        if pooling.HasField("round_mode") and pooling.round_mode != mode:
            raise self.error(
                f"ceil_mode: {str(pooling.ceil_mode).lower()} is round_mode: {pooling.RoundMode.Name(mode)}, "
                f"and round_mode is {pooling.RoundMode.Name(pooling.round_mode)}; write one of them"
            )
        return mode == pooling.FLOOR

    def _check_pair(self, name: str, message: str) -> None:
        size, height, width = (self.param.pooling_param.HasField(f"{name}{end}") for end in ("", "_h", "_w"))
        if height != width or (size and height):
            raise self.error(message)

    def windows(self, sizes: Sequence[int]) -> PoolWindows:
        """The windows for a bottom of these spatial sizes."""
        if self.param.pooling_param.global_pooling:
            return self.fixed._replace(kernel=(sizes[0], sizes[1]))
        return self.fixed

    def receptive_window(self, bottom_shape: Shape) -> ReceptiveWindow:
        windows = self.windows(bottom_shape[2:])
        return ReceptiveWindow(windows.kernel, tuple(map(Fraction, windows.stride)))

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        if len(shape) != 4:
            raise self.error(
                f"Input must have 4 axes, corresponding to (num, channels, height, width); got {shape}"
            )
        windows = self.windows(shape[2:])
        counts = windows.counts(shape[2:])
        if min(*counts, *shape[2:]) < 1:
            raise self.error(
                f"no window of {windows.kernel[0]} x {windows.kernel[1]} with stride {windows.stride} and "
                f"pad {windows.pad} fits bottom {shape}"
            )
        return [(*shape[:2], *counts)] * len(self.param.top)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        windows = self.windows(x.shape[2:])
        if len(self.param.top) == 1 or not x.numel():
            tops = (self.pool(x, windows),) * len(self.param.top)
            return tops[0] if len(tops) == 1 else (tops[0], tops[0].detach())
        top, mask = max_pool_with_mask(x, windows)
        if self.decided is not None:
            mask = near_ties_as(self.decided, mask.flatten(2), x.flatten(2), 2).reshape(mask.shape)
        return top, mask

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        sizes = graph.shape(bottoms[0])[2:]
        windows = self.windows(sizes)
        if graph.free_axes(bottoms[0]):
            if self.param.pooling_param.global_pooling:
                global_pool_to_onnx(graph, bottoms[0], tops, self.method)
                return
            if (ends := windows.ends_of_any_size()) is not None:
                pool_any_size_to_onnx(graph, bottoms[0], tops, windows, ends, self.method)
                return
        pool_to_onnx(graph, bottoms[0], tops, windows, self.method, sizes)
