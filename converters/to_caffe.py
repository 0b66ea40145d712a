"""Weights that were trained in PyTorch as a .caffemodel, for programs that read Caffe's files alone.

The keys of the weights are those of `imae.load` (conv1.weight, bn1.mean), or a mapping says which tensor goes
where. It is a text of lines of two or three words; the rest of a line after # is a comment:

    features.0.weight  conv1.weight      a tensor, and the blob that it becomes
    features.3         conv2             a PyTorch module, and the layer whose blobs its tensors become
    features.4         bn2 scale2        BatchNorm, whose weight and bias are those of a Scale layer in Caffe
    zeros              conv1.bias        a blob of zeros; ones: of ones
    head.weight        -                 a tensor that is left out on purpose

PyTorch's running_mean and running_var are Caffe's mean and variance with a scale_factor of 1, which nobody
needs to name; num_batches_tracked has no part in what is computed. Tensors that the mapping does not name go
where their own keys say. Every blob must get values, and every tensor must be used, or it is an error: what
is lost in silence would be missed later. Shapes must agree; axes of size 1 may come and go.

What is checked before the file gets its name: it is read into another net, whose outputs on random inputs
must be those of the module that holds the weights, to 1e-5 of the largest value. With a reference, which is
the user's own model in PyTorch or as an ONNX file, that must agree as well: only it notices what the prototxt
computes in another way than the model (another eps, rounding of sizes in pooling, padding).
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imae.converters.check_onnx import random_inputs, session_errors
from imae.converters.deploy import InputShape
from imae.converters.export_torch import NEEDS_SAFETENSORS, compare, outputs_of
from imae.converters.run_onnx import open_session
from imae.converters.torch_module import CaffeModule, NamedLayer, make_module
from imae.files.atomic import atomic_file
from imae.files.errors import CaffemodelError, LayerError, first_line
from imae.files.file_kinds import FileKind, mistaken_for
from imae.files.limits import within_free_memory
from imae.files.nearest import did_you_mean
from imae.files.read import AnyPath, read_bytes
from imae.layers.layer import Shape
from imae.layers.recurrent.lstm import LSTM
from imae.net.weights import load_caffemodel, net_to_proto
from imae.prototxt import NetParameter

ALLOWED = 1e-5  # difference relative to the largest output
State = Mapping[str, Tensor]
# Where a training script puts the weights in a file that has more than them.
PLACES = ("state_dict", "model_state_dict", "model")
# What DistributedDataParallel and torch.compile put before all keys.
PREFIXES = ("module.", "_orig_mod.")
BATCH_NORM = {"running_mean": "mean", "running_var": "variance"}
CONSTANTS = {"zeros": 0.0, "ones": 1.0}
COUNTER = "num_batches_tracked"
LARGEST_PICKLE = 1 << 28  # bytes: of a state dict, a hundred for each tensor
LONGEST_NAME = 500  # characters of a class's name
# Raised by torch for a file that is no file of torch's, or that holds more than tensors.
UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError,
    IndexError, AssertionError, MemoryError, OverflowError, ImportError, OSError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip


@dataclass
class ToCaffe:
    """What was written, and how it was checked.

    layers, blobs, values
                 how many there are
    difference   largest absolute difference of the file's net from the module with the weights
    largest      largest absolute value among the module's outputs there
    reference_difference
                 largest absolute difference of the module from the reference; None without one
    not_used     tensors that the mapping leaves out
    """

    layers: int
    blobs: int
    values: int
    difference: float
    largest: float
    reference_difference: float | None = None
    not_used: list[str] = field(default_factory=list)


def to_caffe(
    param: NetParameter,
    weights: AnyPath | State,
    output: AnyPath,
    *,
    mapping: str = "",
    reference: AnyPath | nn.Module | None = None,
    input_shape: InputShape | None = None,
) -> ToCaffe:
    """Write weights of PyTorch's as the .caffemodel of a net (train_val or deploy), atomically.

    weights    a state dict, or the .safetensors or .pt file that holds one
    mapping    the text of a mapping, see above
    reference  the user's own model: a module in its eval mode, or an .onnx file

    CaffemodelError where the weights do not fit the net, or what was written is not what they compute.
    """
    if os.fspath(output).endswith(".h5"):
        raise CaffemodelError(f"{output}: only binary caffemodels are written; choose another name")
    name = "the weights" if isinstance(weights, Mapping) else os.fspath(weights)
    state = _stripped(weights if isinstance(weights, Mapping) else read_state(weights))
    module, fresh = (make_module(param, input_shape=input_shape, random_seed=seed) for seed in (0, 1))
    assigned, not_used = _assign(module, state, mapping, name)
    module.load_state_dict(assigned)
    net = module.caffe_net
    feeds = random_inputs(net, 1, None)
    inputs = tuple(torch.from_numpy(feeds[name]) for name in module.inputs)
    result = ToCaffe(
        sum(bool(step.layer.blobs) for step in net.steps),
        len(assigned),
        sum(parameter.numel() for parameter in module.parameters()),
        0.0,
        0.0,
        not_used=not_used,
    )
    if reference is not None:
        result.reference_difference = _compare_reference(module, reference, inputs)
    with atomic_file(output) as file:
        file.write(net_to_proto(net).SerializeToString())
        file.flush()
        load_caffemodel(fresh.caffe_net, file.name)
        result.difference, result.largest = compare(module, fresh, inputs)
        _check(result.difference, result.largest, "the net that reads the file is", "the weights'")
    return result


def _check(difference: float, largest: float, whose: str, than: str) -> None:
    if not difference <= ALLOWED * largest:
        raise CaffemodelError(
            f"{whose} {difference:.3g} away from {than} outputs, whose largest value is {largest:.3g}; "
            "nothing is written"
        )


def _compare_reference(
    module: CaffeModule, reference: AnyPath | nn.Module, inputs: tuple[Tensor, ...]
) -> float:
    """The largest difference of the module from the user's own model; CaffemodelError if it is too large."""
    if isinstance(reference, nn.Module):
        if any(part.training for part in reference.modules()):
            raise CaffemodelError("the reference is in training mode; call its eval() first")
        run, word = _module_call(reference), "the reference"
    else:
        run, word = _onnx_call(reference, module), os.fspath(reference)
    # In double precision, so that only the reference rounds.
    double = copy.deepcopy(module).to(torch.float64)
    try:
        difference, largest = compare(lambda *x: double(*(value.double() for value in x)), run, inputs)
    except (LayerError, RuntimeError, ValueError, TypeError) as error:
        raise CaffemodelError(
            f"{word} cannot run on the net's inputs, {_shapes(module.inputs)}: {first_line(error)}"
        ) from error
    if difference == float("inf"):
        raise CaffemodelError(
            f"{word} has not the net's outputs, {_shapes(module.outputs)}, or they are not finite; nothing "
            "is written"
        )
    _check(difference, largest, f"{word} is", "the net's")
    return difference


