"""Parameter: a parameter blob as a top.

top[0]  parameter_param.shape
blobs   that blob, 0 at the start

Caffe: parameter_layer.hpp.
"""

from collections.abc import Sequence

from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import FillerParameter


@register_layer("Parameter")
class Parameter(Layer):
    num_bottoms = 0
    num_tops = 1
    blob_names = ("parameter",)

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        self.add_blob(self._shape(), FillerParameter())  # the default fills with 0 and draws nothing

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [self._shape()]

    def forward(self) -> Tensor:
        blob = self.blob(0)
        return blob.view_as(blob)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        graph.node("Identity", [graph.constant(self.blob(0), blob=0)], tops)

    def _shape(self) -> Shape:
        return tuple(self.param.parameter_param.shape.dim)
