"""LSTMUnit: one step of an LSTM, from the gates' inputs to the cell and the hidden state.

    i = sigmoid(x_i)    f = cont sigmoid(x_f)    o = sigmoid(x_o)    g = tanh(x_g)
    c = f c_before + i g
    h = o tanh(c)

The gradient of x_f is computed as if f (1 - f) were the derivative of f, which is true for cont 0 and 1.

bottom[0]  (1, N, D) c_before
bottom[1]  (1, N, 4 D) x_i, x_f, x_o, x_g, concatenated
bottom[2]  (1, N) cont: 0 where a sequence begins, else 1; gets no gradient
top[0]     (1, N, D) c
top[1]     (1, N, D) h

Caffe: lstm_unit_layer.cpp.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply_for_several
from imae.layers.labels import refuse_gradient
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


def lstm_unit(cell: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
    """(c, h), (..., D) each, from c_before (..., D), gate inputs (..., 4 D) and cont (...)."""
    cell, hidden = apply_for_several(_Unit, cell, gates, cont)
    return cell, hidden


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cell: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        i, f, o, g = gates.chunk(4, -1)
        i, o, g = torch.sigmoid(i), torch.sigmoid(o), torch.tanh(g)
        cont = cont.unsqueeze(-1)
        f = torch.where(cont == 0, 0, cont * torch.sigmoid(f))
        top = f * cell + i * g
        tanh = torch.tanh(top)
        ctx.save_for_backward(cell, i, f, o, g, tanh)
        return top, o * tanh

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cell_diff: Tensor, hidden_diff: Tensor) -> tuple[Tensor, Tensor, None]:
        cell, i, f, o, g, tanh = ctx.saved_tensors
        diff = cell_diff + hidden_diff * o * (1 - tanh * tanh)
        gates = [
            diff * g * i * (1 - i),
            diff * cell * f * (1 - f),
            hidden_diff * tanh * o * (1 - o),
            diff * i * (1 - g * g),
        ]
        return diff * f, torch.cat(gates, -1), None


@register_layer("LSTMUnit")
class LSTMUnit(Layer):
    num_bottoms = 3
    num_tops = 2

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 2

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        cell = bottom_shapes[0]
        expected = [(1, *cell[1:]), (1, cell[1], 4 * cell[2]), (1, cell[1])] if len(cell) == 3 else []
        if list(bottom_shapes) != expected:
            raise self.error(
                f"the bottoms must be c (1, N, D), x (1, N, 4 D) and cont (1, N); got {list(bottom_shapes)}"
            )
        return [cell, cell]

    def forward(self, cell: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        refuse_gradient(self, 2, cont, "Cannot backpropagate to sequence indicators.")
        return lstm_unit(cell, gates, cont)

    def index_count(self, bottom_index: int, bottom_shapes: Sequence[Shape]) -> int | None:
        return 2 if bottom_index == 2 else None

    def batch_axis(self, bottom_index: int) -> int:
        return 1

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        cell, gates, cont = bottoms
        flag = graph.node("Unsqueeze", [cont, graph.constant(torch.tensor([2]))])
        lstm_unit_nodes(graph, cell, gates, flag, graph.shape(cell)[2], tops)


def lstm_unit_nodes(
    graph: OnnxGraph, cell: str, gates: str, flag: str | None, size: int, tops: Sequence[str] = ()
) -> tuple[str, str]:
    """(c, h), named `tops` if given, from c_before (..., D), gate inputs (..., 4 D), cont (..., 1) or 1."""

    def part(index: int, operator: str) -> str:
        ends = [graph.constant(torch.tensor([n])) for n in (index * size, (index + 1) * size, -1)]
        return graph.node(operator, [graph.node("Slice", [gates, *ends])])

    i, f, o = (part(index, "Sigmoid") for index in range(3))
    kept = graph.node("Mul", [f if flag is None else graph.node("Mul", [flag, f]), cell])
    new = graph.node("Mul", [i, part(3, "Tanh")])
    top = graph.node("Add", [kept, new], tops[:1] or None)
    return top, graph.node("Mul", [o, graph.node("Tanh", [top])], tops[1:] or None)