def _module_call(reference: nn.Module) -> Callable[..., Any]:
    weight = next((p for p in reference.parameters() if p.is_floating_point()), torch.zeros(()))

    def call(*inputs: Tensor) -> list[Tensor]:
        moved = (value.to(weight.device, weight.dtype) for value in inputs)
        return [value.cpu() for value in outputs_of(reference(*moved))]

    return call


def _onnx_call(path: AnyPath, module: CaffeModule) -> Callable[..., Any]:
    session = open_session(path)
    feeds = [value.name for value in session.get_inputs()]
    results = [value.name for value in session.get_outputs()]
    # By name where the names agree, else in order.
    order = list(module.outputs) if set(results) == set(module.outputs) else results
    names = list(module.inputs)
    places = [names.index(feed) if set(feeds) == set(names) else i for i, feed in enumerate(feeds)]
    if len(feeds) != len(names):
        raise CaffemodelError(f"{path}: it has {len(feeds)} inputs, the net {len(names)}: {', '.join(names)}")

    def call(*inputs: Tensor) -> list[Tensor]:
        try:
            values = session.run(
                order, {feed: inputs[place].numpy() for feed, place in zip(feeds, places, strict=True)}
            )
        except session_errors() as error:
            raise ValueError(first_line(error)) from error
        return [torch.from_numpy(np.asarray(value)) for value in values]

    return call


# -- the weights ---------------------------------------------------------------------------------------------


