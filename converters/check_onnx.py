"""Whether an exported model computes what its net computes: both run on random inputs.

An input that a layer reads as indices gets valid indices; every other input gets numbers of the standard
normal distribution.

Rows of detections are compared in any order: rounding may exchange two of nearly equal scores. It may also
decide which of two boxes stays; so a net with such outputs gets up to three batches, of which one must agree.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from imae.files.errors import ExportError, LayerError
from imae.layers.layer import Shape
from imae.net.net import Net

# Allowed difference of ONNX Runtime from the net, relative to the largest output: kernels round differently.
ALLOWED = 1e-3
BATCHES = 3  # that are tried where rounding decides what an output has
# Types that only move values from bottoms to tops: indices stay indices, probabilities stay probabilities.
MOVING = ("Concat", "Crop", "Dropout", "Flatten", "Reshape", "Slice", "Split", "Tile")


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
    model: onnx.ModelProto, net: Net, outputs: list[str], size: int, softmax: Collection[str], dynamic: bool
) -> Check:
    """Run the net and the model on one batch; ExportError where one of them cannot run, or a shape differs.

    size      items of each input if `dynamic`; else the net's shapes give their number
    softmax   the outputs to which the model applies a softmax
    """
    open_outputs = {top for step in net.steps if step.layer.open_axes for top in step.tops} & set(outputs)
    for batch in range(BATCHES if open_outputs else 1):
        feeds = random_inputs(net, size, dynamic, batch)
        check = _check_batch(model, net, outputs, size, feeds, softmax, dynamic, open_outputs)
        if check.difference <= ALLOWED * max(check.largest, 1):
            break
    return check


def _check_batch(
    model: onnx.ModelProto, net: Net, outputs: list[str], size: int, feeds: dict[str, NDArray[np.float32]],
    softmax: Collection[str], dynamic: bool, open_outputs: Collection[str],
) -> Check:  # fmt: skip
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        with torch.no_grad():
            expected = net({name: torch.from_numpy(value) for name, value in feeds.items()}, keep=outputs)
    except (LayerError, RuntimeError) as error:
        hint = "; if it is for one batch size only, use --fixed-batch" if dynamic else ""
        raise ExportError(
            f"net {net.name!r} cannot run with a batch of {size}: {str(error).splitlines()[0]}{hint}"
        ) from error
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        got = session.run(outputs, feeds)
    except session_errors() as error:
        raise ExportError(
            f"net {net.name!r}: ONNX Runtime cannot run the model with a batch of {size}: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    check = Check()
    for name, value in zip(outputs, got, strict=True):
        want = expected[name]
        if name in softmax:
            want = want.softmax(1)
        if name in open_outputs:
            _compare_rows(check, name, value, want.numpy())
            continue
        if value.shape != tuple(want.shape):
            raise ExportError(
                f"output {name!r} has shape {value.shape} in ONNX Runtime, {tuple(want.shape)} in the net"
            )
        _compare(check, name, value, want.numpy())
    return check


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


def _compare_rows(check: Check, name: str, value: NDArray[Any], want: NDArray[Any]) -> None:
    """Compare the vectors on the last axis, each with the nearest one of the other side."""
    finite = np.isfinite(want)
    check.largest = max(check.largest, float(np.abs(want[finite]).max(initial=0)))
    if not finite.all():
        check.not_finite[name] = int((~finite).sum()), want.size
    if (want[..., 1:] == -1).all():  # so DetectionOutput says it
        check.not_compared[name] = "nothing was detected"
    if value.shape != want.shape:
        check.difference = np.inf
        return
    rows, others = value.reshape(-1, value.shape[-1]), want.reshape(-1, want.shape[-1])
    for left, right in ((rows, others), (others, rows)):
        for row in left:
            check.difference = max(check.difference, float(_differences(right, row).max(1).min()))


def _differences(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """0 where both are NaN or equal, infinite where one is NaN."""
    with np.errstate(invalid="ignore"):  # infinity - infinity, which are equal
        differences = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
    return np.nan_to_num(differences, nan=np.inf)


def random_inputs(net: Net, size: int, dynamic: bool, batch: int = 0) -> dict[str, NDArray[np.float32]]:
    """Values for the inputs of a net, `size` items of each if they are `dynamic`; the same in every call.

    batch   another number, other values
    """
    generator = np.random.default_rng([size, batch] if batch else size)
    counts = index_counts(net, size if dynamic else None)
    feeds = {}
    for name in net.inputs:
        shape = _with_batch(net.blob_shapes[name], size if dynamic else None)
        if name in counts:
            values = generator.integers(0, counts[name], shape).astype(np.float32)
            values.flat[:1] = counts[name] - 1  # Filter selects at least one item
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
            if step.layer.type in MOVING:
                sources[top] = held
            elif step.bottoms:
                sources.pop(top, None)
    return counts


def is_softmax(net: Net, output: str) -> bool:
    """Whether an output holds the values of a Softmax layer."""
    name = output
    for step in reversed(net.steps):
        if name in step.tops and not step.layer.is_fed:
            if step.layer.type not in MOVING:
                return step.layer.type == "Softmax"
            name = step.bottoms[0]
    return False


def _with_batch(shape: Shape, size: int | None) -> Shape:
    return shape if size is None or not shape else (size, *shape[1:])


def session_errors() -> tuple[type[Exception], ...]:
    """The exceptions of ONNX Runtime about a model or an input that it cannot use."""
    import onnxruntime

    state = onnxruntime.capi.onnxruntime_pybind11_state
    names = "Fail InvalidArgument InvalidGraph InvalidProtobuf NotImplemented RuntimeException"
    # UnicodeDecodeError: its message quotes bytes of the file. RuntimeError: a tensor that cannot be made.
    own = (getattr(state, name) for name in names.split())
    return UnicodeDecodeError, MemoryError, RuntimeError, *own
