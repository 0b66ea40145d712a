"""Swish: top = x sigmoid(beta x) (Ramachandran et al. 2017).

bottom[0], top[0]  any shape

Caffe: swish_layer.cpp.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.layer import Layer
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("Swish")
class Swish(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True
    reads_top = True

    def forward(self, x: Tensor) -> Tensor:
        return apply(_Swish, x, self.param.swish_param.beta)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        beta = graph.constant(np.array(self.param.swish_param.beta, np.float32))
        gate = graph.node("Sigmoid", [graph.node("Mul", [bottoms[0], beta])])
        graph.node("Mul", [bottoms[0], gate], tops)


class _Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, beta: float) -> Tensor:
        gate = torch.sigmoid(x * beta)
        top = x * gate
        ctx.save_for_backward(top, gate)
        ctx.beta = beta
        return top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, None]:
        top, gate = ctx.saved_tensors
        return top_diff * (gate + ctx.beta * top * (1 - gate)), None
