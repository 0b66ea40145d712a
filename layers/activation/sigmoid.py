"""Sigmoid: top = 1 / (1 + exp(-x)).

bottom[0], top[0]  any shape

Caffe: sigmoid_layer.cpp.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from imae.layers.layer import Layer
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("Sigmoid")
class Sigmoid(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True
    reads_top = True

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        graph.node("Sigmoid", bottoms, tops)
