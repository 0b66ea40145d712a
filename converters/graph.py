"""The ONNX graph that layers add their nodes to: `OnnxGraph` of layers/onnx_graph.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from imae.layers.layer import Shape
from imae.layers.onnx_graph import LoopStep


class Graph:
    """Collects the nodes that layers add. Each in-place version of a blob has its own value name."""

    def __init__(
        self,
        opset: int,
        shapes: Mapping[str, Shape],
        free_axes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._shapes, self._free_axes = shapes, free_axes
        self._count = 0

    def node(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str] | None = None, **attributes: Any
    ) -> str:
        names = list(outputs) if outputs is not None else [self._fresh(op_type)]
        self.nodes.append(
            helper.make_node(op_type, list(inputs), names, name=self._fresh("node"), **attributes)
        )
        return names[0]

    def constant(self, value: Tensor | NDArray[Any]) -> str:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        name = self._fresh("const")
        self.initializers.append(onnx.numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def loop(
        self, step: LoopStep, states: Sequence[str], sequences: Sequence[str], width: int
    ) -> tuple[list[str], list[str]]:
        first = self.constant(np.array([0]))
        ends = [self.constant(np.array([n])) for n in (0, 1)]
        # A Scan would index by itself, but OpenCV has none.
        count = self.node("Squeeze", [self.node("Slice", [self.node("Shape", sequences[:1]), *ends]), first])
        outer, self.nodes = self.nodes, []
        index, going = self._fresh("index"), self._fresh("going")
        state_names = [self._fresh("state") for _ in states]
        place = self.node("Reshape", [index, self.constant(np.array([1]))])
        items = [
            self.node("Squeeze", [self.node("Gather", [sequence, place], axis=0), first])
            for sequence in sequences
        ]
        next_states, results = step(state_names, items)
        # Identity: a value may be a state and a result, and an ONNX graph has each output once.
        stops = [self.node("Identity", [value]) for value in (going, *next_states, *results)]
        nodes, self.nodes = self.nodes, outer

        def info(name: str) -> onnx.ValueInfoProto:
            if name in (index, going, stops[0]):
                kind = TensorProto.INT64 if name == index else TensorProto.BOOL
                return helper.make_tensor_value_info(name, kind, [])
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])

        starts = [index, going, *state_names]
        body = helper.make_graph(nodes, self._fresh("step"), [*map(info, starts)], [*map(info, stops)])
        outputs = [self._fresh("Loop") for _ in stops[1:]]
        self.node("Loop", [count, "", *states], outputs, body=body)
        return outputs[: len(states)], outputs[len(states) :]

    def shape(self, value: str) -> Shape:
        return self._shapes[value]

    def free_axes(self, value: str) -> tuple[int, ...]:
        return self._free_axes.get(value, ())

    def _fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"
