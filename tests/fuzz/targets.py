"""The targets of fuzzing: for each kind of file, how broken files are made and which part of imae reads them.

A target works in a folder of its own, the current one. `check` gets the bytes of a broken file. It may raise
only ImaeErrors, and write only into that folder.
"""

from __future__ import annotations

import gzip
import importlib
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from re import fullmatch
from typing import Any

import numpy as np
from choices import Draw, Files, choosing, either
from mutations import mutated_bytes, mutated_fields, mutated_message, mutated_text

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "cases"
SMALL = 200_000  # a net is run only if its blobs have at most this many values


@dataclass(frozen=True)
class Target:
    """`prepare` writes the files that stay in the folder, and returns the function that makes broken files."""

    name: str
    prepare: Callable[[], Files]
    check: Callable[[bytes], object]


TARGETS: dict[str, Target] = {}


def target(prepare: Callable[[], Files]) -> Callable[[Callable[[bytes], object]], Callable[[bytes], object]]:
    """Decorator: register the check under its name, with the files that `prepare` makes."""

    def register(check: Callable[[bytes], object]) -> Callable[[bytes], object]:
        TARGETS[check.__name__] = Target(check.__name__, prepare, check)
        return check

    return register


def command(name: str, *arguments: str) -> None:
    """Run a command of the command line, without main's handling of an ImaeError."""
    main = importlib.import_module("imae.cli.main")
    module = main.command_module(name)
    parser = main.Parser(prog=f"imae {name}", allow_abbrev=False)
    module.add_arguments(parser)
    module.run(parser.parse(arguments))


def write(name: str, data: bytes) -> str:
    Path(name).write_bytes(data)
    return name


def remove(*names: str) -> None:
    """Remove files or folders, if they exist."""
    for name in names:
        if os.path.isdir(name) and not os.path.islink(name):
            shutil.rmtree(name)
        elif os.path.lexists(name):
            os.remove(name)


def cases(*patterns: str, largest: int = 20_000) -> list[bytes]:
    """The contents of small files of tests/cases."""
    paths = [path for pattern in patterns for path in sorted(CASES.glob(pattern))]
    contents = [path.read_bytes() for path in paths if path.stat().st_size <= largest]
    assert contents, patterns
    return contents


def picture(extension: str, height: int = 5, width: int = 7, channels: int = 3) -> bytes:
    import cv2

    pixels: Any = np.random.default_rng(1).integers(0, 256, (height, width, channels), np.uint8)
    return cv2.imencode(extension, pixels)[1].tobytes()


def datums() -> list[bytes]:
    from imae.layers.data.datum import datum_from_array
    from imae.prototxt import Datum

    pixels = np.arange(30, dtype=np.uint8).reshape(3, 2, 5)
    encoded = [Datum(data=picture(e), label=3, encoded=True) for e in (".png", ".jpg", ".bmp")]
    made = [datum_from_array(pixels, 1), datum_from_array(pixels.astype(np.float32), 2), *encoded]
    return [datum.SerializeToString() for datum in made]


