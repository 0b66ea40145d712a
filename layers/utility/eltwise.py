"""Eltwise: bottoms of one shape, element by element.

    SUM    top = coeff_0 x_0 + coeff_1 x_1 + ...          coeff 1 by default
    PROD   top = x_0 x_1 ...                              diff_i = top_diff * product of the others, or, with
                                                          stable_prod_grad false, top_diff * top / x_i
    MAX    top = max(x_0, x_1, ...)                       the diff goes to one of the largest

bottom[0..]  any shape, at least two
top[0]       the same shape

On a tie in MAX, x_1 wins over x_0, these two win over all others, and of those an earlier one wins.

Caffe: eltwise_layer.cpp. Differs: where a bottom is also the top, Caffe overwrites it (with two factors: its
diff) before using it.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.blob import shape_string
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("Eltwise")
class Eltwise(Layer):
    min_bottoms = 2
    num_tops = 1
    keeps_places = True

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        eltwise = param.eltwise_param
        self.operation = eltwise.operation
        factors = self.operation == eltwise.PROD
        self.spoils_in_place = "diff" if factors and len(param.bottom) == 2 else "data"
        self.reads_top = factors and not eltwise.stable_prod_grad
        if eltwise.coeff and len(eltwise.coeff) != len(param.bottom):
            raise self.error(
                "Eltwise Layer takes one coefficient per bottom blob.; "
                f"got {len(eltwise.coeff)} for {len(param.bottom)} bottoms"
            )
        if eltwise.coeff and self.operation != eltwise.SUM:
            raise self.error("Eltwise layer only takes coefficients for summation.; remove coeff")
        self.coeffs = list(eltwise.coeff) or [1.0] * len(param.bottom)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        first = bottom_shapes[0]
        for index, shape in enumerate(bottom_shapes):
            if shape != first:
                raise self.error(
                    f"bottom[0]: {shape_string(first)}, bottom[{index}]: {shape_string(shape)}; "
                    "the shapes must be the same"
                )
        return [first]

    def forward(self, *bottoms: Tensor) -> Tensor:
        eltwise = self.param.eltwise_param
        if self.operation == eltwise.SUM:
            top = bottoms[0] if self.coeffs[0] == 1 else bottoms[0] * self.coeffs[0]
            for coeff, bottom in zip(self.coeffs[1:], bottoms[1:], strict=True):
                top = torch.add(top, bottom, alpha=coeff)
            return top
        if self.operation == eltwise.PROD:
            if eltwise.stable_prod_grad:
                return reduce(torch.mul, bottoms)
            return apply(_ProductByQuotients, *bottoms)
        top = torch.where(bottoms[0] > bottoms[1], bottoms[0], bottoms[1])
        for bottom in bottoms[2:]:
            top = torch.where(bottom > top, bottom, top)
        return top

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        if self.operation == self.param.eltwise_param.MAX:
            graph.node("Max", bottoms, tops)
            return
        operator = "Add" if self.operation == self.param.eltwise_param.SUM else "Mul"
        terms = [
            name if coeff == 1 else graph.node("Mul", [name, graph.constant(np.array(coeff, np.float32))])
            for name, coeff in zip(bottoms, self.coeffs, strict=True)
        ]
        last_term = terms.pop()
        graph.node(operator, [reduce(lambda a, b: graph.node(operator, [a, b]), terms), last_term], tops)


class _ProductByQuotients(torch.autograd.Function):
    """The product, with the gradient top / x_i: NaN where x_i is 0."""

    @staticmethod
    def forward(ctx: Any, *bottoms: Tensor) -> Tensor:
        top = reduce(torch.mul, bottoms)
        ctx.save_for_backward(top, *bottoms)
        return top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor | None, ...]:
        top, *bottoms = ctx.saved_tensors
        bottoms_needed = zip(bottoms, ctx.needs_input_grad, strict=True)
        return tuple(top / bottom * top_diff if needed else None for bottom, needed in bottoms_needed)
