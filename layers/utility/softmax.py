"""Softmax: exponentials along `axis`, divided by their sum.

    top_j = exp(x_j - max x) / sum_k exp(x_k - max x)

bottom[0], top[0]  any shape; axis is 1 by default

Caffe: softmax_layer.cpp.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("Softmax")
class Softmax(Layer):
    num_bottoms = num_tops = 1
    reads_top = True

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        self._axis(len(bottom_shapes[0]))
        return [bottom_shapes[0]]

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, self._axis(x.dim()))

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        graph.node("Softmax", bottoms, tops, axis=self._axis(len(graph.shape(bottoms[0]))))

    def _axis(self, num_axes: int) -> int:
        return self.canonical_axis(self.param.softmax_param.axis, num_axes)
