"""Whether an exported model computes what its net computes: both run on random inputs.

An input that a layer reads as indices gets valid indices, one for which a layer has an example gets that;
every other input gets numbers of the standard normal distribution.

Rows of detections are compared in any order: rounding may exchange two of nearly equal scores. It may also
decide which of two boxes stays; so a net with such outputs gets up to three batches, of which one must agree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from imae.converters.onnx_builds import warn_of_two_builds
from imae.files.errors import ExportError, LayerError, first_line
from imae.layers.layer import Layer, Shape
from imae.net.net import Net

if TYPE_CHECKING:
    import onnxruntime

# Allowed difference of ONNX Runtime from the net, relative to the largest output: kernels round differently.
ALLOWED = 1e-3
BATCHES = 3  # that are tried where rounding decides what an output has
# Types that only move values from bottoms to tops: indices stay indices, probabilities stay probabilities.
MOVING = ("Concat", "Crop", "Flatten", "Reshape", "Slice", "Split", "Tile")


@dataclass
class Check:
    """What was compared on the inputs of one batch size.

    difference      largest absolute difference of ONNX Runtime's outputs from the net's
    largest         largest absolute value among the net's outputs
    not_compared    name of an output -> why none of its values was compared
    not_finite      name of an output -> how many of how many values are NaN or infinite, if any are
    """

    difference: float = 0.0
    largest: float = 0.0
    not_compared: dict[str, str] = field(default_factory=dict)
    not_finite: dict[str, tuple[int, int]] = field(default_factory=dict)


def check_model(
    model: onnx.ModelProto,
    net: Net,
    outputs: list[str],
    size: int,
    softmax: Collection[str],
    axes: Mapping[str, int] | None,
    decisions: Mapping[Layer, str] = MappingProxyType({}),
) -> Check:
    """Run the net and the model on one batch; ExportError where one of them cannot run, or a shape differs.

    size       items of each input where its batch is dynamic; else the net's shapes give their number
    softmax    the outputs to which the model applies a softmax
    axes       each input's axis of the batch; None: the batch is not dynamic
    decisions  layers that find maxima -> the model's value with their places; the net decides near-ties like
               the model (near_ties.py)
    """
    open_outputs = {name: axes for name, axes in open_axes(net).items() if axes and name in outputs}
    for batch in range(BATCHES if open_outputs else 1):
        feeds = random_inputs(net, size, axes, batch)
        check = check_batch(
            model, net, outputs, size, feeds, softmax, axes is not None, open_outputs, decisions
        )
        if check.difference <= ALLOWED * max(check.largest, 1):
            break
    return check


def check_batch(
    model: onnx.ModelProto, net: Net, outputs: list[str], size: int, feeds: dict[str, NDArray[np.float32]],
    softmax: Collection[str], dynamic: bool, open_outputs: Mapping[str, tuple[int, ...]],
    decisions: Mapping[Layer, str], model_feeds: Mapping[str, NDArray[Any]] | None = None,
) -> Check:  # fmt: skip
    """The same on these inputs of the net; `model_feeds`: of the model, where they are others."""
    warn_of_two_builds()
    try:
        expected = _run(net, feeds, outputs)
    except (LayerError, RuntimeError) as error:
        hint = "; if it is for one batch size only, use --fixed-batch" if dynamic else ""
        raise ExportError(
            f"net {net.name!r} cannot run with a batch of {size}: {first_line(error)}{hint}"
        ) from error
    places = sorted({*decisions.values()} - {*outputs})
    try:
        session = cpu_session(_with_outputs(model, places))
        values = session.run([*outputs, *places], feeds if model_feeds is None else dict(model_feeds))
    except session_errors() as error:
        raise ExportError(
            f"net {net.name!r}: ONNX Runtime cannot run the model with a batch of {size}: {first_line(error)}"
        ) from error
    by_name = dict(zip([*outputs, *places], values, strict=True))
    if decisions:
        for layer, name in decisions.items():
            layer.decided = torch.from_numpy(by_name[name])
        try:
            expected = _run(net, feeds, outputs)
        finally:
            for layer in decisions:
                layer.decided = None
    check = Check()
    for name, value in zip(outputs, values, strict=False):
        want = expected[name]
        if name in softmax:
            want = want.softmax(1)
        if name in open_outputs:
            _compare_rows(check, name, value, want.numpy(), open_outputs[name][0])
            continue
        if value.shape != tuple(want.shape):
            raise ExportError(
                f"output {name!r} has shape {value.shape} in ONNX Runtime, {tuple(want.shape)} in the net"
            )
        _compare(check, name, value, want.numpy())
    return check


def _run(net: Net, feeds: Mapping[str, NDArray[np.float32]], outputs: list[str]) -> dict[str, Tensor]:
    with torch.no_grad(), _first_pass(net):
        tops: dict[str, Tensor] = net(
            {name: torch.from_numpy(value) for name, value in feeds.items()}, keep=outputs
        )
    return {name: top.detach() for name, top in tops.items()}  # a parameter may be an output


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model, or a copy of it with more outputs."""
    if not names:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    floats = onnx.TensorProto.FLOAT
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, floats, None) for name in names)
    return copy


