"""A net's prototxt: whether it reads, builds, trains and exports.

It is built in phase TEST, and in phase TRAIN where it has a loss there, with blobs of zeros that take no
memory before they are used. Layers that read files become inputs of the shape that their files give, or of an
assumed one where these are not there. Python layers are neither imported nor run: they are left out, and what
depends on them. Nothing is trained and no ONNX model is run: that a net trains means here that its net of
phase TRAIN builds, from data that are there, and has a loss and blobs that learn; that it exports means that
each of its layers has an ONNX form.
"""

from __future__ import annotations

import ast
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray
from torch import Tensor

from imae.converters.cut_net import cut_before
from imae.converters.deploy import deploy_net
from imae.converters.export_onnx import DEFAULT_OPSET
from imae.converters.graph import Graph
from imae.files.errors import ExportError, ImaeError, LayerError, PrototxtError
from imae.files.limits import LARGEST_TEXT, bytes_text
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.hdf5_output import HDF5Output
from imae.layers.layer import Shape
from imae.layers.registry import class_of, layer_types
from imae.layers.run import Run
from imae.layers.utility.python import Python
from imae.net.net import Net
from imae.net.no_loss import no_loss_message, stages_of_losses
from imae.net.user_code import UserCode, UserCodeError
from imae.prototxt import TEST, TRAIN, LayerParameter, NetParameter, NetState, Phase, TransformationParameter
from imae.prototxt.dialects import read_net_text
from imae.prototxt.python_layers import no_python_layers
from imae.prototxt.state import filter_by_state, in_state
from imae.prototxt.text import read_content
from imae.prototxt.upgrade import upgrade_net
from imae.train.doctor.row import CODE, FILE, NO, PARTLY, UNKNOWN, YES, Row, look_for
from imae.train.doctor.unknown import unknown_words

# Fields that hold a path which a layer reads. (root_folder is a prefix, not a path.)
PATHS = ("source", "mean_file", "label_map_file", "name_size_file", "infogain_file")
# What neither the fork nor imae reads: the labels are numbers.
UNREAD = ("annotated_data_param.label_map_file", "yolo_detection_output_param.label_map_file")
DIFFERS = re.compile(r"Differs: (.*?)(?:\n\n|\Z)", re.DOTALL)
ASSUMED = 224  # rows and columns of an image whose size nothing tells
MOST_LISTED = 6
MOST_TYPES = 40  # of layers for which there is no class


class Zeros(CaffeRandom):
    """Draws zeros for the fillers: an array that the system fills only when it is read takes no memory."""

    def uniform(self, n: int, a: float, b: float) -> NDArray[np.float32]:
        return np.zeros(n, np.float32)

    def gaussian(self, n: int, mu: float, sigma: float) -> NDArray[np.float32]:
        return np.zeros(n, np.float32)

    def bernoulli_single(self, n: int, p: float) -> NDArray[np.bool_]:
        return np.zeros(n, np.bool_)


class Outline(Graph):
    """The nodes of an ONNX model whose constants are left out."""

    def constant(self, value: Tensor | NDArray[Any], blob: int | None = None) -> str:
        return self.value("constant")


@dataclass
class Parts:
    """What of a net of one phase can be built without its data and its Python code.

    kept      the layers, those that read files replaced by inputs
    python    the Python layers
    unknown   blobs whose shape only they or missing files give
    lost      layers that need such a blob
    assumed   the shapes that were assumed
    """

    kept: list[LayerParameter] = field(default_factory=list)
    python: list[LayerParameter] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)
    lost: int = 0
    assumed: list[str] = field(default_factory=list)
    reads_missing_files: bool = False


class Examination(NamedTuple):
    """The row of a net, its blobs' shapes by layer name, and how its layer types differ from Caffe's.

    The flag of a shape says whether it depends on data that are not there, and was assumed.
    """

    row: Row
    blobs: dict[str, list[tuple[Shape, bool]]]
    differences: dict[str, str]


