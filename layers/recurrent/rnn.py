"""RNN: a plain recurrent net, unrolled over the time steps of its bottom.

    h_t   = tanh(W_xh bottom_t + b_h (+ W_xh_static static) + W_hh (cont_t h_(t-1)))
    top_t = tanh(W_ho h_t + b_o)

Bottoms, tops, states and expose_hidden as in LSTM, with one state, h.

blobs      W_xh (D, I), b_h (D), [W_xh_static (D, S)], W_hh (D, D), W_ho (D, D), b_o (D)

The last three are filled once per time step, in turn, and the first fills are kept.

Caffe: recurrent_layer.cpp, rnn_layer.cpp. Differs: debug_info logs nothing.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from imae.layers.filler import fill
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.recurrent.lstm import Recurrent
from imae.layers.registry import register_layer


@register_layer("RNN")
class RNN(Recurrent):
    states = 1
    rows = 1
    blob_names = ("W_xh", "b_h", "W_xh_static", "W_hh", "W_ho", "b_o")

    def add_recurrent_blobs(self) -> None:
        recurrent, size = self.param.recurrent_param, self.num_output
        weight, bias = recurrent.weight_filler, recurrent.bias_filler
        blobs = [((size, size), weight), ((size, size), weight), ((size,), bias)]
        for shape, filler in blobs:
            self.add_blob(shape, filler)
        for _ in range(1, self.steps):
            for shape, filler in blobs:
                fill(shape, filler, self.random)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        inputs = self.inputs(bottoms)
        weight, output_weight, output_bias = self.last_blobs()
        (hidden,) = self.first_states(bottoms)
        steps = []
        for x, cont in zip(inputs, bottoms[1], strict=True):
            hidden = torch.tanh(x + F.linear(hidden * cont.unsqueeze(1), weight))
            steps.append(hidden)
        return self.tops(torch.tanh(F.linear(torch.stack(steps), output_weight, output_bias)), [hidden])

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        weight, output_weight, output_bias = self.last_blobs()
        first = len(self.blobs) - 3
        recurrent = graph.constant(weight.t(), blob=first)

        def step(states: list[str], items: list[str]) -> tuple[list[str], list[str]]:
            kept = graph.node("MatMul", [graph.node("Mul", [*states, items[1]]), recurrent])
            hidden = graph.node("Tanh", [graph.node("Add", [items[0], kept])])
            return [hidden], [hidden]

        results = self.loop(graph, step, bottoms, tops)
        product = graph.node("MatMul", [*results, graph.constant(output_weight.t(), blob=first + 1)])
        bias = graph.constant(output_bias, blob=first + 2)
        graph.node("Tanh", [graph.node("Add", [product, bias])], tops[:1])

    def last_blobs(self) -> tuple[Tensor, Tensor, Tensor]:
        """W_hh, W_ho, b_o"""
        first = len(self.blobs) - 3
        return self.blob(first), self.blob(first + 1), self.blob(first + 2)