def _compare(check: Check, name: str, value: NDArray[Any], want: NDArray[Any]) -> None:
    finite = np.isfinite(want)
    check.difference = max(check.difference, float(_differences(value, want).max(initial=0)))
    check.largest = max(check.largest, float(np.abs(want[finite]).max(initial=0)))
    if not finite.all():
        check.not_finite[name] = int((~finite).sum()), want.size
    if not want.size:
        check.not_compared[name] = "it has no values"
    elif not finite.any():
        check.not_compared[name] = "it is NaN or infinite everywhere"
    elif not want[finite].any():
        check.not_compared[name] = "it is 0 everywhere"


def _compare_rows(check: Check, name: str, value: NDArray[Any], want: NDArray[Any], axis: int) -> None:
    """Compare what lies along an axis, each item with the nearest one of the other side."""
    finite = np.isfinite(want)
    check.largest = max(check.largest, float(np.abs(want[finite]).max(initial=0)))
    if not finite.all():
        check.not_finite[name] = int((~finite).sum()), want.size
    if not want.size:
        check.not_compared[name] = "it has no values"
    elif not want[finite].any():
        check.not_compared[name] = "it is 0, NaN or infinite everywhere"
    elif want.shape[-1] > 1 and (want[..., 1:] == -1).all():  # so DetectionOutput says it
        check.not_compared[name] = "nothing was detected"
    if value.shape != want.shape:
        check.difference = np.inf
    if value.shape != want.shape or not want.size:
        return
    rows, others = (np.moveaxis(side, axis, 0).reshape(side.shape[axis], -1) for side in (value, want))
    for left, right in ((rows, others), (others, rows)):
        for row in left:
            check.difference = max(check.difference, float(_differences(right, row).max(1).min()))


