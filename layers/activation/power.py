"""Power: top = (shift + scale x) ^ power.

Where power or scale is 0 the top is constant, whatever the bottom holds, and sends no gradient.

bottom[0], top[0]  any shape

Caffe: power_layer.cpp. Differs: the gradient, power * scale * top / base, is NaN in Caffe where the base is 0
(except for power 1 and 2); in place, unless power or scale is 0, Caffe overwrites the top's diff before using
it. Here the gradient is the derivative.
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


@register_layer("Power")
class Power(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True
    reads_top = True

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        power = param.power_param
        self.power, self.scale, self.shift = power.power, power.scale, power.shift
        self.spoils_in_place = "diff" if self.power * self.scale else ""

    def forward(self, x: Tensor) -> Tensor:
        if self.power == 0 or self.scale == 0:
            return torch.full_like(x, self.shift) ** self.power
        if self.power == 1:
            return x * self.scale + self.shift
        return apply(_Power, x, self)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        if self.power == 0 or self.scale == 0:
            value = graph.constant(torch.tensor(self.shift) ** self.power)
            graph.node("Expand", [value, graph.node("Shape", bottoms)], tops)
            return
        x = bottoms[0]
        for operator, number, neutral in (
            ("Mul", self.scale, 1),
            ("Add", self.shift, 0),
            ("Pow", self.power, 1),
        ):
            if number != neutral:
                x = graph.node(operator, [x, graph.constant(np.array(number, np.float32))])
        graph.node("Identity", [x], tops)


class _Power(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Power) -> Tensor:
        top = (x * layer.scale + layer.shift) ** layer.power
        ctx.save_for_backward(x, top)
        ctx.layer = layer
        return top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, None]:
        (x, top), layer = ctx.saved_tensors, ctx.layer
        base = x * layer.scale + layer.shift
        if layer.power == 2:
            slope = base
        else:
            slope = torch.where(base == 0, base ** (layer.power - 1), top / base)
        return top_diff * slope * (layer.power * layer.scale), None
