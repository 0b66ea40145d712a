"""Split: one copy of the bottom for each of its readers; their gradients are added. The net inserts it.

bottom[0]  any shape
top[0..]   the same shape, the same memory

Caffe: split_layer.cpp.
"""

from collections.abc import Sequence

from torch import Tensor

from imae.layers.layer import Layer
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("Split")
class Split(Layer):
    num_bottoms = 1
    min_tops = 1
    keeps_places = True
    in_place = False
    shares_memory = True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for _ in self.param.top)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        for top in tops:
            graph.node("Identity", bottoms, [top])
