"""Reduction: all axes from `axis` on are reduced to one number.

    SUM    top = coeff * sum x
    ASUM   top = coeff * sum |x|      (gradient 0 where x is 0)
    SUMSQ  top = coeff * sum x^2
    MEAN   top = coeff * mean x

bottom[0]  (..., d_axis, ..., d_last); axis is 0 by default
top[0]     (...), the axes before `axis`

Caffe: reduction_layer.cpp.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("Reduction")
class Reduction(Layer):
    num_bottoms = num_tops = 1

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.operation, self.coeff = param.reduction_param.operation, param.reduction_param.coeff

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [bottom_shapes[0][: self._axis(len(bottom_shapes[0]))]]

    def forward(self, x: Tensor) -> Tensor:
        reduction = self.param.reduction_param
        x = x.flatten(self._axis(x.dim()))
        if self.operation == reduction.ASUM:
            x = x.abs()
        elif self.operation == reduction.SUMSQ:
            x = x * x
        top = x.mean(-1) if self.operation == reduction.MEAN else x.sum(-1)
        return top if self.coeff == 1 else top * self.coeff

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        reduction = self.param.reduction_param
        axis, x = self._axis(len(graph.shape(bottoms[0]))), bottoms[0]
        if self.operation == reduction.ASUM:
            x = graph.node("Abs", [x])
        elif self.operation == reduction.SUMSQ:
            x = graph.node("Mul", [x, x])
        if self.coeff != 1:
            x = graph.node("Mul", [x, graph.constant(np.array([self.coeff], np.float32))])
        x = graph.node("Reshape", [x, graph.constant(np.array([0] * axis + [-1]))])
        if self.operation != reduction.MEAN:
            graph.node("ReduceSum", [x, graph.constant(np.array([axis]))], tops, keepdims=0)
        elif graph.opset < 18:
            graph.node("ReduceMean", [x], tops, axes=[axis], keepdims=0)
        else:
            graph.node("ReduceMean", [x, graph.constant(np.array([axis]))], tops, keepdims=0)

    def _axis(self, num_axes: int) -> int:
        return self.canonical_axis(self.param.reduction_param.axis, num_axes)
