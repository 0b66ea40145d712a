"""Permute: the axes in another order.

    top's axis j is the bottom's axis order[j]; axes that are not named follow, in ascending order

bottom[0]  any shape
top[0]     the same values, moved

SSD (weiliu89/caffe, branch ssd): permute_layer.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("Permute")
class Permute(Layer):
    num_bottoms, num_tops = 1, 1
    spoils_in_place = "data"

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        # A natural order moves nothing: the fork's top shares the bottom's memory.
        count = len(bottom_shapes[0])
        self.shares_memory = self._order(count) == list(range(count))
        if self.shares_memory:
            self.spoils_in_place = ""

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        return [tuple(shape[axis] for axis in self._order(len(shape)))]

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self._order(x.dim())).contiguous()

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        graph.node("Transpose", bottoms, tops, perm=self._order(len(graph.shape(bottoms[0]))))

    def _order(self, num_axes: int) -> list[int]:
        order = list(self.param.permute_param.order)
        if any(axis >= num_axes for axis in order):
            raise self.error(
                f"order should be less than the input dimension.; got {order} for {num_axes} axes"
            )
        if len(set(order)) < len(order):
            raise self.error(f"there are duplicate orders; got {order}")
        return order + [axis for axis in range(num_axes) if axis not in order]