def examine_net(file: Path, root: Path) -> Examination:
    """Examine a net's prototxt."""
    row = Row(str(file), "net")
    blobs: dict[str, list[tuple[Shape, bool]]] = {}
    net = _read(file, row)
    if net is None or not _types_are_known(net, row):
        row.builds = row.trains = row.exports = NO
        return Examination(row, {}, {})
    if not net.layer:
        row.stop("it has no layers")
        return Examination(row, {}, {})
    outcomes = []
    phases = _phases(net)
    if TEST not in phases:
        row.facts.append("a net of phase TRAIN alone, so it has nothing to export")
    for phase in phases:
        parts = _parts(net, phase, file, root, row)
        built = _build(net, parts, phase, row)
        outcomes.append(_outcome(parts, built))
        if built is not None:
            for name, layer_blobs in built.params.items():
                shapes = [(tuple(blob.shape), bool(parts.assumed)) for blob in layer_blobs]
                if name not in blobs or (not parts.assumed and any(assumed for _, assumed in blobs[name])):
                    blobs[name] = shapes
        _note_training(net, parts, built, phase, row)
        if phase == TEST:
            _note_export(net.name, parts, built, row)
    row.builds = outcomes[0] if len(set(outcomes)) == 1 else PARTLY
    return Examination(row, blobs, _differences(net))


def _read(file: Path, row: Row) -> NetParameter | None:
    """The net; None where it cannot be read: then the row says why."""
    try:
        net = read_net_text(file)
        row.reads = YES
        return net
    except PrototxtError as error:
        first = error
    if (nvidias := _as_nvidias(file)) is not None:
        row.reads = YES
        row.facts.append("a net of NVIDIA Caffe: give --dialect nvidia")
        return nvidias
    row.reads = NO
    unknown = unknown_words(text_of(file), NetParameter, str(file))
    for problem in unknown.errors or [first]:
        row.stop_error(problem, FILE)
    if isinstance(unknown.message, NetParameter):  # what else would stop it
        try:
            _types_are_known(upgrade_net(unknown.message, str(file)), row)
        except PrototxtError as error:
            row.stop_error(error, FILE)
    return None


def _as_nvidias(file: Path) -> NetParameter | None:
    try:
        return read_net_text(file, "nvidia")
    except PrototxtError:
        return None


def text_of(file: Path) -> str:
    data = read_content(file)
    if len(data) > LARGEST_TEXT:
        raise PrototxtError(
            f"{file}: has {bytes_text(len(data))}; at most {bytes_text(LARGEST_TEXT)} are read"
        )
    return data.decode(errors="replace")


def _types_are_known(net: NetParameter, row: Row) -> bool:
    """Whether there is a class for each layer; else the row lists the types."""
    wrong: dict[str, tuple[LayerError, int]] = {}
    known = frozenset(layer_types())
    for layer in net.layer:
        if layer.type in wrong and layer.type not in known:  # the error, once more, takes its time
            wrong[layer.type] = wrong[layer.type][0], wrong[layer.type][1] + 1
            continue
        if len(wrong) == MOST_TYPES:
            row.facts.append(f"the layers after the first {MOST_TYPES} unknown types were not looked at")
            break
        try:
            class_of(layer)
        except LayerError as error:
            wrong[layer.type] = error, wrong.get(layer.type, (error, 0))[1] + 1
    for problem, count in wrong.values():
        before = len(row.stops)
        row.stop_error(problem)
        if len(row.stops) > before and count > 1:
            row.stops[-1].what += f" ({count} layers)"
    return not wrong


def _differences(net: NetParameter) -> dict[str, str]:
    """What the modules of the layers say of where they differ from Caffe, by type."""
    kinds: dict[str, str] = {}
    for layer in net.layer:
        module = sys.modules.get(class_of(layer).__module__)
        if match := DIFFERS.search((module and module.__doc__) or ""):
            kinds.setdefault(layer.type, " ".join(match[1].split()))
    return kinds


