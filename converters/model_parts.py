"""A model that prepares images itself (embed.py), taken apart and joined again.

The first part makes prepared images of bytes; the second one is the net.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from imae.converters.check_onnx import cpu_session, session_errors
from imae.converters.preprocessing import PREPARED, Preprocessing
from imae.files.errors import ExportError, first_line


def split_model(
    model: onnx.ModelProto, preprocessing: Preprocessing
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A model that prepares images itself as two: from bytes to prepared images, and from these to outputs.

    ExportError where the model is not made so: its metadata is damaged.
    """
    graph, prepared = model.graph, preprocessing.prepared
    nodes = list(graph.node)
    makers = {name: place for place, node in enumerate(nodes) for name in node.output}
    needed, open_names = set[int](), [prepared]
    while open_names:
        place = makers.get(open_names.pop())
        if place is not None and place not in needed:
            needed.add(place)
            open_names.extend(nodes[place].input)
    front_nodes = [node for place, node in enumerate(nodes) if place in needed]
    rest_nodes = [node for place, node in enumerate(nodes) if place not in needed]
    made_in_front = {name for node in front_nodes for name in node.output}
    between = made_in_front | {value.name for value in graph.input}
    read = {name for node in rest_nodes for name in _names_read(node)} | {
        value.name for value in graph.output
    }
    if not front_nodes or not rest_nodes or read & between != {prepared}:
        raise ExportError(
            f"metadata: {PREPARED} must be the value that holds the prepared images, from which alone the "
            f"model goes on; got {prepared!r}; export it again"
        )
    infos = {value.name: value for value in graph.value_info}
    info = infos.get(prepared) or helper.make_tensor_value_info(prepared, TensorProto.FLOAT, [None] * 4)
    return (
        _part(model, front_nodes, graph.input, [info]),
        _part(model, rest_nodes, [info], graph.output),
    )


def _part(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A model of these nodes, with the constants that they read."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    read = dict.fromkeys(name for node in nodes for name in _names_read(node))
    part = onnx.ModelProto()
    part.CopyFrom(model)
    for field in ("node", "input", "output", "initializer", "value_info"):
        del getattr(part.graph, field)[:]
    part.graph.node.extend(nodes)
    part.graph.input.extend(inputs)
    part.graph.output.extend(outputs)
    part.graph.initializer.extend(constants[name] for name in read if name in constants)
    return part


def _names_read(node: onnx.NodeProto) -> Iterator[str]:
    """The values that a node reads, also in the body of a Loop."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _names_read(inner)


def join_models(front: onnx.ModelProto, rest: onnx.ModelProto) -> onnx.ModelProto:
    """What `split_model` has taken apart, as one model; `rest` may have changed inside."""
    model = onnx.ModelProto()
    model.CopyFrom(rest)
    graph = model.graph
    nodes, initializers = list(graph.node), list(graph.initializer)
    del graph.node[:], graph.input[:], graph.initializer[:]
    graph.node.extend([*front.graph.node, *nodes])
    graph.initializer.extend([*front.graph.initializer, *initializers])
    graph.input.extend(front.graph.input)
    graph.value_info.extend(front.graph.output)
    return model


def preparation(front: onnx.ModelProto) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """What the first part of a model makes of bytes (N, H, W, C): (N, C, h, w)."""
    name = front.graph.input[0].name
    try:
        session = cpu_session(front)
    except session_errors() as error:
        raise _unprepared(error) from error

    def prepare(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            prepared: NDArray[np.float32] = session.run(None, {name: images})[0]
        except session_errors() as error:
            raise _unprepared(error) from error
        return prepared

    return prepare


def _unprepared(error: Exception) -> ExportError:
    return ExportError(f"ONNX Runtime cannot prepare images by the model: {first_line(error)}")
