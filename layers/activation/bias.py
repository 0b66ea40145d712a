"""Bias: add a blob, learned or given, along some of the axes.

    top[.., i_axis, .., i_end, ..] = x[.., i_axis, .., i_end, ..] + bias[i_axis, .., i_end]

bottom[0], top[0]  any shape
bottom[1]          optional: the bias, its axes equal to bottom[0]'s from `axis` on; it gets a gradient
blobs              without bottom[1]: the bias, of bottom[0]'s sizes on num_axes axes (-1: all) from `axis` on

Caffe: bias_layer.cpp.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt.caffe_pb2 import BiasParameter, ScaleParameter


def operand_shape(layer: Layer, kind: str, param: BiasParameter | ScaleParameter, bottom: Shape) -> Shape:
    """Shape of the learned operand (`kind`: bias or scale) for a bottom."""
    axis = layer.canonical_axis(param.axis, len(bottom))
    if param.num_axes < -1:
        raise layer.error(
            f"num_axes must be non-negative, or -1 to extend to the end of bottom[0]; got {param.num_axes}"
        )
    end = len(bottom) if param.num_axes == -1 else axis + param.num_axes
    if end > len(bottom):
        raise layer.error(
            f"{kind} blob's shape extends past bottom[0]'s shape when applied starting with bottom[0] "
            f"axis = {axis}; got num_axes {param.num_axes} for {bottom}"
        )
    return bottom[axis:end]


def check_operand(layer: Layer, kind: str, axis: int, bottom: Shape, operand: Shape) -> None:
    """LayerError unless the operand's axes are the bottom's from `axis` on."""
    axis = layer.canonical_axis(axis, len(bottom)) if operand else 0
    if axis + len(operand) > len(bottom):
        raise layer.error(
            f"{kind} blob's shape extends past bottom[0]'s shape when applied starting with bottom[0] "
            f"axis = {axis}; got {kind} {operand} for {bottom}"
        )
    for i, size in enumerate(operand):
        if bottom[axis + i] != size:
            raise layer.error(
                f"dimension mismatch between bottom[0]->shape({axis + i}) and {kind}->shape({i}); "
                f"got {bottom[axis + i]} and {size}"
            )


def aligned(operand: Tensor, axis: int, num_axes: int) -> Tensor:
    """The operand with trailing axes of size 1, so that it broadcasts to `num_axes` axes from `axis` on."""
    trailing = num_axes - axis % num_axes - operand.dim() if operand.dim() else 0
    return operand.reshape(*operand.shape, *[1] * trailing) if trailing else operand


def aligned_onnx(graph: OnnxGraph, bottoms: Sequence[str], axis: int) -> str:
    """`aligned` for the value bottoms[1], to broadcast to bottoms[0]."""
    operand_axes, num_axes = len(graph.shape(bottoms[1])), len(graph.shape(bottoms[0]))
    trailing = num_axes - axis % num_axes - operand_axes if operand_axes else 0
    if not trailing:
        return bottoms[1]
    return graph.node("Reshape", [bottoms[1], graph.constant(np.array([0] * operand_axes + [1] * trailing))])


@register_layer("Bias")
class Bias(Layer):
    min_bottoms, max_bottoms = 1, 2
    num_tops = 1
    keeps_places = True
    blob_names = ("bias",)

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        if len(bottom_shapes) == 1:
            bias = self.param.bias_param
            self.add_blob(operand_shape(self, "bias", bias, bottom_shapes[0]), bias.filler)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        operand = bottom_shapes[1] if len(bottom_shapes) > 1 else self.blob_shapes[0]
        check_operand(self, "bias", self.param.bias_param.axis, bottom_shapes[0], operand)
        return [bottom_shapes[0]]

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return x + aligned(self.blob(0) if bias is None else bias, self.param.bias_param.axis, x.dim())

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        axis = self.param.bias_param.axis
        if len(bottoms) > 1:
            bias = aligned_onnx(graph, bottoms, axis)
        else:
            bias = graph.constant(aligned(self.blob(0), axis, len(graph.shape(bottoms[0]))), blob=0)
        graph.node("Add", [bottoms[0], bias], tops)
