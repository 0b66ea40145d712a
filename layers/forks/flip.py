"""Flip: mirrors images: the columns (flip_width, the default), the rows (flip_height), or both.

bottom[0], top[0]  (N, C, H, W); fewer axes are completed by axes of size 1, which nothing mirrors

caffe-windows (happynear/caffe-windows): flip_layer.cpp. Differs: in place, the fork overwrites the bottom
before it has read it.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("Flip")
class Flip(Layer):
    num_bottoms = num_tops = 1
    spoils_in_place = "data"

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        if len(bottom_shapes[0]) > 4:
            raise self.error(f"the bottom must have at most 4 axes; it is {tuple(bottom_shapes[0])}")
        return super().top_shapes(bottom_shapes)

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(self._axes(x.dim()))

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        axes = self._axes(len(graph.shape(bottoms[0])))
        if not axes:
            graph.node("Identity", bottoms, tops)
            return
        last, first = np.full(len(axes), -1), np.full(len(axes), np.iinfo(np.int64).min + 1)
        ends = [graph.constant(values) for values in (last, first, np.array(axes), last)]
        graph.node("Slice", [*bottoms, *ends], tops)

    def _axes(self, num_axes: int) -> list[int]:
        flip = self.param.flip_param
        asked = [(2, flip.flip_height), (3, flip.flip_width)]
        return [axis for axis, mirrored in asked if mirrored and axis < num_axes]
