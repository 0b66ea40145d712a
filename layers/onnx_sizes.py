"""Sizes in an ONNX graph, as numbers where they are known and as values where they are free.

A layer that needs the sizes of a value asks `OnnxGraph.free_axes`; only where an axis is free does it compute
with nodes, so that all other models stay as plain as they can be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imae.layers.onnx_graph import OnnxGraph


def sizes_of(graph: OnnxGraph, value: str, axes: Sequence[int]) -> str:
    """The sizes of these axes: a vector of integers, a constant where no axis is free."""
    if not set(axes).intersection(graph.free_axes(value)):
        return integers(graph, *(graph.shape(value)[axis] for axis in axes))
    return graph.node("Gather", [graph.node("Shape", [value]), integers(graph, *axes)])


def parts_of(graph: OnnxGraph, value: str, axes: Sequence[int]) -> list[int | str]:
    """The sizes of these axes for `reshaped`: numbers, and a vector of one number for each free axis."""
    free, shape = graph.free_axes(value), graph.shape(value)
    return [sizes_of(graph, value, [axis]) if axis in free else shape[axis] for axis in axes]


def counted(graph: OnnxGraph, value: str, axis: int) -> str:
    """The numbers 0, 1, ... for each place on an axis: a vector of float32."""
    if axis not in graph.free_axes(value):
        return graph.constant(np.arange(graph.shape(value)[axis], dtype=np.float32))
    from onnx import TensorProto  # here, because it is slow to import

    count = graph.node("Squeeze", [sizes_of(graph, value, [axis])])
    begin, step = (graph.constant(np.array(number)) for number in (0, 1))
    return graph.node("Cast", [graph.node("Range", [begin, count, step])], to=TensorProto.FLOAT)


def integers(graph: OnnxGraph, *numbers: int) -> str:
    """A constant vector."""
    return graph.constant(np.array(numbers, np.int64))


def reshaped(
    graph: OnnxGraph, value: str, parts: Sequence[int | str], outputs: Sequence[str] | None = None
) -> str:
    """`value` with the sizes `parts`: numbers, where 0 and -1 mean what they mean to Reshape, and vectors."""
    vectors: list[str] = []
    numbers: list[int] = []
    for part in parts:
        if isinstance(part, int):
            numbers.append(part)
            continue
        if numbers:
            vectors.append(integers(graph, *numbers))
            numbers = []
        vectors.append(part)
    if numbers:
        vectors.append(integers(graph, *numbers))
    shape = vectors[0] if len(vectors) == 1 else graph.node("Concat", vectors, axis=0)
    return graph.node("Reshape", [value, shape], outputs)
