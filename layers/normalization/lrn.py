"""LRN: divide each value by the energy of its neighbourhood (Krizhevsky et al. 2012, section 3.3).

    ACROSS_CHANNELS   top = x / (k + alpha / size * sum_c' x[c']^2) ^ beta     size channels around c
    WITHIN_CHANNEL    top = x / (1 + alpha * mean_hw x^2) ^ beta               size x size window, zero padded

bottom[0]  (N, C, H, W)
top[0]     (N, C, H, W)

Caffe: lrn_layer.cpp. Differs: Caffe keeps a running sum over the channels, so its float32 values drift a
little from these; ACROSS_CHANNELS in place, it overwrites bottom and top diff before using them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.files.limits import MAX_COUNT
from imae.layers.autograd import apply
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("LRN")
class LRN(Layer):
    num_bottoms = num_tops = 1
    reads_top = reads_bottom = True

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        lrn = param.lrn_param
        if lrn.local_size % 2 == 0:
            raise self.error(f"LRN only supports odd values for local_size; got {lrn.local_size}")
        if lrn.local_size > MAX_COUNT:  # Caffe: a negative int, and so not odd
            raise self.error(f"lrn_param.local_size must be at most {MAX_COUNT}; got {lrn.local_size}")
        self.size, self.alpha, self.beta, self.k = lrn.local_size, lrn.alpha, lrn.beta, lrn.k
        self.within_channel = lrn.norm_region == lrn.WITHIN_CHANNEL
        self.keeps_places = not self.within_channel
        self.spoils_in_place = "" if self.within_channel else "data"

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        if len(shape) != 4:
            raise self.error(
                f"Input must have 4 axes, corresponding to (num, channels, height, width); got {shape}"
            )
        return [shape]

    def forward(self, x: Tensor) -> Tensor:
        if not x.numel():
            return x.clone()
        if self.within_channel:  # Caffe: k is not used here, it is 1
            energy = F.avg_pool2d(x * x, self.size, stride=1, padding=self.size // 2)
            return x * (1 + self.alpha * energy) ** -self.beta
        return apply(_AcrossChannels, x, self)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        if not self.within_channel:
            graph.node("LRN", bottoms, tops, size=self.size, alpha=self.alpha, beta=self.beta, bias=self.k)
            return
        energy = graph.node(
            "AveragePool",
            [graph.node("Mul", [bottoms[0], bottoms[0]])],
            kernel_shape=[self.size] * 2,
            pads=[self.size // 2] * 4,
            count_include_pad=1,
        )
        alpha, one, beta = (graph.constant(np.array(v, np.float32)) for v in (self.alpha, 1, self.beta))
        base = graph.node("Add", [graph.node("Mul", [energy, alpha]), one])
        graph.node("Div", [bottoms[0], graph.node("Pow", [base, beta])], tops)


class _AcrossChannels(torch.autograd.Function):
    """diff = top_diff / base^beta - 2 alpha beta x mean_c' (top_diff top / base), base the bracket above."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: LRN) -> Tensor:
        base = layer.k + layer.alpha * _mean_of_neighbours(x * x, layer.size)
        top = x * base**-layer.beta
        ctx.save_for_backward(x, top, base)
        ctx.layer = layer
        return top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, None]:
        (x, top, base), layer = ctx.saved_tensors, ctx.layer
        ratio = _mean_of_neighbours(top_diff * top / base, layer.size)
        return top_diff * base**-layer.beta - (2 * layer.alpha * layer.beta) * x * ratio, None


def _mean_of_neighbours(x: Tensor, size: int) -> Tensor:
    """Mean over `size` channels around each channel, with zeros before the first and after the last."""
    return F.avg_pool2d(x.flatten(2).unsqueeze(1), (size, 1), 1, (size // 2, 0)).view(x.shape)
