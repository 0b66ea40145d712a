"""ReLU: the rectifier, leaky with a negative_slope.

    top = max(x, 0) + negative_slope * min(x, 0)

bottom[0], top[0]  any shape

Caffe: relu_layer.cpp. Differs: without a negative_slope Caffe makes NaN of -inf, not 0.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from imae.layers.layer import Layer
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("ReLU")
class ReLU(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.negative_slope = param.relu_param.negative_slope
        if param.top[:1] == param.bottom[:1]:
            # Caffe reads the bottom, which is the top here; torch saves the top where there is no slope.
            self.reads_top = not self.negative_slope
            self.reads_bottom = not self.reads_top

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.negative_slope) if self.negative_slope else F.relu(x)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        if self.negative_slope:
            graph.node("LeakyRelu", bottoms, tops, alpha=self.negative_slope)
        else:
            graph.node("Relu", bottoms, tops)
