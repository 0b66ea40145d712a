"""Axpy: top = a x + y, with one a per image and channel.

bottom[0]  a: (N, C) or (N, C, 1, 1)
bottom[1]  x: (N, C, H, W)
bottom[2]  y: the shape of x
top[0]     the shape of x

SENet (hujie-frank/SENet): axpy_layer.cpp.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("Axpy")
class Axpy(Layer):
    num_bottoms, num_tops = 3, 1
    in_place = False

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        a, x, y = (tuple(shape) for shape in bottom_shapes)
        if len(x) != 4 or a not in (x[:2], (*x[:2], 1, 1)):
            raise self.error(
                f"bottom[0] must be (N, C) or (N, C, 1, 1) for a bottom[1] of (N, C, H, W); got {a} and {x}"
            )
        if y != x:
            raise self.error(f"bottom[2] must have the shape of bottom[1], {x}; got {y}")
        return [x]

    def forward(self, a: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return a.reshape(*a.shape[:2], 1, 1) * x + y

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        a, x, y = bottoms
        if len(graph.shape(a)) == 2:
            a = graph.node("Reshape", [a, graph.constant(np.array([0, 0, 1, 1]))])
        graph.node("Add", [graph.node("Mul", [a, x]), y], tops)
