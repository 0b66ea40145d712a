"""TanH: top = (exp(2x) - 1) / (exp(2x) + 1).

bottom[0], top[0]  any shape

Caffe: tanh_layer.cpp.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from imae.layers.layer import Layer
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("TanH")
class TanH(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True
    reads_top = True

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        graph.node("Tanh", bottoms, tops)