def read_state(path: AnyPath) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or in one that torch.save has written; no code in it is run.

    CaffemodelError where it is neither, or holds something else.
    """
    try:
        data = read_bytes(path)
    except OSError as error:
        raise CaffemodelError(f"cannot read '{os.fspath(path)}': {error.strerror or error}") from error
    if data[8:9] == b"{":
        return _read_safetensors(data, path)
    try:
        _check_pickles(data)
        with within_free_memory(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another protocol of pickle; errors say enough
            held = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        if mistaken := mistaken_for(data, FileKind.TORCH, FileKind.PICKLE):
            raise CaffemodelError(
                f"{path}: neither safetensors nor a file of torch.save{mistaken}"
            ) from error
        raise CaffemodelError(
            f"{path}: neither safetensors nor a state dict that can be read without running code "
            f"({_reason(error)}); write one by torch.save(model.state_dict(), ...)"
        ) from error
    for place in ("", *PLACES):
        state = held.get(place) if place and isinstance(held, Mapping) else held
        if isinstance(state, Mapping) and state and all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
        ):  # fmt: skip
            return dict(state)
    raise CaffemodelError(
        f"{path}: it holds no state dict, tensors by their names, neither itself nor under "
        f"{', '.join(PLACES)}; write one by torch.save(model.state_dict(), ...)"
    )


def _check_pickles(data: bytes) -> None:
    """ValueError where torch would take long to refuse a file: it searches its messages, which quote it."""
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            with archive.open(names[0] if names else "data.pkl") as file:
                streams = [io.BytesIO(file.read(LARGEST_PICKLE))]
    else:
        streams = [io.BytesIO(data)] * 5  # before 2020 torch wrote five, one after another
    for stream in streams:
        for opcode, name, _ in pickletools.genops(stream):
            if opcode.name == "GLOBAL" and len(str(name)) > LONGEST_NAME:
                raise ValueError("a class in it has a name that is too long")


def _reason(error: BaseException) -> str:
    """Why torch has refused a file."""
    refused = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
    return f"it holds {refused[1]}" if refused else first_line(error).split(". ")[0]


def _read_safetensors(data: bytes, path: AnyPath) -> dict[str, Tensor]:
    try:
        import safetensors.torch
    except ImportError as error:
        raise CaffemodelError(f"{path}: {NEEDS_SAFETENSORS}") from error
    try:
        return dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        raise CaffemodelError(f"{path}: not a safetensors file: {first_line(error)}") from error


def _stripped(state: State) -> dict[str, Tensor]:
    """Without what wrappers have put before all keys."""
    result = dict(state)
    for prefix in PREFIXES * 2:
        if result and all(key.startswith(prefix) for key in result):
            result = {key.removeprefix(prefix): value for key, value in result.items()}
    return result


def read_mapping(path: AnyPath) -> str:
    """The text of a mapping; CaffemodelError where it cannot be read."""
    try:
        return read_bytes(path).decode("utf-8")
    except OSError as error:
        raise CaffemodelError(f"cannot read '{os.fspath(path)}': {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CaffemodelError(f"{path}: a mapping is UTF-8 text; this file is none") from error


# -- which tensor goes where ---------------------------------------------------------------------------------


def _assign(
    module: CaffeModule, state: State, mapping: str, name: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The module's state dict, and the tensors that the mapping leaves out."""
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    sources: dict[str, str] = {}  # by the module's key: the tensor's, or one of CONSTANTS
    used: set[str] = set()
    left_out: list[str] = []
    for line, words in _lines(mapping):
        for source, target in _pairs(line, words, state, shapes):
            used.add(source)
            if not target:
                left_out.append(source)
            elif sources.setdefault(target, source) != source:
                raise CaffemodelError(f"{line}: {target} gets {sources[target]} already, and now {source}")
    for key in state:
        if key not in used and key in shapes and key not in sources:
            sources[key] = key
            used.add(key)
    for key in shapes:
        owner, _, blob = key.rpartition(".")
        if key not in sources and blob == "scale_factor" and f"{owner}.mean" in sources:
            sources[key] = "ones"
    _complete_shared(module, sources)
    _check_all(shapes, sources, state, used, name)
    assigned = {
        key: _values(key, source, state, shapes[key], module, name) for key, source in sources.items()
    }
    _check_shared(module, assigned, name)
    return assigned, left_out


def _lines(mapping: str) -> list[tuple[str, list[str]]]:
    """The words of each line, and where it is."""
    lines = []
    for number, text in enumerate(mapping.splitlines(), 1):
        words = text.partition("#")[0].split()
        if words and len(words) not in (2, 3):
            raise CaffemodelError(
                f"line {number} of the mapping: expected 'tensor layer.blob', 'module layer' or 'module "
                f"batch_norm_layer scale_layer'; got {len(words)} words"
            )
        if words:
            lines.append((f"line {number} of the mapping", words))
    return lines


