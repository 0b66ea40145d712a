"""Threshold: top = 1 where x > threshold, else 0; no gradient.

bottom[0], top[0]  any shape

Caffe: threshold_layer.cpp. Differs: a backward pass through it aborts Caffe.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from imae.layers.layer import Layer
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("Threshold")
class Threshold(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True

    def forward(self, x: Tensor) -> Tensor:
        return (x > self.param.threshold_param.threshold).to(x.dtype)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        from onnx import TensorProto  # here, because it is slow to import

        threshold = graph.constant(np.array(self.param.threshold_param.threshold, np.float32))
        graph.node("Cast", [graph.node("Greater", [bottoms[0], threshold])], tops, to=TensorProto.FLOAT)