def _differences(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """0 where both are NaN or equal, infinite where one is NaN."""
    with np.errstate(invalid="ignore"):  # infinity - infinity, which are equal
        differences = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
    return np.nan_to_num(differences, nan=np.inf)


def open_axes(net: Net) -> dict[str, tuple[int, ...]]:
    """The axes of each blob whose size depends on values.

    Where they are items, as regions of interest are, what is computed of each goes on as an item.
    """
    axes: dict[str, tuple[int, ...]] = {}
    for step in net.steps:
        of_items = any(0 in axes.get(bottom, ()) for bottom in step.bottoms)
        for top in step.tops:
            axes[top] = step.layer.open_axes or ((0,) if of_items and net.blob_shapes[top] else ())
    return axes


def random_inputs(
    net: Net, size: int, axes: Mapping[str, int] | None, batch: int = 0
) -> dict[str, NDArray[np.float32]]:
    """Values for the inputs of a net; the same in every call.

    size, axes   as for `check_model`
    batch        another number, other values
    """
    generator = np.random.default_rng([size, batch] if batch else size)
    counts = index_counts(net, size if axes is not None else None)
    examples = _examples(net, size if axes is not None else None)
    feeds = {}
    for name in net.inputs:
        shape = _with_batch(net.blob_shapes[name], None if axes is None else size, axes[name] if axes else 0)
        if name in counts:
            values = generator.integers(0, counts[name], shape).astype(np.float32)
            values.flat[:1] = counts[name] - 1  # Filter selects at least one item
        elif name in examples:
            values = examples[name]
        else:
            values = generator.standard_normal(shape).astype(np.float32)
        feeds[name] = values
    return feeds


def index_counts(net: Net, size: int | None = None) -> dict[str, int]:
    """The inputs that layers read as indices, and how many indices are valid: 0 to one less.

    size   items of a batch; None: as in the net's shapes
    """
    sources = {name: {name} for name in net.inputs}  # the inputs whose values a blob holds
    counts: dict[str, int] = {}
    for step in net.steps:
        shapes = [_with_batch(net.blob_shapes[bottom], size) for bottom in step.bottoms]
        for index, bottom in enumerate(step.bottoms):
            if (count := step.layer.index_count(index, shapes)) is not None:
                counts.update((name, min(counts.get(name, count), count)) for name in sources.get(bottom, ()))
        held = set[str]().union(*(sources.get(bottom, ()) for bottom in step.bottoms))
        for top in step.tops:
            if _moves(step.layer):
                sources[top] = held
            elif step.bottoms:
                sources.pop(top, None)
    return counts


def _examples(net: Net, size: int | None) -> dict[str, NDArray[np.float32]]:
    """The values that layers propose for inputs."""
    examples = {}
    for step in net.steps:
        shapes = [_with_batch(net.blob_shapes[bottom], size) for bottom in step.bottoms]
        for index, bottom in enumerate(step.bottoms):
            source = _source(net, bottom)
            if source is not None and (values := step.layer.example(index, shapes)) is not None:
                examples[source] = values
    return examples


def _source(net: Net, blob: str) -> str | None:
    """The input that a blob is a copy of, if it is one."""
    for step in reversed(net.steps):
        if blob in step.tops and not step.layer.is_fed:
            if step.layer.type != "Split":
                return None
            blob = step.bottoms[0]
    return blob if blob in net.inputs else None


def is_softmax(net: Net, output: str) -> bool:
    """Whether an output holds the values of a Softmax layer."""
    name = output
    for step in reversed(net.steps):
        if name in step.tops and not step.layer.is_fed:
            if not _moves(step.layer):
                return step.layer.type == "Softmax"
            name = step.bottoms[0]
    return False


def _moves(layer: Layer) -> bool:
    return layer.type in MOVING or layer.idle_in_test


def _with_batch(shape: Shape, size: int | None, axis: int = 0) -> Shape:
    return shape if size is None or not shape else (*shape[:axis], size, *shape[axis + 1 :])


def batch_axes(net: Net) -> dict[str, int]:
    """The axis of each blob that counts the items of a batch.

    It is 0, but 1 in a layer's sequence of time steps, (T, N, ...), and in the blobs with the same first two
    axes from which that is computed, or which are computed from it.
    """
    axes = dict.fromkeys(net.blob_shapes, 0)

    def keeps(bottom: str, top: str) -> bool:
        shape = net.blob_shapes[bottom]
        return len(shape) > 1 and shape[:2] == net.blob_shapes[top][:2]

    for step in reversed(net.steps):
        for index, bottom in enumerate(step.bottoms):
            kept = [axes[top] for top in step.tops if keeps(bottom, top)]
            axes[bottom] = max(axes[bottom], step.layer.batch_axis(index), *kept)
    for step in net.steps:
        for top in step.tops:
            axes[top] = max(axes[top], *(axes[bottom] for bottom in step.bottoms if keeps(bottom, top)), 0)
    return axes


def batch_axes_of_outputs(
    net: Net, outputs: Sequence[str], axes: Mapping[str, int]
) -> dict[str, tuple[int, str]]:
    """The axis whose size follows that of the inputs' batch, and its name, for each output that has one."""
    large, small = (_shapes(net, axes, size) for size in (3, 2))
    found = {}
    for name in outputs:
        pairs = list(zip(small[name], large[name], strict=True))
        differing = [axis for axis, (few, many) in enumerate(pairs) if few != many]
        if (2, 3) in pairs:
            found[name] = pairs.index((2, 3)), "batch"
        elif differing:
            found[name] = differing[0], f"size of {name}"
    return found


def _shapes(net: Net, axes: Mapping[str, int], size: int) -> dict[str, Shape]:
    """The shapes of all blobs for a batch of another size."""
    shapes = {name: _with_batch(net.blob_shapes[name], size, axes[name]) for name in net.inputs}
    for step in net.steps:
        if step.layer.is_fed:
            continue
        try:
            tops = step.layer.checked_top_shapes([shapes[bottom] for bottom in step.bottoms])
        except LayerError as error:
            raise ExportError(
                f"net {net.name!r} cannot run with a batch of {size}: {error}; if it is for one batch size "
                "only, use --fixed-batch"
            ) from error
        shapes.update(zip(step.tops, tops, strict=False))
    return shapes


@contextmanager
def _first_pass(net: Net) -> Iterator[None]:
    """Within it the next pass does not go on from the states that the last one has left, as in the model."""
    continuing = [step.layer for step in net.steps if step.layer.continues]
    kept = [(layer, *named) for layer in continuing for named in layer.named_buffers(recurse=False)]
    for layer, name, buffer in kept:
        setattr(layer, name, torch.zeros_like(buffer))
    try:
        yield
    finally:
        for layer, name, buffer in kept:
            setattr(layer, name, buffer)


def cpu_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A quiet session on the CPU; one of `session_errors` where ONNX Runtime cannot run the model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def session_errors() -> tuple[type[Exception], ...]:
    """The exceptions of ONNX Runtime about a model or an input that it cannot use."""
    import onnxruntime

    state = onnxruntime.capi.onnxruntime_pybind11_state
    names = "Fail InvalidArgument InvalidGraph InvalidProtobuf NotImplemented RuntimeException"
    # UnicodeDecodeError: its message quotes bytes of the file. RuntimeError: a tensor that cannot be made.
    own = (getattr(state, name) for name in names.split())
    return UnicodeDecodeError, MemoryError, RuntimeError, *own
