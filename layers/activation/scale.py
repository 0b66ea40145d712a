"""Scale: multiply by a blob, learned or given, along some of the axes; then optionally add a bias.

    top[.., i_axis, .., i_end, ..] = x[.., i_axis, .., i_end, ..] * scale[i_axis, .., i_end] (+ bias[..])

bottom[0], top[0]  any shape
bottom[1]          optional: the scale, its axes equal to bottom[0]'s from `axis` on; it gets a gradient
blobs              without bottom[1]: the scale, of bottom[0]'s sizes on num_axes axes (-1: all) from `axis`
                   on, 1 without a filler; with bias_term a bias of the scale's shape

Caffe: scale_layer.cpp.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from imae.layers.activation.bias import aligned, aligned_onnx, check_operand, operand_shape
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import FillerParameter, LayerParameter


@register_layer("Scale")
class Scale(Layer):
    min_bottoms, max_bottoms = 1, 2
    num_tops = 1
    keeps_places = True

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.axis, self.has_bias = param.scale_param.axis, param.scale_param.bias_term

    def blob_name(self, index: int) -> str:
        return super().blob_name(index if len(self.param.bottom) == 1 else index + 1)  # the scale is a bottom

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        scale = self.param.scale_param
        if len(bottom_shapes) > 1:
            shape = bottom_shapes[1]
        else:
            shape = operand_shape(self, "scale", scale, bottom_shapes[0])
            one = FillerParameter(type="constant", value=1)
            self.add_blob(shape, scale.filler if scale.HasField("filler") else one)
        if self.has_bias:
            check_operand(self, "bias", self.axis, bottom_shapes[0], shape)
            self.add_blob(shape, scale.bias_filler)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        operand = bottom_shapes[1] if len(bottom_shapes) > 1 else self.blob_shapes[0]
        check_operand(self, "scale", self.axis, bottom_shapes[0], operand)
        if self.has_bias:
            check_operand(self, "bias", self.axis, bottom_shapes[0], self.blob_shapes[-1])
        return [bottom_shapes[0]]

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        factor = aligned(self.blob(0) if scale is None else scale, self.axis, x.dim())
        if not self.has_bias:
            return x * factor
        return torch.addcmul(aligned(self.blob(len(self.blobs) - 1), self.axis, x.dim()), x, factor)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        num_axes = len(graph.shape(bottoms[0]))
        if len(bottoms) > 1:
            factor = aligned_onnx(graph, bottoms, self.axis)
        else:
            factor = graph.constant(aligned(self.blob(0), self.axis, num_axes), blob=0)
        if not self.has_bias:
            graph.node("Mul", [bottoms[0], factor], tops)
            return
        last = len(self.blobs) - 1
        bias = graph.constant(aligned(self.blob(last), self.axis, num_axes), blob=last)
        graph.node("Add", [graph.node("Mul", [bottoms[0], factor]), bias], tops)
