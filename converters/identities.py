"""Identity nodes, which layers add where a blob is a copy of another one, removed from a graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx


def remove_identities(
    nodes: list[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto],
    inputs: Collection[str],
    outputs: Collection[str],
    blobs: Collection[str],
) -> dict[str, str]:
    """Let all nodes read the value itself in place of its copy; returns old name -> new name.

    One stays where a model's output is a copy of what has a name that it cannot lose: an input, an
    initializer, another output. Its doc_string says so. Else the value takes the output's name.

    inputs, outputs  of the model
    blobs            values with names of the net's; a value without one takes the name of its copy
    """
    fixed = {*inputs, *outputs, *(initializer.name for initializer in initializers)}
    renamed: dict[str, str] = {}

    def current(name: str) -> str:
        while name in renamed:
            name = renamed[name]
        return name

    kept = []
    for node in nodes:
        if node.op_type != "Identity":
            kept.append(node)
            continue
        source, copy = current(node.input[0]), node.output[0]
        if copy in outputs:
            if source in fixed:
                kept.append(node)
            else:
                renamed[source] = copy
        elif (source in blobs or source in inputs) and not source.startswith(f"{copy}@"):
            renamed[copy] = source
        else:  # a value inside of a layer, or the blob before an idle layer that is in-place
            renamed[source] = copy
    nodes[:] = kept
    result = {name: current(name) for name in renamed}
    for initializer in initializers:
        initializer.name = result.get(initializer.name, initializer.name)
    _rename(nodes, result)
    for node in nodes:
        if node.op_type == "Identity":
            node.doc_string = f"an output of its own that equals {node.input[0]}"
    return result


def _rename(nodes: Sequence[onnx.NodeProto], names: dict[str, str]) -> None:
    for node in nodes:
        for values in (node.input, node.output):
            values[:] = [names.get(value, value) for value in values]
        for attribute in node.attribute:
            _rename(attribute.g.node, names)
