"""PReLU: a rectifier that learns its slope for negative values (He et al. 2015).

    top = max(x, 0) + slope[c] * min(x, 0)

At 0 the gradient is the slope.

bottom[0], top[0]  (N, C, ...), 2 to 4 axes
blobs              slope (C), with channel_shared (); 0.25 without a filler

Caffe: prelu_layer.cpp.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import FillerParameter


@register_layer("PReLU")
class PReLU(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True
    blob_names = ("weight",)

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        self.top_shapes(bottom_shapes)
        prelu = self.param.prelu_param
        filler = prelu.filler if prelu.HasField("filler") else FillerParameter(type="constant", value=0.25)
        self.add_blob(() if prelu.channel_shared else (bottom_shapes[0][1],), filler)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        if len(shape) < 2:
            raise self.error(f"Number of axes of bottom blob must be >=2.; got {shape}")
        if len(shape) > 4:
            raise self.error(f"the bottom must have at most 4 axes; got {shape}")
        if self.blob_shapes and self.blob_shapes[0] not in ((), (shape[1],)):
            raise self.error(f"bottom {shape} must have {self.blob_shapes[0][0]} channels on axis 1")
        return [shape]

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.blob(0).reshape(-1))

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        spatial = len(graph.shape(bottoms[0])) - 2
        slope = graph.constant(self.blob(0).reshape(-1, *[1] * spatial), blob=0)
        graph.node("PRelu", [bottoms[0], slope], tops)
