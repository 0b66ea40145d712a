"""Tile: the bottom, repeated `tiles` times along `axis`.

bottom[0]  any shape; axis is 1 by default
top[0]     the same but for `axis`, which is `tiles` times as long

Caffe: tile_layer.cpp.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("Tile")
class Tile(Layer):
    num_bottoms = num_tops = 1

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        if not param.tile_param.HasField("tiles"):
            raise self.error("Number of tiles must be specified; give tile_param.tiles")
        if param.tile_param.tiles < 1:
            raise self.error(f"Number of tiles must be positive.; got {param.tile_param.tiles}")

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        times = self._times(len(shape))
        return [tuple(size * count for size, count in zip(shape, times, strict=True))]

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(self._times(x.dim()))

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        times = np.array(self._times(len(graph.shape(bottoms[0]))))
        graph.node("Tile", [bottoms[0], graph.constant(times)], tops)

    def _times(self, num_axes: int) -> list[int]:
        """Number of repetitions along each axis."""
        tile = self.param.tile_param
        times = [1] * num_axes
        times[self.canonical_axis(tile.axis, num_axes)] = tile.tiles
        return times
