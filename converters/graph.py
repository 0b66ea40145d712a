"""The ONNX graph that layers add their nodes to: `OnnxGraph` of layers/onnx_graph.py.

Names are Caffe's, so that whoever opens the model finds the net again:

    node         LAYER where a layer has one node, LAYER/Conv, LAYER/Pad, ... where it has several
    value        the blob; BLOB@LAYER before another layer overwrites it in-place; LAYER/Conv inside a layer
    initializer  LAYER.weight, LAYER.bias (`Layer.blob_name`) for a parameter blob, also where it is folded or
                 reshaped; a blob that layers share has the name of the first; else LAYER/constant

A name that is taken gets a number: LAYER/Conv_2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from imae.converters.identities import remove_identities
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import LoopStep


class Graph:
    """Collects the nodes that layers add. Each in-place version of a blob has its own value name.

    shapes   of the net's blobs by name, whose names are taken; the exporter adds those of the versions
    """

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
        self._layer: Layer | None = None
        self._nodes_of: list[tuple[str, list[onnx.NodeProto]]] = [("", [])]  # for each layer, in order
        self._values: dict[str, int] = {}  # names that are taken, and how many were made from each
        self._node_names: dict[str, int] = {}
        # Parameter blobs that have an initializer already; two layers may share one.
        self._blobs: dict[nn.Parameter, onnx.TensorProto] = {}

    def enter(self, layer: Layer | None) -> None:
        """Name what is added from now on after this layer."""
        self._layer = layer
        self._nodes_of.append((self._prefix, []))

    def node(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str] | None = None, **attributes: Any
    ) -> str:
        names = list(outputs) if outputs is not None else [self.value(op_type)]
        name = self._fresh_node(self._inside(op_type))
        made = helper.make_node(op_type, list(inputs), names, name=name, **attributes)
        self.nodes.append(made)
        self._nodes_of[-1][1].append(made)
        return names[0]

    def constant(self, value: Tensor | NDArray[Any], blob: int | None = None) -> str:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        made = onnx.numpy_helper.from_array(np.asarray(array, order="C"))
        if blob is None:
            made.name = self.value("constant")
        elif self._layer is None:
            made.name = self.value(f"blob{blob}")
        else:
            parameter = self._layer.blobs[blob]
            same = self._blobs.setdefault(parameter, made)
            if same is not made and _same_values(same, made):
                return same.name
            made.name = self.fresh(f"{self._prefix}.{self._layer.blob_name(blob)}")
        self.initializers.append(made)
        return made.name

    def value(self, stem: str) -> str:
        return self.fresh(self._inside(stem))

    def fresh(self, name: str) -> str:
        """A name for a value: this one, with a number if it is taken."""
        return _unused(name, self._values, self._shapes)

    def loop(
        self, step: LoopStep, states: Sequence[str], sequences: Sequence[str], width: int
    ) -> tuple[list[str], list[str]]:
        first = self.constant(np.array([0]))
        ends = [self.constant(np.array([n])) for n in (0, 1)]
        # A Scan would index by itself, but OpenCV has none.
        count = self.node("Squeeze", [self.node("Slice", [self.node("Shape", sequences[:1]), *ends]), first])
        outer, self.nodes = self.nodes, []
        self._nodes_of.append((self._prefix, []))  # of the body, where they keep their names
        index, going = self.value("index"), self.value("going")
        state_names = [self.value("state") for _ in states]
        place = self.node("Reshape", [index, self.constant(np.array([1]))])
        items = [
            self.node("Squeeze", [self.node("Gather", [sequence, place], axis=0), first])
            for sequence in sequences
        ]
        next_states, results = step(state_names, items)
        made = {name for node in self.nodes for name in node.output}
        stops: list[str] = []
        for value in (going, *next_states, *results):
            # A body has each output once, and makes it itself.
            is_free = value in made and value not in stops
            stops.append(value if is_free else self.node("Identity", [value]))
        nodes, self.nodes = self.nodes, outer
        self._nodes_of.pop()

        def info(name: str) -> onnx.ValueInfoProto:
            if name in (index, going, stops[0]):
                kind = TensorProto.INT64 if name == index else TensorProto.BOOL
                return helper.make_tensor_value_info(name, kind, [])
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])

        starts = [index, going, *state_names]
        body = helper.make_graph(nodes, self.value("step"), [*map(info, starts)], [*map(info, stops)])
        outputs = [self.value("Loop") for _ in stops[1:]]
        self.node("Loop", [count, "", *states], outputs, body=body)
        return outputs[: len(states)], outputs[len(states) :]

    def shape(self, value: str) -> Shape:
        return self._shapes[value]

    def free_axes(self, value: str) -> tuple[int, ...]:
        return self._free_axes.get(value, ())

    def finish(self, inputs: Collection[str], outputs: Collection[str]) -> dict[str, str]:
        """Remove the Identity nodes, and name the nodes of layers that have a single one.

        Returns what has another name now: old name -> new name.
        """
        named = {initializer.name for initializer in self._blobs.values()}
        blobs = {*self._shapes, *named}
        renamed = remove_identities(self.nodes, self.initializers, inputs, outputs, blobs)
        kept = {id(node) for node in self.nodes}
        for layer, made in self._nodes_of:
            left = [node for node in made if id(node) in kept]
            if layer and len(left) == 1:
                left[0].name = self._fresh_node(layer)
        return renamed

    @property
    def _prefix(self) -> str:
        return "" if self._layer is None else self._layer.name or self._layer.type

    def _inside(self, stem: str) -> str:
        return f"{self._prefix}/{stem}" if self._prefix else stem

    def _fresh_node(self, name: str) -> str:
        return _unused(name, self._node_names, ())


def _unused(name: str, counts: dict[str, int], taken: Collection[str]) -> str:
    """The name, or the name with the smallest number from 2 on with which it is new; noted in `counts`."""
    chosen = name
    while chosen in counts or chosen in taken:
        counts[name] = counts.get(name, 1) + 1
        chosen = f"{name}_{counts[name]}"
    counts[chosen] = 1
    return chosen


def _same_values(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    return (one.data_type, one.dims, one.raw_data) == (other.data_type, other.dims, other.raw_data)
