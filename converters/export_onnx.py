"""A net and its weights as an ONNX model that computes what the net computes in phase TEST.

Data layers become inputs; losses, accuracies and all layers that depend on labels are left out. Each layer
adds its own nodes (`Layer.to_onnx`). The model is compared with the net, in ONNX Runtime, before it is
written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.shape_inference
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from imae.converters.check_onnx import (
    ALLOWED,
    batch_axes,
    batch_axes_of_outputs,
    check_model,
    is_softmax,
    open_axes,
)
from imae.files.atomic import write_atomically
from imae.files.errors import ExportError
from imae.files.read import AnyPath
from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import LoopStep
from imae.layers.registry import class_of
from imae.layers.run import Run
from imae.layers.vision.pooling import PoolingMethod
from imae.net.fold import fold_batch_norm, fold_shortcuts
from imae.net.net import Net
from imae.net.weights import load_caffemodel
from imae.prototxt import TEST, LayerParameter, NetParameter, NetState
from imae.prototxt.state import filter_by_state, in_state
from imae.prototxt.text import to_text

logger = logging.getLogger(__name__)

DEFAULT_OPSET = 17
OLDEST_OPSET, NEWEST_OPSET = 13, 22
# The version of the file format that belongs to each operator set; old runtimes refuse newer versions.
IR_VERSION = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}
# Key of the model's metadata that holds the TEST net's transform_param, to prepare images in the same way.
TRANSFORM_KEY = "imae.transform_param"


class Graph:
    """Collects the nodes that layers add. Each in-place version of a blob has its own value name."""

    def __init__(self, opset: int, shapes: dict[str, Shape]) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._shapes = shapes
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

    def _fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"


@dataclass
class Export:
    """What was exported, and how it was checked.

    difference    largest absolute difference of ONNX Runtime's outputs from the net's, on random inputs
    largest       largest absolute value among the net's outputs there
    batch_sizes   the batch sizes that were compared
    not_compared  name of an output -> why none of its values was compared
    """

    model: onnx.ModelProto
    inputs: list[str]
    outputs: list[str]
    difference: float
    largest: float
    batch_sizes: tuple[int, ...]
    not_compared: dict[str, str]


# (C, H, W) or (N, C, H, W) of the only input, or the whole shape of each input by its name.
InputShape = Sequence[int] | Mapping[str, Sequence[int]]


def deploy_net(param: NetParameter, input_shape: InputShape | None = None, batch: int = 1) -> NetParameter:
    """The net of phase TEST without data layers and losses, its inputs made by Input layers.

    input_shape   of the inputs; needed only where the data source does not give it
    """
    filtered = _in_test(param)
    result = NetParameter(name=filtered.name, state=filtered.state)
    sources: dict[str, LayerParameter] = {}
    dropped: set[str] = set()
    body: list[LayerParameter] = []
    for layer in filtered.layer:
        if not layer.bottom and class_of(layer).makes_input:
            sources.update((top, layer) for top in layer.top)
        elif not class_of(layer).deployed or any(bottom in dropped for bottom in layer.bottom):
            dropped.update(top for top in layer.top if top not in layer.bottom)
        elif class_of(layer).idle_in_test and len(layer.bottom) > 1 and len(layer.top) == 1:
            # Its top is its first bottom; the others, labels, need not be inputs.
            if layer.top != layer.bottom[:1]:
                body.append(
                    LayerParameter(name=layer.name, type="Split", bottom=layer.bottom[:1], top=layer.top)
                )
        else:
            body.append(_deployed(layer))
    read = {bottom for layer in body for bottom in layer.bottom}
    inputs = [top for top in sources if top in read]
    if not inputs:
        raise ExportError(
            f"net {filtered.name!r} has no layer that computes something from an input in phase TEST; "
            "give its deploy or test prototxt"
        )
    shapes = _shapes_by_name(inputs, input_shape, batch)
    for top in inputs:
        input_layer = result.layer.add(name=top, type="Input", top=[top])
        shape = shapes.get(top) or _input_shape(sources[top], top, batch)
        input_layer.input_param.shape.add().dim.extend(shape)
    result.layer.extend(body)
    return result


def _deployed(param: LayerParameter) -> LayerParameter:
    """The layer without the fields that write files or show something."""
    result = LayerParameter()
    result.CopyFrom(param)
    for path in class_of(param).undeployed_fields:
        message, _, field = path.partition(".")
        if result.HasField(message):
            getattr(result, message).ClearField(field)
    return result


def _in_test(param: NetParameter) -> NetParameter:
    """The net with its layers of phase TEST."""
    test = in_state(param, TEST, NetState(phase=TEST))
    return filter_by_state(test, test.state)


def _shapes_by_name(inputs: Sequence[str], input_shape: InputShape | None, batch: int) -> dict[str, Shape]:
    if input_shape is None:
        return {}
    if isinstance(input_shape, Mapping):
        if unknown := sorted(set(input_shape) - set(inputs)):
            raise ExportError(f"the net has no input {unknown[0]!r}; its inputs are {', '.join(inputs)}")
        return {name: tuple(shape) for name, shape in input_shape.items()}
    if len(inputs) > 1:
        raise ExportError(
            f"the net has {len(inputs)} inputs, so a shape must say whose it is; give --input-shape "
            f"{inputs[0]}:{','.join(map(str, input_shape))} and so on for {', '.join(inputs[1:])}"
        )
    return {inputs[0]: (batch, *input_shape) if len(input_shape) == 3 else tuple(input_shape)}


def _input_shape(source: LayerParameter, top: str, batch: int) -> Shape:
    """The shape that the data source gives."""
    index = list(source.top).index(top)
    if class_of(source).is_fed:
        shapes = source.input_param.shape
        if not shapes:
            raise ExportError(f"input {top!r} has no shape in the prototxt; give --input-shape")
        return tuple(shapes[index if len(shapes) > 1 else 0].dim)
    param = LayerParameter()
    param.CopyFrom(source)
    param.phase = TEST
    layer = class_of(param)(param)
    shape = layer.build([], Run(CaffeRandom(0)))[index]
    return (batch, *shape[1:])


def export_net(
    net: Net,
    *,
    opset: int = DEFAULT_OPSET,
    fold: bool = False,
    dynamic_batch: bool = True,
    softmax: bool = False,
    metadata: dict[str, str] | None = None,
) -> Export:
    """The ONNX model of a TEST net that has Input layers (see `deploy_net`), checked in ONNX Runtime.

    fold           fold BatchNorm and Scale into the convolution or inner product before them, and replace a
                   shortcut that appends zeros by a convolution
    dynamic_batch  leave axis 0 of inputs and outputs open
    softmax        append a softmax to each output that has a class axis and is not yet that of a Softmax
    """
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ExportError(f"opset must be {OLDEST_OPSET} to {NEWEST_OPSET}, got {opset}")
    for step in net.steps:  # not by name: two layers may have the same one
        for index, blob in enumerate(step.layer.blobs):
            if not torch.isfinite(blob).all():
                raise ExportError(
                    f"layer {step.layer.name!r}: blob {index} holds NaN or infinity; train it again"
                )
    plan = fold_shortcuts(net, fold_batch_norm(net)) if fold else net.steps
    shapes = dict(net.blob_shapes)
    graph = Graph(opset, shapes)
    current = {name: name for name in net.inputs}
    last_writer = {top: index for index, step in enumerate(plan) for top in step.tops}
    outputs = [name for name in net.outputs if name not in net.inputs]
    with_softmax = _softmax_outputs(net, outputs) if softmax else set()
    final = {name: f"{name}_logits" if name in with_softmax else name for name in net.outputs}
    decisions: dict[Layer, str] = {}
    for index, step in enumerate(plan):
        if step.layer.is_fed:
            continue
        bottoms = [current[name] for name in step.bottoms]
        for top in step.tops:
            value = final.get(top, top) if last_writer[top] == index else f"{top}@{step.layer.name}"
            if value in net.inputs:
                value = f"{value}@{step.layer.name}"
            shapes[value] = shapes[top]
            current[top] = value
        step.layer.to_onnx(graph, bottoms, [current[top] for top in step.tops])
        if step.layer.decision_top is not None:
            decisions[step.layer] = current[step.tops[step.layer.decision_top]]
    for name in outputs:
        if name in with_softmax:
            graph.node("Softmax", [final[name]], [name], axis=1)
    axes = batch_axes(net)
    free_axes = axes if dynamic_batch else None
    model = _model(net, graph, outputs, opset, free_axes, metadata or {})
    for layer in net.layers:
        if isinstance(layer, PoolingMethod):
            layer.on_cpu = True
    batch_sizes = (1, 3) if dynamic_batch else (shapes[net.inputs[0]][axes[net.inputs[0]]],)
    checks = [
        check_model(model, net, outputs, size, with_softmax, free_axes, decisions) for size in batch_sizes
    ]
    if continuing := [repr(step.layer.name) for step in net.steps if step.layer.continues]:
        logger.warning(
            "layer %s: each run of the model starts from states of 0, as the net's first pass does. Its "
            "later passes go on from the last states; with expose_hidden they are inputs and outputs",
            ", ".join(continuing),
        )
    difference, largest = max(c.difference for c in checks), max(c.largest for c in checks)
    if difference > ALLOWED * max(largest, 1):
        raise ExportError(
            f"net {net.name!r}: the ONNX model's outputs are {difference:.3g} away from the net's, whose "
            f"largest value is {largest:.3g}; nothing is written"
        )
    # An output counts as compared if it was compared at one of the batch sizes.
    unseen = set(outputs).intersection(*(c.not_compared for c in checks))
    not_compared = {name: checks[-1].not_compared[name] for name in outputs if name in unseen}
    for name, why in not_compared.items():
        logger.warning(
            "output %r: NOTHING WAS COMPARED on random inputs: %s; are these the net's weights?", name, why
        )
    for name, (count, total) in checks[-1].not_finite.items():
        if name not in not_compared:
            logger.warning("output %r: %d of %d values are not finite on random inputs", name, count, total)
    return Export(model, net.inputs, outputs, difference, largest, batch_sizes, not_compared)


def _model(
    net: Net,
    graph: Graph,
    outputs: Sequence[str],
    opset: int,
    axes: Mapping[str, int] | None,
    metadata: dict[str, str],
) -> onnx.ModelProto:
    dynamic: dict[str, int] = {}
    if axes is not None:
        dynamic = {name: axes[name] for name in net.inputs} | batch_axes_of_outputs(net, outputs, axes)
    axes_of = open_axes(net)

    def info(name: str) -> onnx.ValueInfoProto:
        shape: list[int | str] = list(net.blob_shapes[name])
        if open_here := axes_of.get(name, ()):
            for axis in open_here:
                shape[axis] = f"size of {name}"
        elif name in dynamic and shape:
            shape[dynamic[name]] = "batch"
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    onnx_graph = helper.make_graph(
        graph.nodes,
        net.name or "net",
        [info(n) for n in net.inputs],
        [info(n) for n in outputs],
        graph.initializers,
    )
    model = helper.make_model(
        onnx_graph,
        producer_name="imae",
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=IR_VERSION[opset],
    )
    helper.set_model_props(model, metadata)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"net {net.name!r}: the ONNX model is not valid: {str(error).splitlines()[0]}"
        ) from error
    return model


def _softmax_outputs(net: Net, outputs: Iterable[str]) -> set[str]:
    """The outputs that get a softmax: they have a class axis, and are not yet those of a Softmax layer."""
    chosen = set()
    axes = batch_axes(net)
    for name in outputs:
        if len(net.blob_shapes[name]) < 2:
            logger.warning("output %r gets no softmax: it has no class axis", name)
        elif axes[name]:
            logger.warning("output %r gets no softmax: its axis 1 counts sequences, not classes", name)
        elif is_softmax(net, name):
            logger.warning("output %r gets no softmax: it is that of a Softmax layer already", name)
        else:
            chosen.add(name)
    return chosen


def transform_metadata(param: NetParameter) -> dict[str, str]:
    """The TEST data layer's transform_param as metadata of the model."""
    for layer in _in_test(param).layer:
        if layer.HasField("transform_param"):
            return {TRANSFORM_KEY: to_text(layer.transform_param)}
    return {}


def export_file(
    param: NetParameter,
    weights: AnyPath | None,
    output: AnyPath,
    *,
    input_shape: InputShape | None = None,
    opset: int = DEFAULT_OPSET,
    fold: bool = False,
    dynamic_batch: bool = True,
    softmax: bool = False,
    dialect: str | None = None,
    allow_missing: bool = False,
) -> Export:
    """Export a net (train_val or deploy) and its caffemodel to an .onnx file, which is written atomically.

    allow_missing   layers that the weights lack get the values of their fillers; else they are an ExportError
    """
    net = Net(deploy_net(param, input_shape), Run(CaffeRandom(0)))
    if weights is not None:
        missing = load_caffemodel(net, weights, dialect).fresh
        if missing and not allow_missing:
            raise ExportError(
                f"{weights} has no blobs for the layers {', '.join(missing)}, which would be their fillers' "
                "random numbers; give the weights of this net, or --allow-missing"
            )
    result = export_net(
        net,
        opset=opset,
        fold=fold,
        dynamic_batch=dynamic_batch,
        softmax=softmax,
        metadata=transform_metadata(param),
    )
    write_atomically(Path(output), result.model.SerializeToString())
    return result
