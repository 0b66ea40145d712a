"""LSTM: long short-term memory (Hochreiter and Schmidhuber 1997), unrolled over the time steps of its bottom.

    x_t = W_xc bottom_t + b_c (+ W_xc_static static) + W_hc (cont_t h_(t-1))
    c_t, h_t = LSTMUnit(c_(t-1), x_t, cont_t)                                    top_t = h_t

bottom[0]  (T, N, ...) T time steps of N streams; I values on the axes after these two
bottom[1]  (T, N) cont: 0 where a sequence begins, else 1; gets no gradient
bottom[2]  optional: (N, ...) static, a further input to all time steps; S values on the axes after N
top[0]     (T, N, D), D = num_output
blobs      W_xc (4 D, I), b_c (4 D), [W_xc_static (4 D, S)], W_hc (4 D, D); rows in the order i, f, o, g

h and c persist: the first step of a forward pass continues from the last step of the previous pass (where
cont is 1). With expose_hidden the last two bottoms are h_0 and c_0 instead, and two more tops are h_T and
c_T, (1, N, D) each. None of them passes a gradient. W_hc is filled once per time step, and the first fill is
kept.

In ONNX a Loop goes through the time steps, of any number. Without expose_hidden it starts from h and c of 0.

Caffe: recurrent_layer.cpp, lstm_layer.cpp. Differs: debug_info logs nothing.
"""

from collections.abc import Sequence
from math import prod
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imae.layers.filler import fill
from imae.layers.labels import refuse_gradient
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import LoopStep, OnnxGraph
from imae.layers.recurrent.lstm_unit import lstm_unit, lstm_unit_nodes
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


