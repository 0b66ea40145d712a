"""MVN: each image, or each of its channels, to mean 0 and standard deviation 1.

    top  = (x - mean) / (s + eps)          s = sqrt(mean of (x - mean)^2)
    diff = (top_diff - mean(top_diff) - top mean(top_diff top)) / (s + eps)

The means run over height and width, with across_channels over the channels, too. The gradient uses top in
place of (x - mean) / s, so it is finite where s is 0. Without normalize_variance top = x - mean.

bottom[0]  (N, C, H, W); trailing axes may be missing
top[0]     (N, C, H, W), always four axes

Caffe: mvn_layer.cpp. Differs: in place and with normalize_variance, Caffe overwrites the top's diff before
using it.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("MVN")
class MVN(Layer):
    num_bottoms = num_tops = 1
    reads_top = True

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        mvn = param.mvn_param
        self.normalize_variance, self.across_channels = mvn.normalize_variance, mvn.across_channels
        self.eps = mvn.eps
        self.spoils_in_place = "diff" if self.normalize_variance else ""

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        if len(shape) > 4:
            raise self.error(f"the bottom must have at most 4 axes; got {shape}")
        return [(*shape, *[1] * (4 - len(shape)))]

    def forward(self, x: Tensor) -> Tensor:
        shape = self.top_shapes([tuple(x.shape)])[0]
        first = 1 if self.across_channels else 2
        rows = x.reshape(shape[0], prod(shape[1:first]), prod(shape[first:]))
        if self.normalize_variance:
            top = apply(_Normalize, rows, self.eps)
        else:
            top = rows - rows.mean(2, keepdim=True)
        return top.reshape(shape)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        shape = self.top_shapes([graph.shape(bottoms[0])])[0]
        size = prod(shape[1:]) if self.across_channels else prod(shape[2:])
        free = graph.free_axes(bottoms[0])
        sizes = [0, prod(shape[1:]) // size, -1] if free else [-1, prod(shape[1:]) // size, size]
        rows = graph.node("Reshape", [bottoms[0], graph.constant(np.array(sizes))])
        value = graph.node("Sub", [rows, graph.node("GlobalAveragePool", [rows])])
        if self.normalize_variance:
            variance = graph.node("GlobalAveragePool", [graph.node("Mul", [value, value])])
            eps = graph.constant(np.array(self.eps, np.float32))
            value = graph.node("Div", [value, graph.node("Add", [graph.node("Sqrt", [variance]), eps])])
        if free:
            graph.node("Reshape", [value, graph.node("Shape", [bottoms[0]])], tops)
        else:
            graph.node("Reshape", [value, graph.constant(np.array([-1, *shape[1:]]))], tops)


class _Normalize(torch.autograd.Function):
    """Rows (the last axis) to mean 0 and standard deviation 1, with Caffe's gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, eps: float) -> Tensor:
        centred = rows - rows.mean(-1, keepdim=True)
        deviation = centred.square().mean(-1, keepdim=True).sqrt() + eps
        top = centred / deviation
        ctx.save_for_backward(top, deviation)
        return top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, None]:
        top, deviation = ctx.saved_tensors
        projection = (top_diff * top).mean(-1, keepdim=True)
        return (top_diff - top_diff.mean(-1, keepdim=True) - top * projection) / deviation, None
