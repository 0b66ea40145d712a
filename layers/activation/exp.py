"""Exp: top = base ^ (shift + scale x); base -1, the default, means e.

bottom[0], top[0]  any shape

Caffe: exp_layer.cpp.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imae.layers.layer import Layer
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


def log_of_base(layer: Layer, base: float) -> float:
    """The natural logarithm of the base of an Exp or Log layer."""
    if base == -1:
        return 1
    if not 0 < base < math.inf:
        raise layer.error(f"base must be strictly positive and finite, or -1 for e.; got {base:g}")
    return math.log(base)


@register_layer("Exp")
class Exp(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True
    reads_top = True

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        log_base = log_of_base(self, param.exp_param.base)
        # top = exp(scale x + shift)
        self.scale, self.shift = log_base * param.exp_param.scale, log_base * param.exp_param.shift

    def forward(self, x: Tensor) -> Tensor:
        if self.scale != 1:
            x = x * self.scale
        if self.shift != 0:
            x = x + self.shift
        return torch.exp(x)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        scale, shift = (graph.constant(np.array(v, np.float32)) for v in (self.scale, self.shift))
        graph.node("Exp", [graph.node("Add", [graph.node("Mul", [bottoms[0], scale]), shift])], tops)