class Recurrent(Layer):
    """What LSTM and RNN share: the bottoms, the parameters of the input, the states that persist.

    states   number of state blobs (h, c)
    rows     number of rows of the input's and the recurrent weights, in units of num_output
    """

    states: ClassVar[int]
    rows: ClassVar[int]

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        recurrent = param.recurrent_param
        self.num_output, self.expose_hidden = recurrent.num_output, recurrent.expose_hidden
        if self.num_output < 1:
            raise self.error(f"num_output must be positive; got {self.num_output}")
        if recurrent.debug_info:
            self.note_leftover("recurrent_param.debug_info")
        exposed = self.states if self.expose_hidden else 0
        bottoms, tops = len(param.bottom), len(param.top)
        if not 2 + exposed <= bottoms <= 3 + exposed:
            raise self.error(
                f"{self.type} Layer takes {2 + exposed} or {3 + exposed} bottom blob(s) as input.; "
                f"got {bottoms}"
            )
        if tops != 1 + exposed:
            raise self.error(f"{self.type} Layer produces {1 + exposed} top blob(s) as output.; got {tops}")
        self.static = bottoms > 2 + exposed
        self.continues = not self.expose_hidden
        self.steps = 0
        for i in range(self.states):
            self.register_buffer(f"state{i}", torch.zeros(0), persistent=False)

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 1

    def index_count(self, bottom_index: int, bottom_shapes: Sequence[Shape]) -> int | None:
        return 2 if bottom_index == 1 else None

    def batch_axis(self, bottom_index: int) -> int:
        return 0 if self.static and bottom_index == 2 else 1

    def blob_name(self, index: int) -> str:
        # blob_names has the static input's weight in the third place.
        return super().blob_name(index if self.static or index < 2 else index + 1)

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        recurrent = self.param.recurrent_param
        x = bottom_shapes[0]
        self.canonical_axis(2, len(x))
        self.steps = x[0]
        rows = self.rows * self.num_output
        self.add_blob((rows, prod(x[2:])), recurrent.weight_filler)
        self.add_blob((rows,), recurrent.bias_filler)
        if self.static:
            self.canonical_axis(1, len(bottom_shapes[2]))
            self.add_blob((rows, prod(bottom_shapes[2][1:])), recurrent.weight_filler)
        self.add_recurrent_blobs()

    def add_recurrent_blobs(self) -> None:
        """Add the parameters of a time step; draw the fills of all later time steps and discard them."""
        recurrent = self.param.recurrent_param
        shape = (self.rows * self.num_output, self.num_output)
        self.add_blob(shape, recurrent.weight_filler)
        for _ in range(1, self.steps):
            fill(shape, recurrent.weight_filler, self.random)

    def multiply_adds(self, bottom_shapes: Sequence[Shape], top_shapes: Sequence[Shape]) -> int:
        """Each matrix once for each time step and stream; that of the static input once for each stream."""
        steps, streams = bottom_shapes[0][:2]
        products = 0
        for index, shape in enumerate(self.blob_shapes):
            if len(shape) == 2:
                times = streams if self.static and index == 2 else steps * streams
                products += times * prod(shape)
        return products

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        x, cont = bottom_shapes[:2]
        if len(x) < 3:
            raise self.error(f"bottom[0] must be (#timesteps, #streams, ...); got {x}")
        if not x[0]:
            raise self.error(f"bottom[0] must have at least 1 time step; got {x}")
        if x[0] != self.steps:
            raise self.error(f"input number of timesteps changed; got {x[0]}, it was built for {self.steps}")
        if cont != x[:2]:
            raise self.error(
                f"bottom[1] must have exactly 2 axes -- (#timesteps, #streams); got {cont} for {x}"
            )
        if self.static and bottom_shapes[2][:1] != x[1:2]:
            raise self.error(f"bottom[2] must have {x[1]} streams on axis 0; got {bottom_shapes[2]}")
        for index, inputs in enumerate([x[2:], bottom_shapes[2][1:]] if self.static else [x[2:]]):
            weight = self.blob_shapes[2 * index]
            if prod(inputs) != weight[1]:
                raise self.error(
                    f"Input size incompatible with inner product parameters.; got {prod(inputs)} values per "
                    f"stream of bottom[{2 * index}], the weights are for {weight[1]}"
                )
        state = (1, x[1], self.num_output)
        if self.expose_hidden:
            for index, shape in enumerate(bottom_shapes[-self.states :], len(bottom_shapes) - self.states):
                if shape != state:
                    raise self.error(f"shape mismatch - bottom[{index}] must be {state}; got {shape}")
        return [(*x[:2], self.num_output)] + [state] * (self.states if self.expose_hidden else 0)

    def inputs(self, bottoms: Sequence[Tensor]) -> Tensor:
        """(T, N, rows): what the bottoms contribute to each time step."""
        refuse_gradient(self, 1, bottoms[1], "Cannot backpropagate to sequence indicators.")
        inputs = F.linear(bottoms[0].flatten(2), self.blob(0), self.blob(1))
        return inputs + F.linear(bottoms[2].flatten(1), self.blob(2)) if self.static else inputs

    def first_states(self, bottoms: Sequence[Tensor]) -> list[Tensor]:
        """(N, D) each: the states before the first time step."""
        if self.expose_hidden:
            return [bottom.detach().squeeze(0) for bottom in bottoms[-self.states :]]
        shape = (bottoms[0].shape[1], self.num_output)
        states = []
        for i in range(self.states):
            state: Tensor = getattr(self, f"state{i}")
            if state.shape != shape or state.dtype != bottoms[0].dtype:  # the first pass, or another batch
                state = bottoms[0].new_zeros(shape)
                setattr(self, f"state{i}", state)
            states.append(state.clone())  # its memory is written to before the backward pass
        return states

    def tops(self, top: Tensor, final_states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tops; the states after the last time step are exposed or kept."""
        if self.expose_hidden:
            return (top, *(state.detach().unsqueeze(0) for state in final_states))
        for i, state in enumerate(final_states):
            getattr(self, f"state{i}").copy_(state.detach())
        return (top,)

    def loop(
        self, graph: OnnxGraph, step: LoopStep, bottoms: Sequence[str], tops: Sequence[str]
    ) -> list[str]:
        """Add the Loop whose steps get the states, and as items `inputs` and cont (N, 1) of a time step.

        Returns its results; the states after the last step are the tops from the second on, if exposed.
        """
        flags = graph.node("Unsqueeze", [bottoms[1], graph.constant(np.array([2]))])
        if self.expose_hidden:
            axis = graph.constant(np.array([0]))
            states = [graph.node("Squeeze", [bottom, axis]) for bottom in bottoms[-self.states :]]
        else:
            size = [graph.constant(np.array([n])) for n in (1, 3, 0)]
            shape = graph.node("Slice", [graph.node("Shape", [flags]), *size])  # N, 1
            zeros = graph.constant(np.zeros((1, self.num_output), np.float32))
            # Two nodes: OpenCV would keep the states of one in the same memory.
            states = [graph.node("Expand", [zeros, shape]) for _ in range(self.states)]
        final, results = graph.loop(
            step, states, [self.inputs_in_onnx(graph, bottoms), flags], self.num_output
        )
        for state, top in zip(final, tops[1:], strict=False):
            graph.node("Unsqueeze", [state, graph.constant(np.array([0]))], [top])
        return results

    def inputs_in_onnx(self, graph: OnnxGraph, bottoms: Sequence[str]) -> str:
        """`inputs` as nodes."""
        x = bottoms[0]
        if len(graph.shape(x)) > 3:
            x = graph.node("Reshape", [x, graph.constant(np.array([0, 0, -1]))])
        inputs = graph.node("MatMul", [x, graph.constant(self.blob(0).t(), blob=0)])
        inputs = graph.node("Add", [inputs, graph.constant(self.blob(1), blob=1)])
        if not self.static:
            return inputs
        static = graph.node("Flatten", [bottoms[2]], axis=1)
        weight = graph.constant(self.blob(2).t(), blob=2)
        return graph.node("Add", [inputs, graph.node("MatMul", [static, weight])])


@register_layer("LSTM")
class LSTM(Recurrent):
    states = 2
    rows = 4
    blob_names = ("W_xc", "b_c", "W_xc_static", "W_hc")
    namesakes = ("lstm_param",)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        inputs, weight = self.inputs(bottoms), self.blob(len(self.blobs) - 1)
        hidden, cell = self.first_states(bottoms)
        steps = []
        for x, cont in zip(inputs, bottoms[1], strict=True):
            gates = x + F.linear(hidden * cont.unsqueeze(1), weight)
            cell, hidden = lstm_unit(cell, gates, cont)
            steps.append(hidden)
        return self.tops(torch.stack(steps), [hidden, cell])

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        last = len(self.blobs) - 1
        weight = graph.constant(self.blob(last).t(), blob=last)

        def step(states: list[str], items: list[str]) -> tuple[list[str], list[str]]:
            (hidden, cell), (x, flag) = states, items
            kept = graph.node("MatMul", [graph.node("Mul", [hidden, flag]), weight])
            gates = graph.node("Add", [x, kept])
            cell, hidden = lstm_unit_nodes(graph, cell, gates, flag, self.num_output)
            return [hidden, cell], [hidden]

        (hidden,) = self.loop(graph, step, bottoms, tops)
        graph.node("Identity", [hidden], tops[:1])
