"""Im2col: the patch under every position of a convolution window, laid out along the channel axis.

    top[n, (c, i, j), y, x] = bottom[n, c, y s + i d - p, x s + j d - p], 0 outside the bottom

bottom[0]  (..., C, H, W); one or more spatial axes after the channel axis
top[0]     (..., C * kernel_h * kernel_w, H', W'), H' and W' as in Convolution

convolution_param gives axis, kernel, stride, pad and dilation.

Caffe: im2col_layer.cpp. Differs: stride 0, dilation 0 and a top without pixels are errors.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.layers.vision.conv import Windows, read_windows
from imae.prototxt import LayerParameter


@register_layer("Im2col")
class Im2col(Layer):
    num_bottoms = num_tops = 1
    reads = ("convolution_param",)

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        for name in ("num_output", "bias_term", "group", "weight_filler", "bias_filler"):
            if param.convolution_param.HasField(name):
                self.note_leftover(f"convolution_param.{name}")

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        axes = len(bottom_shapes[0])
        spatial = axes - 1 - self.canonical_axis(self.param.convolution_param.axis, axes)
        if spatial < 1:
            raise self.error(
                f"there must be spatial axes behind the channel axis; bottom is {bottom_shapes[0]}"
            )
        self.windows: Windows = read_windows(self, spatial)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        axis = len(shape) - 1 - len(self.windows.kernel)
        if axis != self.canonical_axis(self.param.convolution_param.axis, len(shape)):
            raise self.error(f"bottom num_axes may not change.; got {shape}")
        counts = self.windows.counts(shape[axis + 1 :])
        if 0 in counts:
            raise self.error(
                f"windows of {self.windows.extent} do not fit bottom {shape} with pad {self.windows.pad}"
            )
        return [(*shape[:axis], shape[axis] * prod(self.windows.kernel), *counts)]

    def forward(self, x: Tensor) -> Tensor:
        windows, spatial = self.windows, len(self.windows.kernel)
        first = x.dim() - spatial
        top_shape = self.top_shapes([tuple(x.shape)])[0]
        counts = windows.counts(x.shape[first:])
        x = F.pad(x, [n for begin, end in reversed(self._padding(x.shape[first:])) for n in (begin, end)])
        for i in range(spatial):  # (..., size, ...) becomes (..., kernel, count, ...)
            index = self._index(i, counts[i], x.device)
            x = x.index_select(first + 2 * i, index.flatten())
            x = x.reshape(*x.shape[: first + 2 * i], *index.shape, *x.shape[first + 2 * i + 1 :])
        return x.permute(self._order(first)).reshape(top_shape)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        shape = graph.shape(bottoms[0])
        first = len(shape) - len(self.windows.kernel)
        counts = self.windows.counts(shape[first:])
        padding = self._padding(shape[first:])
        ends = [*[0] * first, *(p for p, _ in padding), *[0] * first, *(end for _, end in padding)]
        x = graph.node("Pad", [bottoms[0], graph.constant(np.array(ends))])
        for i, count in enumerate(counts):
            x = graph.node("Gather", [x, graph.constant(self._index(i, count))], axis=first + 2 * i)
        x = graph.node("Transpose", [x], perm=self._order(first))
        graph.node("Reshape", [x, graph.constant(np.array([-1, *self.top_shapes([shape])[0][1:]]))], tops)

    def _padding(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Zeros before and after each spatial axis."""
        return [(p, p + end) for p, end in zip(self.windows.pad, self.windows.overhang(sizes), strict=True)]

    def _index(self, axis: int, count: int, device: torch.device | None = None) -> Tensor:
        """The position on the padded axis that each kernel position (row) of each window (column) reads."""
        places = torch.arange(self.windows.kernel[axis], device=device) * self.windows.dilation[axis]
        return places[:, None] + torch.arange(count, device=device) * self.windows.stride[axis]

    def _order(self, first: int) -> list[int]:
        """The axes of (..., C, k1, count1, k2, count2, ...): first all kernel axes, then all counts."""
        end = first + 2 * len(self.windows.kernel)
        return [*range(first), *range(first, end, 2), *range(first + 1, end, 2)]
