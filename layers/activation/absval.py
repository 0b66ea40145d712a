"""AbsVal: top = |x|; the gradient at 0 is 0.

bottom[0], top[0]  any shape, not in place

Caffe: absval_layer.cpp.
"""

from collections.abc import Sequence

from torch import Tensor

from imae.layers.layer import Layer
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("AbsVal")
class AbsVal(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True
    in_place = False

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        graph.node("Abs", bottoms, tops)
