"""Normalize of NormFace: each position of an image is divided by the norm over its channels.

    L2   norm = sqrt(sum over c of x_c^2 + 1e-6)      L1   norm = sum over c of |x_c| + 1e-6
    top  = x / norm

The gradient is the derivative; that of the second top counts only with bp_norm. fix_gradient: the gradient
is not divided by the norm.

bottom[0]  (N, C, H, W); fewer axes are completed by axes of size 1
top[0]     (N, C, H, W)
top[1]     optional: (N, 1, H, W), the norm

caffe-windows (happynear/caffe-windows): normalize_layer.cpp. Of SSD's layer of this name normalize_param
tells it apart. Differs: fix_gradient also works on the CPU, as it does on a GPU there; on a GPU, too, 1e-6 is
added for L2 (there it is 1e-12).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.prototxt import LayerParameter

EPS = 1e-6


class NormFaceNormalize(Layer):
    num_bottoms = 1
    min_tops, max_tops = 1, 2
    reads = ("normalize_param",)

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        normalize = param.normalize_param
        if normalize.normalize_type not in ("L1", "L2"):
            raise self.error(f"normalize_type must be L1 or L2; got {normalize.normalize_type!r}")
        self.power = 1 if normalize.normalize_type == "L1" else 2
        if normalize.bp_norm and len(param.top) < 2:
            self.note_leftover("normalize_param.bp_norm")

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        if not 1 <= len(shape) <= 4:
            raise self.error(f"the bottom must have 1 to 4 axes; it is {shape}")
        top = (*shape, 1, 1, 1)[:4]
        return [top, (top[0], 1, *top[2:])][: len(self.param.top)]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        normalize = self.param.normalize_param
        x = x.reshape((*x.shape, 1, 1, 1)[:4])
        if self.power == 2:
            norm = (x.square().sum(1, keepdim=True) + EPS).sqrt()
        else:
            norm = x.abs().sum(1, keepdim=True) + EPS
        if normalize.fix_gradient:
            top = apply(_Undivided, x, norm.detach(), self.power)
        else:
            top = x / norm
        return top if len(self.param.top) == 1 else (top, norm if normalize.bp_norm else norm.detach())

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        x = bottoms[0]
        if missing := 4 - len(graph.shape(x)):
            x = graph.node("Unsqueeze", [x, graph.constant(np.arange(4 - missing, 4))])
        channels = graph.constant(np.array([1]))
        terms = graph.node("Mul", [x, x]) if self.power == 2 else graph.node("Abs", [x])
        norm = [graph.node("ReduceSum", [terms, channels]), graph.constant(np.array([EPS], np.float32))]
        if self.power == 2:
            root = graph.node("Sqrt", [graph.node("Add", norm)], tops[1:] or None)
        else:
            root = graph.node("Add", norm, tops[1:] or None)
        graph.node("Div", [x, root], tops[:1])


class _Undivided(torch.autograd.Function):
    """x / norm, whose gradient is not divided by the norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, power: int) -> Tensor:
        top = x / norm
        ctx.save_for_backward(top)
        ctx.power = power
        return top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, None, None]:
        (top,) = ctx.saved_tensors
        along = (top * top_diff).sum(1, keepdim=True)
        return top_diff - (top if ctx.power == 2 else top.sign()) * along, None, None
