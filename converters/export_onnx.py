"""A net and its weights as an ONNX model that computes what the net computes in phase TEST.

Data layers become inputs; losses, accuracies and all layers that depend on labels are left out. Each layer
adds its own nodes (`Layer.to_onnx`). The model is compared with the net, in ONNX Runtime, before it is
written.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.numpy_helper
import onnx.shape_inference
import torch
from onnx import TensorProto, helper

from imae.converters.check_onnx import (
    ALLOWED,
    Check,
    batch_axes,
    batch_axes_of_outputs,
    check_model,
    is_softmax,
    open_axes,
)
from imae.converters.cut_net import cut_before, cut_net
from imae.converters.deploy import InputShape, deploy_net, deployed_preprocessing
from imae.converters.describe_model import About, describe
from imae.converters.dynamic_size import DynamicSize, Sides, at_size, find_dynamic_size
from imae.converters.embed import Embedded, Embedding, check_embedded, embed_preprocessing
from imae.converters.graph import Graph
from imae.converters.opset import DEFAULT_OPSET as DEFAULT_OPSET
from imae.converters.opset import NEWEST_OPSET, OLDEST_OPSET
from imae.converters.preprocessing import NOTHING, Preprocessing, PreprocessingOptions, Size, size_text
from imae.converters.size_steps import size_steps
from imae.files.atomic import write_atomically
from imae.files.errors import ExportError, first_line
from imae.files.read import AnyPath
from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import Layer
from imae.layers.run import Run
from imae.layers.vision.pooling import PoolingMethod
from imae.net.fold import fold_batch_norm, fold_shortcuts
from imae.net.net import Net
from imae.net.weights import load_caffemodel, unused_text
from imae.prototxt import NetParameter

logger = logging.getLogger(__name__)

# The version of the file format that belongs to each operator set; old runtimes refuse newer versions.
IR_VERSION = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}


@dataclass(frozen=True)
class ExportOptions:
    """How a net becomes a model.

    opset          ONNX operator set
    fold           fold BatchNorm and Scale into the convolution or inner product before them, and replace a
                   shortcut that appends zeros by a convolution
    dynamic_batch  leave the size of the batch open, for inputs and outputs
    dynamic_size   leave height and width of the images open, or one of them; None: neither
    softmax        append a softmax to each output that has a class axis and is not yet that of a Softmax
    embedding      put the preparation of images into the model, which then takes their bytes; None: its input
                   is prepared images
    until          the blobs that become outputs, in place of those that no layer reads
    """

    opset: int = DEFAULT_OPSET
    fold: bool = False
    dynamic_batch: bool = True
    dynamic_size: Sides | None = None
    softmax: bool = False
    embedding: Embedding | None = None
    until: Sequence[str] = ()


DEFAULTS = ExportOptions()


@dataclass
class Export:
    """What was exported, and how it was checked.

    difference    largest absolute difference of ONNX Runtime's outputs from the net's, on random inputs
    largest       largest absolute value among the net's outputs there
    batch_sizes   the batch sizes that were compared
    not_compared  name of an output -> why none of its values was compared
    preprocessing how images are prepared for the model; None: nothing says it
    from_fillers  layers whose blobs are those of their fillers, as no weights have them
    moved         with a resizing in the model: the largest share of values that are a grey level away from
                  OpenCV's, of random images; None: there is none
    size_step     of the sizes that images may have, counted from the net's own; None: it is fixed
    sizes         other sizes of images that were compared
    """

    model: onnx.ModelProto
    inputs: list[str]
    outputs: list[str]
    difference: float
    largest: float
    batch_sizes: tuple[int, ...]
    not_compared: dict[str, str]
    preprocessing: Preprocessing | None = None
    from_fillers: Sequence[str] = ()
    moved: float | None = None
    size_step: int | None = None
    sizes: tuple[Size, ...] = ()


def export_net(
    net: Net, options: ExportOptions = DEFAULTS, *, preprocessing: Preprocessing | None = None
) -> Export:
    """The ONNX model of a TEST net that has Input layers (see `deploy_net`), checked in ONNX Runtime.

    preprocessing  how images are prepared for the net; written into the metadata

    ExportError where a layer has no ONNX form, an option does not fit the net, or the model does not compute
    what the net computes.
    """
    _check_request(net, options)
    free = find_dynamic_size(net, options.dynamic_size) if options.dynamic_size else None
    built = _build(net, options, free)
    outputs = built.outputs
    axes = batch_axes(net)
    open_batch = axes if options.dynamic_batch else None
    metadata = preprocessing.metadata() if preprocessing is not None else {}
    if free is not None:
        metadata |= size_steps(free.step, *free.size)
    model = _model(net, built, open_batch, metadata, free.names if free else {})
    embedded = None
    if options.embedding is not None:
        embedded = embed_preprocessing(model, preprocessing, options.embedding)
    for layer in net.layers:
        if isinstance(layer, PoolingMethod):
            layer.on_cpu = True
    first = net.inputs[0]
    batch_sizes = (1, 3) if options.dynamic_batch else (net.blob_shapes[first][axes[first]],)

    def check(batch: int) -> Check:
        return check_model(model, net, outputs, batch, built.softmax, open_batch, built.decisions)

    checks = [check(batch) for batch in (batch_sizes if free is None else batch_sizes[:1])]
    if free is not None:
        checks += _checks_of_sizes(net, free, check, batch_sizes)
    if continuing := [repr(step.layer.name) for step in net.steps if step.layer.continues]:
        logger.warning(
            "layer %s: each run of the model starts from states of 0, as the net's first pass does. Its "
            "later passes go on from the last states; with expose_hidden they are inputs and outputs",
            ", ".join(continuing),
        )
    result = Export(
        model,
        net.inputs,
        outputs,
        max(check.difference for check in checks),
        max(check.largest for check in checks),
        batch_sizes,
        _not_compared(outputs, checks),
        preprocessing,
        size_step=None if free is None else free.step,
        sizes=() if free is None else tuple(free.compared),
    )
    if result.difference > ALLOWED * max(result.largest, 1):
        raise ExportError(
            f"net {net.name!r}: the ONNX model's outputs are {result.difference:.3g} away from the net's, "
            f"whose largest value is {result.largest:.3g}; nothing is written"
        )
    if embedded is not None:
        _replace_by_embedded(result, embedded, net, built, options.dynamic_batch)
    return result


def _replace_by_embedded(
    result: Export, embedded: Embedded, net: Net, built: _Built, dynamic_batch: bool
) -> None:
    """Check the model that prepares images itself, and let the result hold it."""
    both = [
        check_embedded(embedded, net, built.outputs, size, built.softmax, dynamic_batch, built.decisions)
        for size in result.batch_sizes
    ]
    result.model, result.preprocessing = embedded.model, embedded.preprocessing
    result.inputs = [embedded.preprocessing.name]
    result.difference = max(result.difference, *(check.difference for check, _ in both))
    result.largest = max(result.largest, *(check.largest for check, _ in both))
    result.moved = None if embedded.resized is None else max(moved for _, moved in both)


def _check_request(net: Net, options: ExportOptions) -> None:
    """ExportError for an operator set that is not known, weights that are not finite, and unknown blobs."""
    if not OLDEST_OPSET <= options.opset <= NEWEST_OPSET:
        raise ExportError(f"opset must be {OLDEST_OPSET} to {NEWEST_OPSET}, got {options.opset}")
    for step in net.steps:  # not by name: two layers may have the same one
        for index, blob in enumerate(step.layer.blobs):
            if not torch.isfinite(blob).all():
                raise ExportError(
                    f"layer {step.layer.name!r}: blob {index} holds NaN or infinity; train it again"
                )
    for blob in options.until:
        if blob not in net.blob_shapes:
            raise ExportError(f"net {net.name!r} has no blob {blob!r} that is computed from its inputs alone")


@dataclass(frozen=True)
class _Built:
    """The graph of a net, its outputs, those that got a softmax, and the values of `Layer.decision_top`."""

    graph: Graph
    outputs: list[str]
    softmax: set[str]
    decisions: dict[Layer, str]


def _build(net: Net, options: ExportOptions, free: DynamicSize | None) -> _Built:
    """Let each layer add its nodes."""
    opset, until, plan = options.opset, options.until, net.steps
    if options.fold:
        any_size = free is not None
        plan = tuple(fold_shortcuts(net, fold_batch_norm(net, until), until, any_size=any_size))
    shapes = dict(net.blob_shapes)
    free_axes = {} if free is None else dict(free.free_axes)
    graph = Graph(opset, shapes, free_axes)
    current = {name: name for name in net.inputs}
    last_writer = {top: index for index, step in enumerate(plan) for top in step.tops}
    outputs = list(dict.fromkeys(until)) or [name for name in net.outputs if name not in net.inputs]
    with_softmax = _softmax_outputs(net, outputs) if options.softmax else set()
    final = {
        name: graph.fresh(f"{name}_logits") if name in with_softmax else name
        for name in dict.fromkeys((*net.outputs, *outputs))
    }
    decisions: dict[Layer, str] = {}
    for index, step in enumerate(plan):
        if step.layer.is_fed:
            continue
        bottoms = [current[name] for name in step.bottoms]
        for top in step.tops:
            value = final.get(top, top)
            if last_writer[top] != index or value in net.inputs:
                value = graph.fresh(f"{top}@{step.layer.name}")
            shapes[value], free_axes[value] = shapes[top], free_axes.get(top, ())
            current[top] = value
        tops = [current[top] for top in step.tops]
        graph.enter(step.layer)
        try:
            step.layer.to_onnx(graph, bottoms, tops)
            if free is not None:
                of_bottoms, of_tops = (
                    dict(zip(values, blobs, strict=True))
                    for values, blobs in ((bottoms, step.bottoms), (tops, step.tops))
                )
                free.check(step.layer, opset, of_bottoms, of_tops)
        except ExportError as error:
            raise ExportError(f"{error}{cut_before(net, step)}") from error
        if step.layer.decision_top is not None:
            decisions[step.layer] = tops[step.layer.decision_top]
    graph.enter(None)
    for name in outputs:
        if name in with_softmax:
            graph.node("Softmax", [final[name]], [name], axis=1)
    renamed = graph.finish(net.inputs, outputs)
    decisions = {layer: renamed.get(value, value) for layer, value in decisions.items()}
    return _Built(graph, outputs, with_softmax, decisions)


def _not_compared(outputs: Sequence[str], checks: Sequence[Check]) -> dict[str, str]:
    """The outputs of which none of the checks compared a value, and why; warns of them."""
    unseen = set(outputs).intersection(*(check.not_compared for check in checks))
    not_compared = {name: checks[-1].not_compared[name] for name in outputs if name in unseen}
    for name, why in not_compared.items():
        logger.warning(
            "output %r: NOTHING WAS COMPARED on random inputs: %s; are these the net's weights?", name, why
        )
    for name, (count, total) in checks[-1].not_finite.items():
        if name not in not_compared:
            logger.warning("output %r: %d of %d values are not finite on random inputs", name, count, total)
    return not_compared


def _checks_of_sizes(
    net: Net, free: DynamicSize, check: Callable[[int], Check], batch_sizes: Sequence[int]
) -> Iterator[Check]:
    """The checks with images of other sizes, the last batch size first."""
    batches = itertools.cycle(reversed(batch_sizes))
    for (size, shapes), batch in zip(free.compared.items(), batches, strict=False):
        try:
            with at_size(net, shapes):
                yield check(batch)
        except ExportError as error:
            raise ExportError(f"{error} (with images of {size_text(size)})") from error


def _model(
    net: Net,
    built: _Built,
    axes: Mapping[str, int] | None,
    metadata: dict[str, str],
    axis_names: Mapping[str, Mapping[int, str]],
) -> onnx.ModelProto:
    """The model of a graph; ExportError where ONNX refuses it.

    axes         each input's axis of the batch; None: the batch is not dynamic
    axis_names   name of an input or output -> its other free axes and their names
    """
    graph, outputs = built.graph, built.outputs
    dynamic: dict[str, tuple[int, str]] = {}
    if axes is not None:
        dynamic = {name: (axes[name], "batch") for name in net.inputs}
        dynamic |= batch_axes_of_outputs(net, outputs, axes)
    axes_of = open_axes(net)

    def info(name: str) -> onnx.ValueInfoProto:
        shape: list[int | str] = list(net.blob_shapes[name])
        if open_here := axes_of.get(name, ()):
            for axis in open_here:
                shape[axis] = f"size of {name}"
        elif name in dynamic and shape:
            axis, label = dynamic[name]
            shape[axis] = label
        for axis, label in axis_names.get(name, {}).items():
            shape[axis] = label
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
        opset_imports=[helper.make_opsetid("", graph.opset)],
        ir_version=IR_VERSION[graph.opset],
    )
    helper.set_model_props(model, metadata)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"net {net.name!r}: the ONNX model is not valid: {first_line(error)}") from error
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


def export_file(
    param: NetParameter,
    weights: AnyPath | None,
    output: AnyPath,
    options: ExportOptions = DEFAULTS,
    *,
    input_shape: InputShape | None = None,
    dialect: str | None = None,
    allow_missing: bool = False,
    preprocessing: PreprocessingOptions = NOTHING,
    about: About | None = None,
) -> Export:
    """Export a net (train_val or deploy) and its caffemodel to an .onnx file, which is written atomically.

    The net is cut after the blobs of `options.until`; types that are not needed for them may be unknown.

    input_shape     of the inputs, where the net does not give it
    dialect         the fork that wrote the weights, one of DIALECTS
    allow_missing   layers that the weights lack get the values of their fillers; else they are an ExportError
    preprocessing   how images are prepared, where the net does not say it, or otherwise than it says
    about           what the model says of itself besides: its source, its classes' names, its licence

    An ImaeError where a file cannot be read, written or exported.
    """
    if options.until:
        param = cut_net(param, options.until)
    net = Net(deploy_net(param, input_shape), Run(CaffeRandom(0)))
    missing = [s.layer.name for s in net.steps if s.layer.blobs and not s.layer.param.blobs]
    if weights is not None:
        report = load_caffemodel(net, weights, dialect)
        missing = report.fresh
        if missing and not allow_missing:
            raise ExportError(
                f"{weights} has no blobs for the layers {', '.join(missing)}, which would be their fillers' "
                f"random numbers{unused_text(report)}; give the weights of this net, or --allow-missing"
            )
    known = deployed_preprocessing(param, net, preprocessing, free_size=options.dynamic_size is not None)
    result = export_net(net, options, preprocessing=known)
    result.from_fillers = missing
    describe(result, net, about or About(weights=weights))
    write_atomically(Path(output), result.model.SerializeToString())
    return result
