"""ELU: top = x for x > 0, else alpha (exp(x) - 1) (Clevert et al. 2016); the gradient at 0 is alpha.

bottom[0], top[0]  any shape

Caffe: elu_layer.cpp.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.layer import Layer
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("ELU")
class ELU(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True
    reads_top = reads_bottom = True

    def forward(self, x: Tensor) -> Tensor:
        return apply(_ELU, x, self.param.elu_param.alpha)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        graph.node("Elu", bottoms, tops, alpha=self.param.elu_param.alpha)


class _ELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        top = F.elu(x, alpha)
        ctx.save_for_backward(x, top)
        ctx.alpha = alpha
        return top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, None]:
        x, top = ctx.saved_tensors
        return torch.where(x > 0, top_diff, top_diff * (top + ctx.alpha)), None
