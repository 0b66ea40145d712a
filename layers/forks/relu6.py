"""ReLU6: the rectifier, limited to 6.

    top = min(max(x, 0) + negative_slope * min(x, 0), 6)

The gradient is 0 at 6, and negative_slope at 0.

bottom[0], top[0]  any shape

chuanqi305/ssd, which has no negative_slope, and eric612/MobileNet-YOLO: relu6_layer.cpp.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imae.layers.layer import Layer
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("ReLU6")
class ReLU6(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True
    reads_bottom = True

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.negative_slope = param.relu6_param.negative_slope

    def forward(self, x: Tensor) -> Tensor:
        if not self.negative_slope:
            return F.relu6(x)
        top = F.leaky_relu(x, self.negative_slope)
        return torch.where(top >= 6, 6, top)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        six = graph.constant(np.array(6, np.float32))
        if self.negative_slope:
            leaky = graph.node("LeakyRelu", bottoms, alpha=self.negative_slope)
            graph.node("Clip", [leaky, "", six], tops)
        else:
            graph.node("Clip", [*bottoms, graph.constant(np.array(0, np.float32)), six], tops)