def _phases(net: NetParameter) -> list[Phase]:
    """TEST, and TRAIN where it has a loss; the net's own state overrides both.

    TRAIN alone where only layers of phase TRAIN make the data, as in a solver's train_net.
    """
    if net.state.HasField("phase"):
        return [net.state.phase]
    of_phase = [_filtered(net, phase).layer for phase in (TEST, TRAIN)]
    if not of_phase[0]:
        return [TRAIN] if of_phase[1] else [TEST]
    if _lacks_bottoms(of_phase[0]) and not _lacks_bottoms(of_phase[1]):
        return [TRAIN]
    trains = any(layer.loss_weight or not class_of(layer).deployed for layer in of_phase[1])
    return [TEST, TRAIN] if trains or stages_of_losses(net) else [TEST]


def _lacks_bottoms(layers: Iterable[LayerParameter]) -> bool:
    """Whether a layer has a bottom that no layer before it makes."""
    made: set[str] = set()
    for layer in layers:
        if not made.issuperset(layer.bottom):
            return True
        made.update(layer.top)
    return False


def _filtered(net: NetParameter, phase: Phase) -> NetParameter:
    state = in_state(net, phase, NetState())
    return filter_by_state(state, state.state)


def _parts(net: NetParameter, phase: Phase, file: Path, root: Path, row: Row) -> Parts:
    """Take the net of a phase apart; the row notes what is missing."""
    parts = Parts()
    for source in _filtered(net, phase).layer:
        layer = LayerParameter()
        layer.CopyFrom(source)
        kind = class_of(layer)
        if issubclass(kind, Python):
            parts.python.append(layer)
            parts.unknown.update(layer.top)
            _note_python(layer, root, row)
        elif parts.unknown.intersection(layer.bottom):
            parts.lost += 1
            parts.unknown.update(layer.top)
        elif issubclass(kind, HDF5Output):
            row.facts.append(
                f"layer {layer.name!r} writes {layer.hdf5_output_param.file_name!r}: left out here"
            )
        elif not layer.bottom and kind.makes_input and not kind.is_fed and (paths := list(_paths(layer))):
            parts.kept += _inputs(layer, paths, phase, file, root, row, parts)
        else:
            _forget_output(layer, row)
            for field_name, path in _paths(layer):
                look_for(row, path, f"layer {layer.name!r}: {field_name}", file, root)
            parts.kept.append(layer)
    return parts


def _forget_output(layer: LayerParameter, row: Row) -> None:
    """Take SSD's request to write results to files out of a layer: nothing is written here."""
    if not layer.HasField("detection_output_param"):
        return
    save = layer.detection_output_param.save_output_param
    if save.output_directory:
        row.facts.append(f"layer {layer.name!r} writes results to {save.output_directory!r}: left out here")
    layer.detection_output_param.ClearField("save_output_param")


