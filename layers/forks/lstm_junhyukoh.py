"""Lstm: the LSTM of caffe-lstm, over the rows of its bottom; not Caffe's LSTM.

    x_t = W_i bottom_t + b + c_t W_h h_(t-1)         split into i, f, o, g, in this order
    C_t = c_t sigmoid(f) C_(t-1) + sigmoid(i) tanh(g)
    h_t = sigmoid(o) tanh(C_t)                                                     top_t = h_t

c_t is 0 where a sequence begins, else 1. Without bottom[1] it is 0 in the first time step of every pass, and
only there. With it, the first step goes on from the last states of the pass before. The fork reads c of time
step t and stream n from place t + n of bottom[1], and not from t N + n: with several streams, c is read from
the wrong places.

The gradients are the derivatives, but for these. With clipping_threshold, the diffs of i, f, o and g (before
the sigmoid or tanh) are limited to +- it. The diff of W_h takes h_(t-1) where c_t is 0, too; of the states
from the pass before it takes those of the first stream alone.

bottom[0]  (T N, ...) rows in the order of time, N = batch_size streams in each step; I values per row
bottom[1]  optional: T N values; 0 where a sequence begins; gets no gradient
top[0]     (T N, D), D = num_output
blobs      W_i (4 D, I), W_h (4 D, D), b (4 D)

In ONNX a Loop goes through the time steps, of any number; it starts from h and C of 0.

caffe-lstm (junhyukoh/caffe-lstm): lstm_layer.cpp. Differs: a bottom[1] of another size is an error (the fork
reads foreign memory).
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply_for_several
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.precision import at_least_single, unreduced
from imae.layers.recurrent.lstm_unit import lstm_unit_nodes
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("Lstm")
class Lstm(Layer):
    min_bottoms, max_bottoms = 1, 2
    num_tops = 1
    blob_names = ("W_i", "W_h", "b")
    in_place = False
    hidden: Tensor
    cell: Tensor

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        lstm = param.lstm_param
        self.num_output, self.streams = lstm.num_output, lstm.batch_size
        for field in ("num_output", "batch_size"):
            if getattr(lstm, field) < 1:
                raise self.error(f"{field} must be positive; got {getattr(lstm, field)}")
        self.continues = len(param.bottom) > 1
        for name in ("hidden", "cell"):
            self.register_buffer(name, torch.zeros(0), persistent=False)

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index == 0

    def index_count(self, bottom_index: int, bottom_shapes: Sequence[Shape]) -> int | None:
        return 2 if bottom_index == 1 else None

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        lstm, rows = self.param.lstm_param, 4 * self.num_output
        self.inputs = prod(bottom_shapes[0][1:])
        self.add_blob((rows, self.inputs), lstm.weight_filler)
        self.add_blob((rows, self.num_output), lstm.weight_filler)
        self.add_blob((rows,), lstm.bias_filler)

    def multiply_adds(self, bottom_shapes: Sequence[Shape], top_shapes: Sequence[Shape]) -> int:
        return bottom_shapes[0][0] * sum(prod(shape) for shape in self.blob_shapes[:2])

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        x = bottom_shapes[0]
        if not x or not x[0] or x[0] % self.streams:
            raise self.error(
                f"Input size should be multiple of batch size; got {x} for a batch_size of {self.streams}"
            )
        if prod(x[1:]) != self.inputs:
            raise self.error(
                "Input size incompatible with inner product parameters.; "
                f"got {prod(x[1:])} values per row of {x}, the weights are for {self.inputs}"
            )
        if len(bottom_shapes) > 1 and (prod(bottom_shapes[1]) != x[0] or bottom_shapes[1][:1] != x[:1]):
            raise self.error(
                f"bottom[1] must hold one value for each row of bottom[0], {x}; got {bottom_shapes[1]}"
            )
        return [(x[0], self.num_output)]

    def forward(self, x: Tensor, begins: Tensor | None = None) -> Tensor:
        x = at_least_single(x)
        rows = x.reshape(len(x), self.inputs)
        steps = len(x) // self.streams
        hidden, cell = self._first_states(x)
        if begins is None:
            cont = torch.arange(steps, device=x.device).unsqueeze(1).expand(steps, self.streams) > 0
        else:
            cont = begins.detach().flatten().unfold(0, self.streams, 1)[:steps] != 0  # [t, n]: place t + n
        threshold = self.param.lstm_param.clipping_threshold
        blobs = (self.blob(0), self.blob(1), self.blob(2))
        with unreduced(x):
            top, cell = apply_for_several(_Lstm, rows, *blobs, cont, hidden, cell, threshold)
        if begins is not None:
            self.hidden.copy_(top[-self.streams :].detach())
            self.cell.copy_(cell.detach())
        return top

    def _first_states(self, x: Tensor) -> list[Tensor]:
        """h and C before the first time step, (N, D) each."""
        shape = (self.streams, self.num_output)
        if not self.continues:
            return [x.new_zeros(shape), x.new_zeros(shape)]
        for name in ("hidden", "cell"):
            if getattr(self, name).shape != shape or getattr(self, name).dtype != x.dtype:
                setattr(self, name, x.new_zeros(shape))
        # Their memory is written to before the backward pass.
        return [self.hidden.clone(), self.cell.clone()]

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        x = bottoms[0]
        if len(graph.shape(x)) != 2:
            x = graph.node("Reshape", [x, graph.constant(np.array([-1, self.inputs]))])
        blobs = [graph.constant(self.blob(index), blob=index) for index in (0, 2)]
        gates = graph.node("Gemm", [x, *blobs], transB=1)
        size = np.array([-1, self.streams, 4 * self.num_output])
        sequences = [graph.node("Reshape", [gates, graph.constant(size)])]
        if len(bottoms) > 1:
            sequences.append(self._flags(graph, bottoms[1]))
        weight = graph.constant(self.blob(1).t(), blob=1)

        def step(states: list[str], items: list[str]) -> tuple[list[str], list[str]]:
            (hidden, cell), flag = states, items[1] if len(items) > 1 else None
            if flag is not None:
                hidden = graph.node("Mul", [hidden, flag])
            gates = graph.node("Add", [items[0], graph.node("MatMul", [hidden, weight])])
            cell, hidden = lstm_unit_nodes(graph, cell, gates, flag, self.num_output)
            return [hidden, cell], [hidden]

        zeros = np.zeros((self.streams, self.num_output), np.float32)
        states = [graph.constant(zeros) for _ in range(2)]
        _, (top,) = graph.loop(step, states, sequences, self.num_output)
        graph.node("Reshape", [top, graph.constant(np.array([-1, self.num_output]))], tops)

    def _flags(self, graph: OnnxGraph, begins: str) -> str:
        """(T, N, 1): 1, and 0 where a sequence begins."""
        flags = graph.node("Reshape", [begins, graph.constant(np.array([-1]))])
        flags = graph.node("Sign", [graph.node("Abs", [flags])])
        zero, last = graph.constant(np.array([0])), graph.constant(np.array([1, 2]))
        steps = graph.node("Div", [graph.node("Shape", [flags]), graph.constant(np.array([self.streams]))])
        columns = []
        for stream in range(self.streams):
            first = graph.constant(np.array([stream]))
            column = graph.node("Slice", [flags, first, graph.node("Add", [steps, first]), zero])
            columns.append(graph.node("Unsqueeze", [column, last]))
        return graph.node("Concat", columns, axis=1)


class _Lstm(torch.autograd.Function):
    """Top (T N, D) and the last C; cont is (T, N)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        input_weight: Tensor,
        hidden_weight: Tensor,
        bias: Tensor,
        cont: Tensor,
        hidden: Tensor,
        cell: Tensor,
        threshold: float,
    ) -> tuple[Tensor, Tensor]:
        inputs = (x @ input_weight.t() + bias).view(*cont.shape, -1)
        hiddens, cells, sigmoids, tanhs = [hidden], [cell], [], []
        continues = begins = [False] * len(cont)  # whether they are known to be so for all streams
        if not torch.compiler.is_compiling():  # a traced pass holds for any `cont`
            continues, begins = cont.all(1).tolist(), (~cont.any(1)).tolist()
        size, hidden_weight_t = hidden.shape[1], hidden_weight.t()
        for t, gate in enumerate(inputs.unbind()):
            if continues[t]:
                gate = torch.addmm(gate, hidden, hidden_weight_t)
            elif not begins[t]:
                gate = gate + torch.where(cont[t].unsqueeze(1), hidden @ hidden_weight_t, 0)
            sigmoid, g = torch.sigmoid(gate), torch.tanh(gate[:, 3 * size :])
            i, f, o, _ = sigmoid.chunk(4, 1)
            if not continues[t]:
                f = torch.where(cont[t].unsqueeze(1), f, 0)
            cell = f * cell + i * g
            hidden = o * torch.tanh(cell)
            sigmoids.append(sigmoid)
            tanhs.append(g)
            hiddens.append(hidden)
            cells.append(cell)
        states = torch.stack(hiddens), torch.stack(cells)
        gates = torch.stack(sigmoids).view(*cont.shape, 4, size).transpose(1, 2).contiguous()
        gates[:, 1].masked_fill_(~cont.unsqueeze(2), 0)
        gates[:, 3] = torch.stack(tanhs)
        ctx.save_for_backward(x, input_weight, hidden_weight, cont, *states, gates)
        ctx.threshold = threshold
        ctx.mark_non_differentiable(cell)
        return states[0][1:].flatten(0, 1), cell

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, input_weight, hidden_weight, cont, hiddens, cells, gates = ctx.saved_tensors
        steps, streams = cont.shape
        top_diffs, cont = top_diff.view(steps, streams, -1), cont.unsqueeze(2)
        hidden_diff, cell_diff = torch.zeros_like(hiddens[0]), torch.zeros_like(cells[0])
        diffs = []  # of the gates' inputs, from the last time step on
        for t in reversed(range(steps)):
            keep, (i, f, o, g) = cont[t], gates[t]
            tanh = torch.tanh(cells[t + 1])
            hidden_diff = hidden_diff + top_diffs[t]
            cell_diff = cell_diff + hidden_diff * o * (1 - tanh * tanh)
            diff = torch.cat(
                [
                    cell_diff * g * i * (1 - i),
                    torch.where(keep, cell_diff * cells[t], 0) * f * (1 - f),
                    hidden_diff * tanh * o * (1 - o),
                    cell_diff * i * (1 - g * g),
                ],
                1,
            )
            if ctx.threshold > 0:
                diff = diff.clamp(-ctx.threshold, ctx.threshold)
            cell_diff = torch.where(keep, cell_diff * f, 0)
            hidden_diff = torch.where(keep, diff @ hidden_weight, 0)
            diffs.append(diff)
        first, rest = diffs[-1], torch.stack(diffs[::-1])[1:].flatten(0, 1)
        recurrent = rest.t() @ hiddens[1:-1].flatten(0, 1) + torch.outer(first[0], hiddens[0][0])
        all_diffs = torch.cat([first, rest])
        blob_diffs = all_diffs.t() @ x, recurrent, all_diffs.sum(0)
        return all_diffs @ input_weight, *blob_diffs, None, None, None, None
