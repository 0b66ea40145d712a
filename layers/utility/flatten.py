"""Flatten: the axes `axis` to `end_axis`, both included, become one.

bottom[0]  any shape; axis is 1 and end_axis the last by default
top[0]     the same values in memory order

Caffe: flatten_layer.cpp.
"""

from collections.abc import Sequence
from math import prod

from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.onnx_sizes import parts_of, reshaped
from imae.layers.registry import register_layer


@register_layer("Flatten")
class Flatten(Layer):
    num_bottoms = num_tops = 1
    in_place = False
    shares_memory = True

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        start, end = self._range(len(shape))
        return [(*shape[:start], prod(shape[start:end]), *shape[end:])]

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(self.top_shapes([tuple(x.shape)])[0])

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        shape = graph.shape(bottoms[0])
        start, end = self._range(len(shape))
        # 0 keeps the size of an axis, -1 is inferred: so the batch size stays open.
        trailing = parts_of(graph, bottoms[0], range(end, len(shape)))
        reshaped(graph, bottoms[0], [*[0] * start, -1, *trailing], tops)

    def _range(self, num_axes: int) -> tuple[int, int]:
        """First axis, and the end (exclusive)."""
        flatten = self.param.flatten_param
        start = self.canonical_axis(flatten.axis, num_axes)
        end = self.canonical_axis(flatten.end_axis, num_axes) + 1
        if start > end:
            raise self.error(f"flatten_param: axis {start} lies behind end_axis {end - 1}")
        return start, end