def _paths(message: Message, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The fields of a message that hold paths, and the paths."""
    for descriptor, value in message.ListFields():
        name = f"{prefix}{descriptor.name}"
        if isinstance(value, Message):
            yield from _paths(value, f"{name}.")
        elif name in UNREAD:
            continue
        elif descriptor.name in PATHS and isinstance(value, str) and value:
            yield name, value
        elif descriptor.name == "source" and not isinstance(value, str):
            yield from ((name, path) for path in value if isinstance(path, str))


def _put_places(message: Message, places: Mapping[str, str]) -> None:
    """Replace the paths of a message by where they are."""
    for descriptor, value in message.ListFields():
        if isinstance(value, Message):
            _put_places(value, places)
        elif descriptor.name in PATHS and isinstance(value, str):
            setattr(message, descriptor.name, places.get(value, value))


def _note_python(layer: LayerParameter, root: Path, row: Row) -> None:
    """Name the code of a Python layer, and whether it is Python 3; it is parsed, and not run."""
    python = layer.python_param
    name = f"{python.module.replace('.', '/')}.py"
    row.stop(
        f"layer of type Python: {python.module}.{python.layer}", CODE,
        "read that code before you let imae import and run it; it is not run here, and has no ONNX form",
    )  # fmt: skip
    if os.path.isabs(name) or ".." in name.split("/") or "\0" in name:
        return
    for folder in (root, root / "lib", root / "python", root / "src", root / "tools"):
        place = folder / name
        if os.path.isfile(place) and not os.path.islink(place):  # Path's raise an error for a long name
            where = place.relative_to(root)
            try:
                ast.parse(text_of(place))
                fact = f"the code of {python.module} is {where}"
            except (SyntaxError, ValueError, RecursionError, ImaeError, MemoryError):
                fact = f"the code of {python.module} is {where}, and is no Python 3: bring it up to date"
            if fact not in row.facts:
                row.facts.append(fact)
            return
    fact = f"there is no {name} in the project"
    if fact not in row.facts:
        row.facts.append(fact)


def _inputs(
    layer: LayerParameter, paths: Sequence[tuple[str, str]], phase: Phase, file: Path, root: Path, row: Row,
    parts: Parts,
) -> list[LayerParameter]:  # fmt: skip
    """Inputs in place of a layer that reads files."""
    name = f"layer {layer.name!r} ({layer.type})"
    places = {path: look_for(row, path, f"{name}: {field_name}", file, root) for field_name, path in paths}
    shapes: list[Shape] = []
    # An error about a list quotes it, and a report is passed on.
    outside = [path for path in places.values() if path and not _is_near(path, root)]
    if outside:
        row.facts.append(f"{name}: {outside[0]} lies outside of the project, and is not read")
    elif all(places.values()):
        shapes = _shapes_of_files(layer, places, phase, row, parts)
    else:
        parts.reads_missing_files = True
    if not shapes:
        shapes = _assumed_shapes(layer)
        if shapes:
            parts.assumed.append(f"{name}: {' '.join(map(_shape, shapes))}")
    parts.unknown.update(layer.top[len(shapes) :])
    inputs = []
    for top, shape in zip(layer.top, shapes, strict=False):
        source = LayerParameter(name=layer.name, type="Input", top=[top])
        source.input_param.shape.add().dim.extend(shape)
        inputs.append(source)
    return inputs


def _is_near(path: str, root: Path) -> bool:
    """Whether a path lies in the project or in the working folder, links resolved."""
    place = Path(path).resolve()
    return any(place.is_relative_to(folder.resolve()) for folder in (root, Path.cwd()))


def _shapes_of_files(
    layer: LayerParameter, places: Mapping[str, str], phase: Phase, row: Row, parts: Parts
) -> list[Shape]:
    """The shapes that a layer's own files give; none where they cannot be read, or not without writing."""
    if layer.HasField("data_param") and layer.data_param.backend != layer.data_param.LMDB:
        row.facts.append(
            f"layer {layer.name!r}: LevelDB writes into a database that it opens, so it is not opened here"
        )
        return []
    param = LayerParameter()
    param.CopyFrom(layer)
    param.phase = phase
    _put_places(param, places)
    try:
        with UserCode():
            return class_of(param)(param).build([], Run(Zeros(0)))
    except ImaeError as error:
        parts.reads_missing_files = True
        row.stop_error(error)
        return []


def _assumed_shapes(layer: LayerParameter) -> list[Shape]:
    """Shapes that a layer of images and labels may have; none for other layers."""
    own = [value for descriptor, value in layer.ListFields() if isinstance(value, Message)]
    batch = max((getattr(value, "batch_size", 0) for value in own), default=0)
    if not batch or ("image" not in layer.type.lower() and not layer.HasField("data_param")):
        return []
    transform: TransformationParameter = layer.transform_param
    gray = transform.force_gray or (
        layer.HasField("image_data_param") and not layer.image_data_param.is_color
    )
    channels = len(transform.mean_value) if len(transform.mean_value) > 1 else 1 if gray else 3
    height = width = transform.crop_size or max((getattr(v, "crop_size", 0) for v in own), default=0)
    if not height:
        height = max((getattr(value, "new_height", 0) for value in own), default=0) or ASSUMED
        width = max((getattr(value, "new_width", 0) for value in own), default=0) or ASSUMED
    label: Shape = (1, 1, 1, 8) if layer.type == "AnnotatedData" else (batch,)
    shapes: list[Shape] = [(batch, channels, height, width), label]
    return shapes[: len(layer.top)]


def _build(net: NetParameter, parts: Parts, phase: Phase, row: Row) -> Net | None:
    """The net of what can be built; None where it does not build, or nothing is left."""
    word = Phase.Name(phase)
    if parts.python and parts.lost:
        row.facts.append(f"{word}: {parts.lost} of its layers depend on Python layers or missing files")
    if not parts.kept:
        return None
    param = NetParameter(name=net.name, layer=parts.kept, force_backward=net.force_backward)
    param.state.phase = phase
    python = any(layer.type == "Python" for layer in parts.kept)  # one that is built in, and imports nothing
    try:
        with UserCode(), nullcontext() if python else no_python_layers():
            built = Net(param, Run(Zeros(0)))
    except ImaeError as error:
        if parts.assumed:
            row.facts.append(
                f"{word}: with an assumed shape ({'; '.join(parts.assumed)}) it does not build: {error}"
            )
        else:
            row.stop_error(error, FILE)
        return None
    except MemoryError:
        row.stop(
            f"{word}: its blobs do not fit into the memory that an examination gets", "imae", "build it alone"
        )
        return None
    numbers = sum(math.prod(blob.shape) for blob in built.learnable)
    row.facts.append(
        f"{word}: {len(built.steps)} layers, {len(built.blob_shapes)} blobs, {numbers:,} parameters"
        + (f", with an assumed shape ({'; '.join(parts.assumed)})" if parts.assumed else "")
    )
    return built


def _outcome(parts: Parts, built: Net | None) -> str:
    if built is None:
        return UNKNOWN if parts.assumed or (parts.unknown and not parts.kept) else NO
    return PARTLY if parts.python or parts.lost else YES


def _note_training(net: NetParameter, parts: Parts, built: Net | None, phase: Phase, row: Row) -> None:
    if phase != TRAIN:
        return
    if parts.reads_missing_files:
        row.trains = NO
    elif parts.python and (built is not None or parts.unknown):
        row.trains = UNKNOWN  # its Python layers would have to be run
    elif built is None or parts.lost:
        row.trains = NO
    elif not any(built.loss_weights.values()):
        if stages_of_losses(net):  # else it is a deployed net
            row.trains = NO
            row.facts.append(no_loss_message(built, net))
    elif not any(blob.requires_grad for blob in built.learnable):
        row.trains = NO
        row.facts.append("no blob of it learns")
    else:
        row.trains = YES


def _note_export(name: str, parts: Parts, built: Net | None, row: Row) -> None:
    """Whether each layer of the deployed net has an ONNX form."""
    if built is None:
        row.exports = _outcome(parts, built)
        return
    problems: Counter[str] = Counter()
    try:
        with UserCode():
            deployed = Net(deploy_net(_built_from(name, parts)), Run(Zeros(0)))
    except ImaeError as error:
        row.exports = NO
        row.facts.append(f"export: {error}")
        return
    shapes = dict(deployed.blob_shapes)
    graph, current = Outline(DEFAULT_OPSET, shapes), {name: name for name in deployed.inputs}
    for index, step in enumerate(deployed.steps):
        if step.layer.is_fed:
            continue
        bottoms = [current[name] for name in step.bottoms]
        for top in step.tops:
            current[top] = f"{top}@{index}"
            shapes[current[top]] = shapes[top]
        try:
            with UserCode():
                step.layer.to_onnx(graph, bottoms, [current[top] for top in step.tops])
        except (ExportError, UserCodeError) as error:
            problems[f"{error}{cut_before(deployed, step)}"] += 1
        except MemoryError:
            problems["its constants do not fit into the memory that an examination gets"] += 1
    whole = not parts.python and not parts.lost
    row.exports = NO if problems else YES if whole else PARTLY
    for problem, _ in problems.most_common(MOST_LISTED):
        remedy = "" if "; " in problem else "cut the net before it with --until BLOB"
        row.stop(problem, "imae", remedy)


def _built_from(name: str, parts: Parts) -> NetParameter:
    """The net of phase TEST that the kept layers make."""
    param = NetParameter(name=name, layer=parts.kept)
    param.state.phase = TEST
    return param


def _shape(shape: Shape) -> str:
    return "x".join(map(str, shape))
