"""Xyz: top = scale x + offset, with one learnable offset per channel.

bottom[0], top[0]  (N, C, ...)  any real value
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("Xyz")
class Xyz(Layer):
    num_bottoms = num_tops = 1

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        self.add_blob((bottom_shapes[0][1],), self.param.xyz_param.filler)

    def offset(self, num_axes: int) -> Tensor:
        return self.blob(0).view(-1, *[1] * (num_axes - 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.param.xyz_param.scale * x + self.offset(x.dim())

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        scale = graph.constant(torch.tensor(self.param.xyz_param.scale))
        offset = graph.constant(self.offset(len(graph.shape(bottoms[0]))))
        graph.node("Add", [graph.node("Mul", [bottoms[0], scale]), offset], tops)
