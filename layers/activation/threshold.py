"""Threshold: top = 1 where x > threshold, else 0.

bottom[0], top[0]  any shape

There is no gradient: a backward pass that reaches this layer is an error. Caffe: threshold_layer.cpp.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imae.layers.layer import Layer
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("Threshold")
class Threshold(Layer):
    num_bottoms = num_tops = 1

    def forward(self, x: Tensor) -> Tensor:
        top: Tensor = _Threshold.apply(x, self)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return top

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        from onnx import TensorProto  # here, because it is slow to import

        threshold = graph.constant(np.array(self.param.threshold_param.threshold, np.float32))
        graph.node("Cast", [graph.node("Greater", [bottoms[0], threshold])], tops, to=TensorProto.FLOAT)


class _Threshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Threshold) -> Tensor:
        ctx.layer = layer
        return (x > layer.param.threshold_param.threshold).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, None]:
        raise ctx.layer.error(
            "Not Implemented Yet: Threshold has no gradient; set propagate_down to false for its bottom, or "
            "take it out of the loss"
        )