def _pairs(line: str, words: list[str], state: State, shapes: Mapping[str, Shape]) -> list[tuple[str, str]]:
    """(tensor, blob's key) of one line; no key for a tensor that is left out."""
    source, *targets = words
    inner = {key: key.removeprefix(f"{source}.") for key in state if key.startswith(f"{source}.")}
    if source in state or (source in CONSTANTS and not inner):
        if len(targets) > 1:
            raise CaffemodelError(f"{line}: {source} is one tensor, and becomes one blob; got {targets}")
        if targets == ["-"]:
            return [(source, "")]
        if targets[0] not in shapes:
            raise CaffemodelError(
                f"{line}: the net has no blob {targets[0]}{did_you_mean(targets[0], shapes)}"
            )
        return [(source, targets[0])]
    if not inner:
        known = {*state, *(key.rpartition(".")[0] for key in state)}
        raise CaffemodelError(f"{line}: the weights have no {source}{did_you_mean(source, known)}")
    if targets == ["-"]:
        return [(key, "") for key in inner]
    pairs = []
    for key, leaf in inner.items():
        if leaf == COUNTER:
            continue
        keys = [f"{target}.{BATCH_NORM.get(leaf, leaf)}" for target in targets]
        fitting = [word for word in keys if word in shapes]
        if not fitting:
            raise CaffemodelError(
                f"{line}: the net has no blob {' or '.join(keys)} for {key}{did_you_mean(keys[0], shapes)}"
            )
        pairs.append((key, fitting[0]))
    return pairs


def _aliases(module: CaffeModule) -> list[list[str]]:
    """The keys of each parameter, where it has several."""
    keys: dict[int, list[str]] = {}
    for key, parameter in module.named_parameters(remove_duplicate=False):
        keys.setdefault(id(parameter), []).append(key)
    return [several for several in keys.values() if len(several) > 1]


def _complete_shared(module: CaffeModule, sources: dict[str, str]) -> None:
    """Give a blob that several layers share the same source under each of its keys."""
    for keys in _aliases(module):
        source = next((sources[key] for key in keys if key in sources), None)
        for key in keys:
            if source is not None:
                sources.setdefault(key, source)


def _check_shared(module: CaffeModule, assigned: State, name: str) -> None:
    for first, *others in _aliases(module):
        for other in others:
            if not torch.equal(assigned[first].flatten(), assigned[other].flatten()):
                raise CaffemodelError(
                    f"{name}: {first} and {other} are one blob of the net, and their values differ"
                )


def _check_all(
    shapes: Mapping[str, Shape], sources: Mapping[str, str], state: State, used: set[str], name: str
) -> None:
    """CaffemodelError unless every blob has a source and every tensor is used."""
    unused = [key for key in state if key not in used and key.rpartition(".")[2] != COUNTER]
    if missing := [key for key in shapes if key not in sources]:
        problem = f"has nothing for {_listed(missing)} ({len(missing)} of the net's {len(shapes)} blobs)"
        if unused:
            problem += f", and no blob has the name of {_listed(unused)}{did_you_mean(unused[0], missing)}"
        raise CaffemodelError(
            f"{name}: it {problem}; say by a mapping (--map) which tensor becomes which blob"
        )
    if unused:
        raise CaffemodelError(
            f"{name}: the net has no blob for {_listed(unused)}{did_you_mean(unused[0], shapes)}, which "
            f"would be lost; correct the net, or leave it out on purpose, by a line '{unused[0]} -' of the "
            "mapping"
        )


def _values(key: str, source: str, state: State, shape: Shape, module: CaffeModule, name: str) -> Tensor:
    """The values of one blob, float32, in its shape."""
    if source in CONSTANTS and source not in state:
        return torch.full(shape, CONSTANTS[source])
    value = state[source].detach()
    where = f"{name}: {source}" + ("" if source == key else f", which becomes {key},")
    if not value.is_floating_point() or value.layout != torch.strided:
        raise CaffemodelError(f"{where} must be floating-point numbers; they are {value.dtype}")
    if [d for d in value.shape if d != 1] != [d for d in shape if d != 1]:
        raise CaffemodelError(f"{where} has shape {tuple(value.shape)}; the net's blob has {shape}")
    owner = module.get_submodule(key.rpartition(".")[0])
    if isinstance(owner, NamedLayer) and isinstance(owner.layer, LSTM) and re.search(r"_(ih|hh)_l\d", source):
        raise CaffemodelError(
            f"{where} is of an LSTM of PyTorch's, whose gates have the order i, f, g, o, and Caffe's i, f, "
            "o, g; reorder its rows, and give it another key"
        )
    value = value.to("cpu", torch.float32)
    if not torch.isfinite(value).all():
        raise CaffemodelError(f"{where} holds NaN or infinity")
    return value.reshape(shape)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")


def _shapes(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items())