def write_lmdb(folder: str, records: dict[bytes, bytes]) -> bytes:
    """Make a database. Return the bytes of its file."""
    import lmdb

    remove(folder)
    with (
        lmdb.open(folder, map_size=1 << 22, sync=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in records.items():
            transaction.put(key, value)
    return Path(folder, "data.mdb").read_bytes()


# -- nets and solvers ----------------------------------------------------------------------------------------


def vocabulary() -> list[bytes]:
    """The names of all fields, enum values, layer types and fillers."""
    from imae.layers.filler import FILLERS
    from imae.layers.registry import layer_types
    from imae.prototxt.schema import CAFFE

    names = {name for name in [*FILLERS, *layer_types(), "true", "false"] if name != "Python"}
    for message in CAFFE.nested_types:
        names |= set(message.fields_by_name)
        for enum in message.enum_types:
            names |= set(enum.values_by_name)
    return sorted(name.encode() for name in names)


def net_texts() -> Files:
    from imae.prototxt.text import parse_net

    write_lmdb("db", {b"%d" % i: datums()[0] for i in range(3)})
    patterns = ("layers/*/*.prototxt", "nets/*.prototxt", "upgrade/*.in.prototxt", "state/*.prototxt")
    seeds = cases(*patterns, "invalid/net_*.prototxt")
    seeds.append(
        b'layer { name: "d" type: "Data" top: "data" top: "label" transform_param { crop_size: 2 mirror: true } '
        b'data_param { source: "db" batch_size: 2 backend: LMDB prefetch: 1 } } '
        b'layer { name: "d" type: "DummyData" top: "x" top: "y" dummy_data_param { num: 2 channels: 3 height: 1 '
        b'width: 1 data_filler { type: "gaussian" std: 0.1 } } }'
    )
    return either(mutated_text(seeds, vocabulary()), mutated_fields(readable(seeds, parse_net), NAMES))


NAMES = [
    "",
    "data",
    "label",
    "x",
    "ip",
    "loss",
    "a.png",
    "db",
    "/dev/null",
    "../x",
    "a\nb",
    "ä",
    "gaussian",
    "xavier",
]
NAMES += ["Data", "Input", "ReLU", "Convolution", "Pooling", "Softmax", "LSTM", "BatchNorm", "Scale", "Split"]
NAMES += ["fixed", "step", "multistep", "poly", "Adam", "SGD"]


def readable(texts: Sequence[bytes], parse: Callable[[str], Any]) -> list[Any]:
    """The messages of those texts that can be parsed."""
    errors = importlib.import_module("imae.files.errors")
    messages = []
    for text in texts:
        try:
            messages.append(parse(text.decode(errors="replace")))
        except errors.ImaeError:
            continue
    return messages


def names_python(param: Any) -> bool:
    """Whether a net has a layer that runs code; such nets are not built here."""
    return any(layer.type == "Python" for layer in param.layer)


@target(net_texts)
def net(data: bytes) -> None:
    import torch

    from imae.layers.caffe_random import CaffeRandom
    from imae.layers.run import Run
    from imae.net.net import Net
    from imae.prototxt import TEST, TRAIN, NetParameter
    from imae.prototxt.text import parse_net, read_net, to_text

    param = read_net(write("net.prototxt", data))
    text = to_text(param)
    again = parse_net(text)
    assert again == param or ("nan" in text and to_text(again) == text)  # text has no sign for NaN
    if names_python(param):
        return
    for phase in (TRAIN, TEST):
        state = NetParameter()
        state.CopyFrom(param)
        state.state.phase = phase
        built = Net(state, Run(CaffeRandom(1)))
        values = sum(int(np.prod(shape)) for shape in built.blob_shapes.values())
        values += sum(blob.numel() for blob in built.learnable)
        if values <= SMALL:
            inputs = {name: torch.zeros(built.blob_shapes[name]) for name in built.inputs}
            blobs = built.forward(inputs)
            built.loss(blobs)
            # The shape of a Filter's tops depends on the data.
            known = all(step.layer.type != "Filter" for step in built.steps)
            for name in built.outputs if known else ():
                assert tuple(blobs[name].shape) == built.blob_shapes[name], name
    remove(*(name for name in os.listdir() if name not in ("net.prototxt", "db", "input")))


TINY_NET = b"""
layer { name: "data" type: "DummyData" top: "data" top: "label"
        dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 }
                           data_filler { type: "gaussian" } data_filler { type: "constant" value: 1 } } }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" param { name: "w" } param { lr_mult: 2 }
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "bn" type: "BatchNorm" bottom: "a" top: "b" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "b" bottom: "label" top: "loss" }
"""
TINY_SOLVER = (
    b'base_lr: 0.1 lr_policy: "step" stepsize: 4 gamma: 0.5 momentum: 0.9 random_seed: 1 snapshot_prefix: "s" '
    b"max_iter: 3 average_loss: 2 net_param { %s }" % TINY_NET
)


def solver_texts() -> Files:
    from imae.prototxt.text import parse_solver

    seeds = [TINY_SOLVER, TINY_SOLVER.replace(b'"step"', b'"multistep" stepvalue: 2 stepvalue: 5')]
    for kind in (b"Nesterov", b"AdaGrad", b"RMSProp", b"AdaDelta", b"Adam"):
        seeds.append(TINY_SOLVER + b' type: "%s" delta: 0.1 momentum2: 0.9 rms_decay: 0.9' % kind)
    seeds.append(
        TINY_SOLVER + b"test_iter: 1 test_interval: 2 test_state { stage: 'x' } solver_mode: CPU display: 1"
    )
    seeds += cases("upgrade/solver_*.in.prototxt", "runs/*/solver.prototxt")
    return either(mutated_text(seeds, vocabulary()), mutated_fields(readable(seeds, parse_solver), NAMES))


@target(solver_texts)
def solver(data: bytes) -> None:
    from imae.prototxt.text import read_solver, to_text
    from imae.train.solver import Solver

    param = read_solver(write("solver.prototxt", data))
    to_text(param)
    if any(map(names_python, [param.net_param, param.train_net_param, *param.test_net_param])):
        return
    if not fullmatch(r"[\w.]{0,20}", param.snapshot_prefix):
        param.snapshot_prefix = "s"  # snapshots go wherever the solver says
    made = Solver(param)
    short = param.iter_size <= 3 and sum(param.test_iter) <= 100  # else a training takes what it asks for
    if short and sum(blob.numel() for blob in made.net.learnable) <= SMALL:
        made.step(2)


# -- weights and solver states -------------------------------------------------------------------------------

WEIGHTS_NET = b"""
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 4 dim: 4 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 2 kernel_size: 2 } }
layer { name: "bn" type: "BatchNorm" bottom: "c" top: "c" }
layer { name: "ip" type: "InnerProduct" bottom: "c" top: "ip" inner_product_param { num_output: 2 } }
"""
cache: dict[str, Any] = {}


def weights_net() -> Any:
    from imae.layers.caffe_random import CaffeRandom
    from imae.layers.run import Run
    from imae.net.net import Net
    from imae.prototxt.text import parse_net

    if "net" not in cache:
        cache["net"] = Net(parse_net(WEIGHTS_NET.decode()), Run(CaffeRandom(1)))
    return cache["net"]


def caffemodels() -> Files:
    from imae.net.weights import net_to_proto
    from imae.prototxt import NetParameter

    today = net_to_proto(weights_net(), diff=True)
    old = NetParameter(name="old", input=["data"], input_dim=[1, 1, 4, 4])
    conv = old.layers.add(name="conv", type="CONVOLUTION", bottom=["data"], top=["c"], blobs_lr=[1, 2])
    conv.blobs.add(num=2, channels=1, height=2, width=2, data=[1] * 8)
    conv.blobs.add(num=1, channels=1, height=1, width=2, data=[1] * 2)
    oldest = NetParameter(name="oldest")
    layer = oldest.layers.add(bottom=["data"], top=["c"]).layer
    layer.name, layer.type, layer.num_output, layer.kernelsize = "conv", "conv", 2, 2
    layer.blobs.extend(conv.blobs)
    double = NetParameter(name="double")
    blob = double.layer.add(name="ip", type="InnerProduct").blobs.add(double_data=[1] * 36)
    blob.shape.dim.extend([2, 18])
    seeds = [message.SerializeToString() for message in (today, old, oldest, double)]
    return mutated_message(seeds, (*range(1, 12), 100, 103, 106, 139, 2000))


@target(caffemodels)
def caffemodel(data: bytes) -> None:
    from imae.net.weights import load_caffemodel, save_caffemodel

    load_caffemodel(weights_net(), write("w.caffemodel", data))
    save_caffemodel(weights_net(), "out")


def state_dicts() -> Files:
    """Weights of PyTorch's, as safetensors, as torch.save writes them, and as it did before 2020."""
    import safetensors.torch
    import torch

    state = {
        f"{step.layer.name}.{step.layer.blob_name(index)}": blob.detach()
        for step in weights_net().steps
        for index, blob in enumerate(step.layer.blobs)
    }
    seeds = [safetensors.torch.save(state, {"format": "pt"})]
    for value in (state, {"state_dict": state, "epoch": 3}):
        for zipped in (True, False):
            torch.save(value, buffer := io.BytesIO(), _use_new_zipfile_serialization=zipped)
            seeds.append(buffer.getvalue())
    return mutated_bytes(seeds)


@target(state_dicts)
def state_dict(data: bytes) -> None:
    from imae.converters.to_caffe import to_caffe
    from imae.prototxt.text import parse_net

    to_caffe(parse_net(WEIGHTS_NET.decode()), write("w.pt", data), "w.caffemodel")


@target(caffemodels)
def dialects(data: bytes) -> None:
    from imae.prototxt.dialects import DIALECTS, read_net_dialect
    from imae.prototxt.text import read_net_binary

    read_net_binary(write("w.caffemodel", data))
    for dialect in DIALECTS:
        read_net_dialect("w.caffemodel", dialect)


@target(caffemodels)
def outline(data: bytes) -> None:
    from imae.prototxt.outline import net_outline

    net_outline(write("w.caffemodel", data))


def examined(kind: str, path: Path | str) -> None:
    """Let `imae doctor` examine a file: it makes a row of any. Refused is what does not read, by its first line."""
    from imae.files.errors import ImaeError
    from imae.train.doctor.examiner import examine
    from imae.train.doctor.row import Row

    row = Row.from_dict(json.loads(json.dumps(examine(kind, Path(path).absolute(), Path.cwd())))["row"])
    assert row.stops or row.reads == "yes"
    if row.reads != "yes":
        raise ImaeError(row.stops[0].what)


@target(net_texts)
def doctor_net(data: bytes) -> None:
    examined("net", write("net.prototxt", data))


@target(solver_texts)
def doctor_solver(data: bytes) -> None:
    examined("solver", write("solver.prototxt", data))


def hdf5_files(make: Callable[[Any], object], names: Sequence[str]) -> Files:
    """HDF5 files like the one that `make` fills, with other contents under these names, or with other bytes.

    The folder also has another HDF5 file, and a pipe: opening it would block for ever.
    """
    import h5py

    if not os.path.exists("pipe"):
        os.mkfifo("pipe")
    with h5py.File("other.h5", "w") as file:
        file["x"] = np.ones((4, 3), np.float32)
    seeds = []
    for version in ("earliest", "latest"):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w", libver=version) as file:
            make(file)
        seeds.append(buffer.getvalue())

    @choosing
    def edited(draw: Draw) -> bytes:
        if draw.number(0, 2) == 0:
            return draw(mutated_bytes(seeds, _hdf5_places))
        buffer = io.BytesIO()
        with h5py.File(buffer, "w", libver=draw.item(["earliest", "latest"])) as file:
            make(file)
            for _ in range(draw.number(1, 2)):
                _replace(draw, file, draw.item(names))
        data = buffer.getvalue()
        return draw(mutated_bytes([data], _hdf5_places)) if draw.number(0, 3) == 0 else data

    return edited()


def _hdf5_places(data: bytes) -> list[int]:
    """The offsets of bytes that are not 0, most of which are structure."""
    return [i for i in range(min(len(data), 4096)) if data[i]]


SHAPES = [
    (),
    (0,),
    (1,),
    (3,),
    (5, 2),
    (4, 3),
    (2, 3, 2, 2),
    (0, 3),
    (2**31,),
    (2**33, 2**20),
    (10**9, 3),
    (1,) * 32,
]


def _replace(draw: Draw, file: Any, name: str) -> None:
    """Replace a data set or group by something else."""
    import h5py

    parents = [name[:at] for at, letter in enumerate(name) if letter == "/"]
    for parent in parents:
        if not is_there(file, parent) or not isinstance(file[parent], h5py.Group):
            return
    if is_there(file, name, hard=False):
        if draw.number(0, 9) == 0:
            return
        del file[name]
    kind = draw.number(0, 10)
    shape = draw.item(SHAPES)
    dtype = draw.item(["f4", "f8", "f2", "i4", "u1", "i8", "u8", "?", "S3", "c8", ">f4", ">i2"])
    large = int(np.prod(shape, dtype=object)) > 10**6
    if kind <= 4:
        options: dict[str, Any] = {}
        if shape and 0 not in shape and (large or draw.coin()):
            options["chunks"] = tuple(min(max(d, 1), 2) for d in shape)
            options["compression"] = draw.item([None, "gzip", "lzf"])
            options["fillvalue"] = draw.item([None, 1]) if dtype not in ("S3", "c8") else None
        data_set = file.create_dataset(name, shape, dtype, **options)
        if not large and data_set.size and dtype not in ("S3", "c8"):
            data_set[...] = draw.item(NUMBERS_OF_DATA)
    elif kind == 5:
        file.create_dataset(name, dtype=h5py.string_dtype() if draw.coin() else "S4", data=b"text")
    elif kind == 6:
        file.create_group(name)
    elif kind == 7:
        targets = [
            "/",
            "/no/where",
            f"/{name}",
            "/out/x",
            "out",
            "./" * 9 + name.rpartition("/")[2],
            "/" * 5000,
        ]
        link = h5py.SoftLink(draw.item(targets))
        places = [(path, inside) for path in OTHER_FILES for inside in ("/x", "/", name)]
        if not is_there(file, "out", hard=False):
            file["out"] = h5py.ExternalLink(*draw.item(places))
        file[name] = draw.item([link, h5py.ExternalLink(*draw.item(places))])
    elif kind == 8:
        shape = shape if shape and not large else (4, 3)
        layout = h5py.VirtualLayout(shape, "f4", maxshape=(None, *shape[1:]))
        source = h5py.VirtualSource(
            draw.item(OTHER_FILES), draw.item(["x", name, "no"]), shape, maxshape=(None, *shape[1:])
        )
        if draw.coin():
            layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
        else:
            layout[...] = source
        file.create_virtual_dataset(name, layout, fillvalue=0)
    elif kind == 9:
        shape = shape if shape and not large else (4, 3)
        size = int(np.prod(shape)) * 8
        place = (draw.item(OTHER_FILES), draw.item([0, 1, 2**40]), draw.item([size, h5py.h5f.UNLIMITED]))
        file.create_dataset(name, shape, dtype, external=[place])
    else:
        file.create_dataset(name, data=np.zeros(3, np.dtype([("a", "f4"), ("b", "i4")])))


def is_there(file: Any, name: str, hard: bool = True) -> bool:
    """Whether a group holds a (hard) link. Unlike h5py's own methods, this does not follow links."""
    import h5py

    links, key = file.id.links, name.encode()
    return bool(links.exists(key)) and (not hard or links.get_info(key).type == h5py.h5l.TYPE_HARD)


OTHER_FILES = ["pipe", ".", "in.h5", "in.solverstate.h5", "other.h5", "/dev/zero", "no.h5", "/etc/passwd"]
NUMBERS_OF_DATA: list[Any] = [0, 1, 1.5, 255]


def fill_caffemodel(file: Any) -> None:
    for step in weights_net().steps:
        group = file.create_group(f"data/{step.layer.name}")
        for index, blob in enumerate(step.layer.blobs):
            group[str(index)] = blob.detach().numpy()


@target(
    lambda: hdf5_files(
        fill_caffemodel, ["data", "data/ip", "data/ip/0", "data/conv/1", "data/ip/x", "data/bn/2"]
    )
)
def caffemodel_h5(data: bytes) -> None:
    from imae.net.weights import load_caffemodel

    load_caffemodel(weights_net(), write("in.h5", data))


STATEFUL_NET = (
    TINY_NET
    + b"""
layer { name: "db" type: "Data" top: "images" transform_param { crop_size: 2 mirror: true }
        data_param { source: "db" batch_size: 2 backend: LMDB prefetch: 0 } }
layer { name: "rows" type: "HDF5Data" top: "rows" hdf5_data_param { source: "list" batch_size: 3 shuffle: true } }
layer { name: "x" type: "DummyData" top: "x" top: "cont"
        dummy_data_param { shape { dim: 2 dim: 1 dim: 3 } shape { dim: 2 dim: 1 } } }
layer { name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" top: "h"
        recurrent_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "drop" type: "Dropout" bottom: "h" top: "h" }
layer { name: "silence" type: "Silence" bottom: "images" bottom: "rows" bottom: "h" }
"""
)


def stateful_solver() -> Any:
    """A solver whose run depends on random numbers, on data and on the state of layers."""
    import h5py

    from imae.prototxt.text import parse_solver
    from imae.train.solver import Solver

    write_lmdb("db", {b"%d" % i: datums()[0] for i in range(3)})
    write("list", b"rows.h5 rows.h5")
    with h5py.File("rows.h5", "w") as file:
        file["rows"] = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    return Solver(parse_solver(TINY_SOLVER.replace(TINY_NET, STATEFUL_NET).decode()))


def solver_states(end: str) -> list[bytes]:
    """The state of a solver after some iterations; its model is written, too."""
    from imae.prototxt import SolverParameter

    made = stateful_solver()
    made.param.snapshot_format = SolverParameter.HDF5 if end else SolverParameter.BINARYPROTO
    made.step(2)
    cache["solver"] = made
    return [Path(made.snapshot()).read_bytes()]


def binary_states() -> Files:
    seeds = solver_states("") + cases("runs/adam_multi_test/*.solverstate", largest=10**6)[:1]
    whole = mutated_message(seeds[:1], (1, 2, 3, 4, 5, 7, 8, 1000))

    @choosing
    def with_run(draw: Draw) -> bytes:
        """A state with a change in its JSON."""
        from imae.prototxt import SolverState

        state = SolverState.FromString(seeds[0])
        if draw.coin():
            state.imae_run = draw(mutated_text([state.imae_run], RUN_WORDS))
        else:
            state.imae_run = draw(mutated_json(state.imae_run))
        return state.SerializeToString()

    return sealed(either(whole, with_run()))


@choosing
def sealed(draw: Draw, files: Files) -> bytes:
    """Solver states, most of them with a correct checksum, as an attacker would make them."""
    from imae.train.solverstate import SEAL, SEAL_SIZE, seal

    data = draw(files)
    if draw.number(0, 3) == 0:
        return data
    has = SEAL.fullmatch(data[-SEAL_SIZE:])
    return seal(data[:-SEAL_SIZE] if has else data)


RUN_WORDS = [
    b"random",
    b"loss",
    b"data",
    b"window",
    b"array",
    b"bytes",
    b"dtype",
    b"shape",
    b"null",
    b"true",
    b"O",
    b"<f4",
]
RUN_WORDS += [b"|V8", b"<M8[s]", b"<i8", b"buffers"]


@choosing
def mutated_json(draw: Draw, data: bytes) -> bytes:
    """A JSON text with one or two values, at any depth, replaced."""
    import json

    tree = json.loads(data)
    places: list[tuple[Any, Any]] = []
    waiting: list[Any] = [tree]
    while waiting:
        node = waiting.pop()
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            waiting.append(node[key])
    for _ in range(draw.number(1, 2)):
        node, key = draw.item(places)
        node[key] = draw.item(JSON_VALUES)
    return json.dumps(tree).encode()


JSON_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    10**6,
    2**31,
    2**63,
    2**64,
    10**400,
    1.5,
    -0.0,
    float("nan"),
    float("inf"),
]
JSON_VALUES += [
    "",
    "x",
    "AAAA",
    "ä" * 3,
    "<f4",
    "O",
    [],
    [1],
    {},
    {"bytes": "AAAA"},
    {"bytes": "é"},
    {"bytes": 3},
]
JSON_VALUES += [
    {"array": "AAAA", "dtype": dtype, "shape": shape}
    for dtype, shape in [
        ("u1", [3]),
        ("u1", [10**12]),
        ("O", [1]),
        ("V0", [1]),
        ("u1", [-1, 3]),
        ("u1", 3),
        ("i8,i8", [1]),
    ]
]
JSON_VALUES += [
    {"array": "AAAAAAAAAAAAAAAA", "dtype": "<f4", "shape": shape} for shape in ([3], [1, 3], [], [3, 1])
]


def restore(name: str) -> None:
    """Restore a solver state and continue the training."""
    made = cache["solver"]
    made.restore(name)
    if made.iteration < 10**9:
        made.step(1)


@target(binary_states)
def solverstate(data: bytes) -> None:
    restore(write("in.solverstate", data))


def fill_state(file: Any) -> None:
    import h5py

    with h5py.File(io.BytesIO(cache["state"]), "r") as source:
        for name in source:
            source.copy(name, file)


def hdf5_states() -> Files:
    (cache["state"],) = solver_states(".h5")
    names = ["iter", "learned_net", "current_step", "history", "history/0", "history/1", "imae_run"]
    return sealed(hdf5_files(fill_state, names))


@target(hdf5_states)
def solverstate_h5(data: bytes) -> None:
    restore(write("in.solverstate.h5", data))


SNAPSHOTS = [f"s_iter_2.{kind}{end}" for end in ("", ".h5") for kind in ("caffemodel", "solverstate")]


def damaged_snapshots() -> Files:
    """Damage as by disks and copies in the second of two snapshots; the first byte tells which file it is."""
    from imae.prototxt import SolverParameter

    made = stateful_solver()
    for _ in range(2):
        made.step(1)
        for form in (SolverParameter.BINARYPROTO, SolverParameter.HDF5):
            made.param.snapshot_format = form
            made.snapshot()
    cache["whole"] = {name: Path(name).read_bytes() for name in SNAPSHOTS}
    for name in SNAPSHOTS:  # each check has one format only: else the run would resume from the other one
        os.remove(name)
    cache["solver"] = made
    made.restore("s_iter_1.solverstate")
    made.step(3)
    cache["expected"] = weights_of(made)

    @choosing
    def damaged(draw: Draw) -> bytes:
        index = draw.index(SNAPSHOTS)
        data = bytearray(cache["whole"][SNAPSHOTS[index]])
        kind, place = draw.number(0, 6), draw.index(data)
        length = draw.item([1, 2, 8, 64, 512, 4096])
        if kind <= 3:
            for _ in range(draw.item([1, 1, 1, 2, 5])):
                data[draw.index(data)] ^= 1 << draw.number(0, 7)
        elif kind == 4:
            data[place : place + length] = bytes(len(data[place : place + length]))
        elif kind == 5:
            del data[place:]
        else:
            other = draw.index(data)
            part = data[other : other + length]
            data[place : place + len(part)] = part
        return bytes([index]) + data

    return damaged()


def weights_of(made: Any) -> bytes:
    return b"".join(blob.detach().numpy().tobytes() for blob in (*made.net.learnable, *made.history))


@target(damaged_snapshots)
def resume_auto(data: bytes) -> None:
    """A damaged snapshot is skipped, and the run resumes from the one before as if there were no other."""
    from imae.files.errors import SnapshotError

    name = SNAPSHOTS[data[0]]
    pair = [other for other in SNAPSHOTS if other.endswith(".h5") == name.endswith(".h5")]
    for other in pair:
        write(other, data[1:] if other == name else cache["whole"][other])
    made = cache["solver"]
    made.restore_newest()
    resumed_from = made.iteration
    made.step(3 if resumed_from == 1 else 2)
    for other in pair:
        os.remove(other)
    assert resumed_from == (2 if data[1:] == cache["whole"][name] else 1), resumed_from
    assert weights_of(made) == cache["expected"]
    if resumed_from == 1:
        raise SnapshotError("passed over")


# -- images and databases ------------------------------------------------------------------------------------


@target(lambda: mutated_message(datums(), range(1, 9)))
def datum(data: bytes) -> None:
    from imae.layers.data.datum import array_from_datum, parse_datum

    parsed = parse_datum(data, "datum")
    for color, gray in ((False, False), (True, False), (False, True)):
        array_from_datum(parsed, "datum", color, gray)


def _header_places(data: bytes) -> list[int]:
    return list(range(min(len(data), 64)))


PICTURES = (".png", ".jpg", ".bmp", ".webp", ".tiff", ".ppm", ".gif")


def picture_seeds() -> Files:
    return mutated_bytes([*map(picture, PICTURES), picture(".jp2", 64, 64)], _header_places)


@target(picture_seeds)
def pictures(data: bytes) -> None:
    import cv2

    from imae.layers.data.datum import decode_image

    for flag in (cv2.IMREAD_UNCHANGED, cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE):
        decode_image(data, flag, "picture")


def databases() -> Files:
    small = {b"%02d" % i: datums()[i % 2] for i in range(9)}
    large = {b"%05d" % i: (datums()[0] if i % 7 else datums()[2] + bytes(5000)) for i in range(400)}
    seeds = [write_lmdb("seed", records) for records in (small, large)]
    return mutated_bytes(seeds, _lmdb_places)


def _lmdb_places(data: bytes) -> list[int]:
    """The offsets of the page headers, with their lists of nodes, and of the node headers."""
    places = list(range(150)) + list(range(4096, 4096 + 150))
    for page in range(2, len(data) // 4096):
        start = 4096 * page
        places += range(start, start + 40)
        for at in range(start + 16, start + 40, 2):
            offset = struct.unpack_from("<H", data, at)[0]
            places += range(start + offset, start + offset + 8)
    return [place for place in places if place < len(data)]


@target(databases)
def lmdb(data: bytes) -> None:
    from imae.layers.caffe_random import CaffeRandom
    from imae.layers.data.lmdb_source import open_lmdb
    from imae.layers.registry import layer_class
    from imae.layers.run import Run
    from imae.prototxt import LayerParameter
    from imae.prototxt.text import parse_text

    with open_lmdb(write("data.mdb", data)) as source:
        assert len(source.keys()) == len(source)
        for _ in zip(range(1000), source.records(), strict=False):
            pass
        source.datum(len(source) - 1)
    text = 'name: "d" type: "Data" top: "x" top: "y" data_param { source: "data.mdb" batch_size: 5 backend: LMDB prefetch: 0 }'
    layer = layer_class("Data")(parse_text(text, LayerParameter, "layer"))
    layer.build([], Run(CaffeRandom(1)))
    layer.forward()
    layer.forward()


def few_datums() -> Files:
    many = mutated_message(datums(), range(1, 9))

    @choosing
    def lists(draw: Draw) -> bytes:
        return json.dumps([draw(many).hex() for _ in range(draw.number(1, 3))]).encode()

    return lists()


@target(few_datums)
def records(data: bytes) -> None:
    """Run converters on a database of broken Datums; the data is a list of these."""
    parts = [bytes.fromhex(part) for part in json.loads(data)]
    write_lmdb("db", {b"%d" % i: part for i, part in enumerate([datums()[0], *parts])})
    remove("out", "out.clean_labels.npz", "mean")
    errors = importlib.import_module("imae.files.errors")
    try:
        command("compute-image-mean", "db", "mean")
    except errors.ImaeError:
        command("corrupt-labels", "db", "out", "--noise", "symmetric", "--rate", "0.5", "--classes", "100")
    else:
        command("corrupt-labels", "db", "out", "--noise", "pair-flip", "--rate", "0.5")


def means() -> Files:
    from imae.layers.blob import blob_from_array
    from imae.prototxt import BlobProto

    values = np.arange(30, dtype=np.float32).reshape(1, 3, 2, 5)
    old = BlobProto(num=1, channels=3, height=2, width=5, data=values.ravel())
    matrix = blob_from_array(np.eye(3, dtype=np.float32)[None, None])
    seeds = [blob.SerializeToString() for blob in (old, blob_from_array(values, values), matrix)]
    return mutated_message(seeds, range(1, 11))


@target(means)
def mean(data: bytes) -> None:
    from imae.files.errors import ImaeError
    from imae.layers.caffe_random import CaffeRandom
    from imae.layers.data.transformer import DataTransformer
    from imae.layers.run import Run
    from imae.net.net import Net
    from imae.prototxt import TRAIN, TransformationParameter
    from imae.prototxt.text import parse_net

    write("mean", data)
    try:
        transformer = DataTransformer(TransformationParameter(mean_file="mean", crop_size=2), TRAIN, "layer")
        transformer.seed(CaffeRandom(1))
        transformer.output_size((3, 2, 5), "image")
        transformer.transform_rows(np.zeros((2, 3, 2, 5), np.uint8), np.arange(2))
    except ImaeError:
        Net(
            parse_net(
                'layer { name: "x" type: "DummyData" top: "x" top: "y" dummy_data_param { shape { dim: 2 dim: 3 } '
                'shape { dim: 2 } } } layer { name: "l" type: "InfogainLoss" bottom: "x" bottom: "y" '
                'infogain_loss_param { source: "mean" } }'
            ),
            Run(CaffeRandom(1)),
        ).forward()
        raise


def fill_data(file: Any) -> None:
    file["data"] = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    file["label"] = np.arange(4, dtype=np.int32)


def data_files() -> Files:
    write("list", b"in.h5\n")
    return hdf5_files(fill_data, ["data", "label"])


@target(data_files)
def hdf5_data(data: bytes) -> None:
    from imae.layers.caffe_random import CaffeRandom
    from imae.layers.registry import layer_class
    from imae.layers.run import Run
    from imae.prototxt import LayerParameter
    from imae.prototxt.text import parse_text

    write("in.h5", data)
    text = 'type: "HDF5Data" top: "data" top: "label" hdf5_data_param { source: "list" batch_size: 3 shuffle: true }'
    layer = layer_class("HDF5Data")(parse_text(text, LayerParameter, "layer"))
    layer.build([], Run(CaffeRandom(1)))
    layer.forward()
    layer.forward()


# -- lists ---------------------------------------------------------------------------------------------------


def picture_files() -> None:
    write("a.png", picture(".png"))
    write("b.jpg", picture(".jpg", 6, 6))
    write("c d.bmp", picture(".bmp"))
    write("broken.png", picture(".png")[:40])


# For each line of a list, however short, an image is opened, read and decoded: some 100 us. The limit on CPU
# time is meant for the list itself, so lists are cut to this many lines.
LIST_LINES = 20_000


def imageset_lists() -> Files:
    picture_files()
    words = [b"a.png", b"b.jpg", b"c d.bmp", b"broken.png", b"/dev/null", b"..", b"-1", b"2147483648"]
    texts = mutated_text(
        [b"a.png 0\nb.jpg 1\nc d.bmp 2\na.png 3\n", b"a.png 1\r\nbroken.png 7\n a.png  -3"], words
    )
    return lambda draw: b"\n".join(draw(texts).split(b"\n")[:LIST_LINES])


@target(imageset_lists)
def imageset_list(data: bytes) -> None:
    write("list", data)
    remove("out")
    if len(data) % 2:
        command(
            "convert-imageset", "./", "list", "out", "--resize_height=3", "--resize_width=4", "--shuffle=1"
        )
    else:
        command("convert-imageset", "", "list", "out", "--encoded")


def annotation_files() -> Files:
    picture_files()
    write("map", b'item { name: "dog" label: 3 } item { name: "17" label: 4 }')
    box = b"<bndbox><xmin>2</xmin><ymin>1</ymin><xmax>12</xmax><ymax>9</ymax></bndbox>"
    voc = (
        b"<annotation><size><width>7</width><height>5</height></size><object><name>dog</name>"
        b"<difficult>1</difficult>%b</object></annotation>" % box
    )
    crowd = {"category_id": 17, "bbox": [2, 1, 3.5, 2], "iscrowd": 1, "image_id": 2}
    one = {"image": {"height": 5, "width": 7}, "annotation": [crowd]}
    image = {"id": 2, "file_name": "a.png", "height": 5, "width": 7}
    all_in_one = {"images": [image], "annotations": [crowd], "categories": [{"id": 17, "name": "dog"}]}
    texts = [voc, json.dumps(one).encode(), b"3 1 2 3 4\n4 0 0 7.5 5\n", json.dumps(all_in_one).encode()]
    words = [
        b"object",
        b"name",
        b"bndbox",
        b"null",
        b"true",
        b"Infinity",
        b"NaN",
        b"1e999",
        b"../a.png",
        b"!DOCTYPE",
    ]
    return mutated_text(texts, words)


@target(annotation_files)
def annotations(data: bytes) -> None:
    write("boxes", data)
    write("list", b"a.png boxes")
    remove("out")
    if b"images" in data:
        command("convert-annoset", "--coco", "boxes", "--label_map_file=map", "./", "out")
        return
    kind = "xml" if data.lstrip()[:1] == b"<" else "json" if data.lstrip()[:1] == b"{" else "txt"
    options = (f"--label_type={kind}", "--label_map_file=map", "--encode_type=png")
    command("convert-annoset", "--anno_type=detection", *options, "./", "list", "out")


def annotated_records() -> Files:
    from imae.prototxt.caffe_pb2 import AnnotatedDatum

    record = AnnotatedDatum(type=0)
    record.datum.data, record.datum.encoded = picture(".png"), True
    record.datum.height, record.datum.width, record.datum.channels = 5, 7, 3
    box = record.annotation_group.add(group_label=1).annotation.add(instance_id=0).bbox
    box.xmin, box.ymin, box.xmax, box.ymax = 0.1, 0.2, 0.8, 0.9
    return mutated_message([record.SerializeToString()])


ANNOTATED_NET = """layer { name: "data" type: "AnnotatedData" top: "data" top: "label" phase: TRAIN
    data_param { source: "annotated" batch_size: 2 backend: LMDB prefetch: 0 } transform_param { mirror: true
    resize_param { height: 6 width: 6 } emit_constraint {} expand_param { max_expand_ratio: 2 }
    distort_param { brightness_prob: 1 brightness_delta: 9 hue_prob: 1 hue_delta: 9 } }
    annotated_data_param { batch_sampler { sampler { min_scale: 0.5 }
                                           sample_constraint { min_jaccard_overlap: 0.1 } max_sample: 1 } } }"""


@target(annotated_records)
def annotated_record(data: bytes) -> None:
    from imae.net.net import Net
    from imae.prototxt.text import parse_net

    write_lmdb("annotated", {b"0": data})
    net = Net(parse_net(ANNOTATED_NET))
    (layer,) = net.data_layers()
    layer.next_batch()


def image_lists() -> Files:
    picture_files()
    windows = b"# 0\na.png\n3 5 7\n3\n1 0.9 0 0 3 3\n2 0.1 1 1 4 4\n0 0.2 2 0 6 4\n# 1\nb.jpg\n3 6 6\n1\n1 0.8 1 1 5 5\n"
    words = [b"a.png", b"b.jpg", b"#", b"nan", b"inf", b"-1", b"99999999999"]
    return mutated_text([b"a.png 0\nc d.bmp 1\na.png 2\n", windows], words)


@target(image_lists)
def image_list(data: bytes) -> None:
    from imae.layers.caffe_random import CaffeRandom
    from imae.layers.registry import layer_class
    from imae.layers.run import Run
    from imae.prototxt import LayerParameter
    from imae.prototxt.text import parse_text

    write("list", data)
    kind = "WindowData" if data.lstrip()[:1] == b"#" else "ImageData"
    text = {
        "ImageData": 'image_data_param { source: "list" batch_size: 2 shuffle: true }',
        "WindowData": 'transform_param { crop_size: 4 } window_data_param { source: "list" batch_size: 4 context_pad: 1 }',
    }[kind]
    param = parse_text(f'type: "{kind}" top: "x" top: "y" {text}', LayerParameter, "layer")
    layer = layer_class(kind)(param)
    layer.build([], Run(CaffeRandom(1)))
    layer.load_batch()
    layer.load_batch()


# -- labels, archives ----------------------------------------------------------------------------------------


def npy(values: Any, header: bytes | None = None) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    data = buffer.getvalue()
    if header is None:
        return data
    return data[:8] + struct.pack("<H", len(header)) + header + data[128:]


def npz(**arrays: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in arrays.items():
            file.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def label_files() -> Files:
    labels, keys = np.arange(6), np.array([b"%d" % i for i in range(6)])
    texts = mutated_text([b"0 1 2\n3 4 5\n", b"1\n-1\n99999999999999999999\n"])
    header = npy(labels)[10:128]
    words = [
        b"descr",
        b"fortran_order",
        b"shape",
        b"True",
        b"|O",
        b"<i8",
        b"<f8",
        b"|S9",
        b"<U5",
        b"<M8[s]",
        b"i4,i4",
        b"None",
    ]

    @choosing
    def lettered(draw: Draw) -> bytes:
        kind = draw.number(0, 7)
        if kind == 0:
            return b"n" + draw(mutated_bytes([npy(labels), npy(labels.astype(np.uint8))]))
        if kind == 1:
            return b"n" + npy(labels, draw(mutated_text([header], words))[:65535])
        if kind == 2:
            return b"z" + draw(mutated_bytes([npz(x=npy(labels)), npz(x=npy(labels), key=npy(keys))]))
        if kind >= 4:
            return b"t" + draw(texts)
        return b"z" + npz(
            x=npy(labels, draw(mutated_text([header], words))[:65535]), key=draw(mutated_bytes([npy(keys)]))
        )

    return lettered()


@target(label_files)
def labels(data: bytes) -> None:
    """The first letter of the data gives the kind of file."""
    from imae.converters.label_file import check_range, read_labels

    name = {b"t": "labels.txt", b"n": "labels.npy", b"z": "labels.npz"}[data[:1]]
    path = write(name, data[1:]) + (":x" if name.endswith("npz") and len(data) % 2 else "")
    check_range(read_labels(path).labels, 100, "labels")


def issue_files() -> Files:
    tables = [
        b",is_label_issue,label_quality,given_label,predicted_label\n0,True,0.1,3,5\n1,False,1,2,2\n2,False,1,0,0\n",
        b'"is_label_issue"\r\n1\r\n0\r\n"true"\r\n',
    ]
    texts, arrays = (
        mutated_text(tables, [b"is_label_issue", b"predicted_label", b"True", b'"']),
        label_files(),
    )

    @choosing
    def lettered(draw: Draw) -> bytes:
        return b"c" + draw(texts) if draw.number(0, 1) else draw(arrays)

    return lettered()


@target(issue_files)
def issues(data: bytes) -> None:
    """The first letter of the data gives the kind of file."""
    from imae.converters.correct_labels import read_issues

    name = {b"c": "issues.csv", b"t": "issues.txt", b"n": "issues.npy", b"z": "issues.npz"}[data[:1]]
    path = write(name, data[1:]) + (":x" if name.endswith("npz") and len(data) % 2 else "")
    read_issues(path, 3)


def cifar_parts() -> dict[str, bytes]:
    """The files of CIFAR-10's binary version, with one image per file."""
    record = bytes([3]) + bytes(3072)
    return {
        f"cifar/{name}.bin": record
        for name in (
            "data_batch_1",
            "data_batch_2",
            "data_batch_3",
            "data_batch_4",
            "data_batch_5",
            "test_batch",
        )
    }


def cifar_pickle() -> bytes:
    """A batch of CIFAR-100's Python version as Python 2 wrote it: protocol 2, an array and lists of labels."""

    class Old(np.ndarray):
        pass

    values = np.zeros((2, 3072), np.uint8)
    batch = {"data": values, "fine_labels": [1, 99], "coarse_labels": [0, 19], "filenames": ["a", "b"]}
    return pickle.dumps(batch, 2)


def tar(parts: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        for name, data in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sparse(draw: Draw, name: str) -> bytes:
    """A sparse member that claims to be larger than its data, in one of tar's four forms."""
    numbers = [0, 1, 512, 3073, 3073 * 20000, 2**31, 2**40, 2**63, 2**64, 10**30]
    size, offset, count = draw.item(numbers), draw.item(numbers), draw.item([0, 0, 1, 512, 3073, 2**40])
    kind, info, content = draw.number(0, 3), tarfile.TarInfo(name), b""
    if kind == 0:
        info.type = tarfile.GNUTYPE_SPARSE
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape"))
        header[386:398], header[398:410], header[483:495] = (
            b"%011o\0" % (n % 8**11) for n in (offset, count, size)
        )
        header[482] = draw.item([0, 0, 1, 255])
        header[148:156] = b"%06o\0 " % sum(header[:148] + b" " * 8 + header[156:])
        return bytes(header) + bytes(512 * draw.number(0, 2))
    if kind == 1:
        rows = draw.item([1, 1, 0, 2, 10**6])
        content = draw.item([b"%d\n%d\n%d\n" % (rows, offset, count), b"x\n", b"-1\n", b"9" * 600, b""])
        content += bytes(-len(content) % 512)
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": draw.item(["0", "0", "x"])}
        info.pax_headers |= {
            "GNU.sparse.name": name,
            "GNU.sparse.realsize": draw.item([str(size), "x", "-1"]),
        }
    elif kind == 2:
        odd = draw.item([f"{offset},{count}", f"{offset},{count}", f"{offset}", "x,y", ",,,", "-1,-1"])
        info.pax_headers = {"GNU.sparse.map": odd, "GNU.sparse.size": str(size)}
    else:
        info.pax_headers = {"GNU.sparse.size": str(size), "GNU.sparse.numblocks": "1"}
        info.pax_headers |= {"GNU.sparse.offset": str(offset), "GNU.sparse.numbytes": str(count)}
    info.size = len(content)
    return info.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape") + content


def _tar_places(data: bytes) -> list[int]:
    return [
        i + k for i in range(0, len(data), 512) if data[i + 257 : i + 262] == b"ustar" for k in range(512)
    ]


def cifar_archives() -> Files:
    binary = cifar_parts()
    pickled = {"cifar-100-python/train": cifar_pickle(), "cifar-100-python/test": cifar_pickle()}
    seeds = [tar(binary), tar(pickled)]
    packed = [tar(binary, f"w:{kind}") for kind in ("gz", "bz2", "xz")] + [tar(pickled, "w:gz")]
    short = pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "fine_labels": [1], "coarse_labels": [0]}, 2)

    @choosing
    def inside(draw: Draw) -> bytes:
        broken = draw(
            mutated_bytes(
                [short, cifar_pickle()],
                lambda data: [*range(200), *range(max(len(data) - 200, 0), len(data))],
            )
        )
        return tar({"train": broken, "test": short})

    @choosing
    def with_sparse(draw: Draw) -> bytes:
        names = [*binary][: draw.number(1, len(binary))]
        return b"".join(sparse(draw, name) for name in names) + tar(
            {n: binary[n] for n in binary if n not in names}
        )

    return either(mutated_bytes(seeds, _tar_places), mutated_bytes(packed), inside(), with_sparse())


@target(cifar_archives)
def cifar(data: bytes) -> None:
    remove("out")
    command("convert-cifar", write("cifar.tar", data), "out")


@choosing
def folder_archives(draw: Draw) -> bytes:
    """Archives with malicious names and kinds of members."""
    buffer = io.BytesIO()
    names = [
        "a/1.png",
        "b/2.png",
        "../x.png",
        "/tmp/x/y.png",
        "a/../../z.png",
        "a/./3.png",
        "a//4.png",
        "a",
        "a/" + "n" * 300 + ".png",
    ]
    names += ["a/\udcff.png", "a/\n.png", "", ".", "..", "/"]
    with tarfile.open(
        fileobj=buffer, mode="w", format=draw.item([0, 1, 2]), errors="surrogateescape"
    ) as file:
        for _ in range(draw.number(1, 4)):
            info = tarfile.TarInfo(draw.item(names))
            info.type = draw.item(
                [tarfile.REGTYPE] * 4
                + [
                    tarfile.SYMTYPE,
                    tarfile.LNKTYPE,
                    tarfile.DIRTYPE,
                    tarfile.FIFOTYPE,
                    tarfile.CHRTYPE,
                    tarfile.GNUTYPE_SPARSE,
                ]
            )
            info.linkname = draw.item(["a/1.png", "/etc/passwd", "../..", ""])
            content = draw.item([picture(".png"), picture(".jpg"), b"", b"text"])
            info.size = len(content) if info.isreg() else 0
            try:
                file.addfile(info, io.BytesIO(content))
            except (ValueError, UnicodeEncodeError):  # a name that this format cannot hold
                continue
    data = buffer.getvalue()
    if draw.number(0, 3) == 0:
        data = sparse(draw, draw.item(["a/1.png", "b/2.png"])) + data
    if draw.number(0, 2) == 0:
        data = draw(mutated_bytes([data], _tar_places))
    return gzip.compress(data, 1) if draw.coin() else data


@target(folder_archives)
def folder(data: bytes) -> None:
    remove("out")
    command("convert-folder", write("folder.tar", data), "out")


# -- logs, ONNX ----------------------------------------------------------------------------------------------


def logs() -> Files:
    texts = [path.read_bytes() for path in sorted(CASES.glob("runs/*/*.log"))]
    seeds = [
        text[start : start + 3000]
        for text in texts
        for start in (0, len(text) // 2, max(len(text) - 3000, 0))
    ]
    words = [b"Iteration", b"loss", b"=", b"nan", b"Solving", b"Testing", b"#", b"0229", b"]"]
    return mutated_text(seeds, words)


@target(logs)
def log(data: bytes) -> None:
    from imae.files.caffe_log import caffe_rows, compare, read_log, rows

    numbers = read_log(write("log", data))
    for what in ("train", "test"):
        rows(numbers, what)
        caffe_rows(numbers, what)
    compare(numbers, numbers[::2])


def class_name_files() -> Files:
    texts = [
        b"n01440764 tench, Tinca tinca\nn02012849 crane\n",
        b"0 no food\r\n1 food\r\n",
        b'"a"\n"b ""c"""\n',
        b'item { name: "bg" label: 0 display_name: "background" } item { name: "car" label: 7 }',
        b'{"0": "tench", "12": "crane"}',
        b'["tench", "crane"]',
    ]
    return either(mutated_text(texts, [b"item", b"label", b"display_name"]), mutated_bytes(texts))


@target(class_name_files)
def class_names(data: bytes) -> None:
    """A file of class names, and the same as a model's metadata."""
    from imae.converters.labels import NAMES_KEY, labels_metadata, labels_of, read_labels
    from imae.files.errors import ImaeError

    with suppress(ImaeError):
        labels_of({NAMES_KEY: data.decode(errors="replace")})
    labels = read_labels(write("labels.txt", data))
    kept = labels_of({NAMES_KEY: labels_metadata(labels)})
    assert kept == (dict(enumerate(labels)) if isinstance(labels, list) else labels)


def onnx_models() -> Files:
    from imae.converters.embed import Embedding
    from imae.converters.export_onnx import ExportOptions, export_net
    from imae.converters.preprocessing import make_preprocessing, read_transform
    from imae.layers.caffe_random import CaffeRandom
    from imae.layers.run import Run
    from imae.net.net import Net
    from imae.prototxt import TEST
    from imae.prototxt.text import parse_net

    write("a.png", picture(".png", 4, 4))
    texts = [
        WEIGHTS_NET.decode(),
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 4 dim: 4 } } }'
        'layer { name: "p" type: "Pooling" bottom: "data" top: "p" pooling_param { kernel_size: 3 stride: 2 } }'
        'layer { name: "r" type: "Reshape" bottom: "p" top: "r" reshape_param { shape { dim: 0 dim: -1 } } }'
        'layer { name: "s" type: "Softmax" bottom: "r" top: "s" }',
    ]
    seeds = []
    for text in texts:
        param = parse_net(text)
        param.state.phase = TEST
        net = Net(param, Run(CaffeRandom(1)))
        channels, height, width = net.blob_shapes[net.inputs[0]][1:]
        own = make_preprocessing(
            read_transform("scale: 0.5 mean_value: 1", "seed"),
            name=net.inputs[0],
            num_channels=channels,
            mean=np.ones((channels, height + 1, width), np.float32),
        )
        order = "GRAY" if channels == 1 else "RGB"
        for embedding in (None, Embedding(order), Embedding(order, resize=True)):
            export = export_net(net, ExportOptions(embedding=embedding), preprocessing=own)
            seeds.append(export.model.SerializeToString())
    return mutated_message(seeds, range(1, 26))


@target(onnx_models)
def onnx(data: bytes) -> None:
    command(
        "run", write("net.onnx", data), "--images", "a.png", "a.png", "--batch-size", "2", "--threads", "1"
    )
