"""BNLL, the binomial normal log likelihood: top = log(1 + exp(x)).

bottom[0], top[0]  any shape

Caffe: bnll_layer.cpp.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from imae.layers.layer import Layer
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("BNLL")
class BNLL(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True
    reads_bottom = True

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x, threshold=50)  # above it top = x; Caffe's gradient has this threshold, too

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        graph.node("Softplus", bottoms, tops)
