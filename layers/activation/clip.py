"""Clip: top = max(min, min(x, max)); the gradient passes where min <= x <= max, the edges included.

bottom[0], top[0]  any shape

Caffe: clip_layer.cpp. Differs: NaN stays NaN, where Caffe makes min of it.
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
from imae.prototxt import LayerParameter


@register_layer("Clip")
class Clip(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True
    reads_bottom = True

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.min, self.max = param.clip_param.min, param.clip_param.max

    def forward(self, x: Tensor) -> Tensor:
        return apply(_Clip, x, self.min, self.max)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        low, high = (graph.constant(np.array(v, np.float32)) for v in (self.min, self.max))
        graph.node("Max", [graph.node("Min", [bottoms[0], high]), low], tops)


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limits = low, high
        return x.clamp(max=high).clamp(min=low)  # one after the other: min wins where it is above max

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high) = ctx.saved_tensors, ctx.limits
        return top_diff * ((x >= low) & (x <= high)), None, None
