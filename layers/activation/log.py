"""Log: top = log of (shift + scale x) to `base`; base -1, the default, means e.

bottom[0], top[0]  any shape

Caffe: log_layer.cpp. Differs: in place, Caffe overwrites the top's diff before using it; here the
gradient is the derivative.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.activation.exp import log_of_base
from imae.layers.autograd import apply
from imae.layers.layer import Layer
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("Log")
class Log(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True
    spoils_in_place = "diff"

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        log = param.log_param
        log_base = log_of_base(self, log.base)
        if log_base == 0:
            raise self.error("Inf result: 1/log(base) = 1/log(1) = inf; base must not be 1")
        self.scale, self.shift, self.factor = log.scale, log.shift, 1 / log_base

    def forward(self, x: Tensor) -> Tensor:
        return apply(_Log, x, self)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        scale, shift, factor = (
            graph.constant(np.array(v, np.float32)) for v in (self.scale, self.shift, self.factor)
        )
        inner = graph.node("Add", [graph.node("Mul", [bottoms[0], scale]), shift])
        graph.node("Mul", [graph.node("Log", [inner]), factor], tops)


class _Log(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Log) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer = layer
        return torch.log(x * layer.scale + layer.shift) * layer.factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, None]:
        (x,), layer = ctx.saved_tensors, ctx.layer
        return top_diff * (layer.factor * layer.scale) / (x * layer.scale + layer.shift), None
