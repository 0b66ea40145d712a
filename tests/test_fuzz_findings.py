"""What fuzzing found, each as small as it could be made: an error of one line now, or read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import lmdb
import numpy as np
import onnx
import pytest
import torch

from imae.cli.main import main
from imae.converters.compute_image_mean import compute_mean
from imae.converters.run_onnx import open_session
from imae.files.cifar_pickle import read_pickled_batch
from imae.files.errors import CaffemodelError, DataError, ExportError, LayerError, SnapshotError
from imae.files.file_tree import open_tree
from imae.layers.blob import array_from_blob
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.datum import decode_image
from imae.layers.data.hdf5_data import read_data_sets
from imae.layers.data.lmdb_source import open_lmdb
from imae.layers.data.transformer import DataTransformer
from imae.layers.data.window_data import read_windows
from imae.layers.run import Run
from imae.net.net import Net
from imae.net.weights import load_caffemodel
from imae.prototxt import TRAIN, BlobProto, BlobShape, Datum, SolverState, TransformationParameter
from imae.prototxt.text import parse_net, parse_solver
from imae.train.solver import Solver
from imae.train.solverstate import read_state, seal

# -- HDF5 ----------------------------------------------------------------------------------------------------


def hdf5(fill: Callable[[h5py.File], None]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver="earliest") as file:
        fill(file)
    return buffer.getvalue()


def rows(file: h5py.File) -> None:
    file["data"] = np.arange(24, dtype=np.float32).reshape(4, 3, 2)


def link_to_itself(file: h5py.File) -> None:
    file["data"] = h5py.SoftLink("/data")


def other_name(file: h5py.File) -> None:
    file["other"] = np.zeros((3, 2), np.float32)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(hdf5(rows).replace(b"TREE", b"\0REE"), id="wrong B-tree signature"),
        pytest.param(hdf5(other_name).replace(b"HEAP", b"\0EAP"), id="bad local heap signature"),
        pytest.param(hdf5(link_to_itself), id="too many links"),
    ],
)
def test_hdf5_data_of_a_damaged_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "rows.h5"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"rows\.h5"):
        read_data_sets(str(path), ["data"])


def test_caffemodel_of_complex_numbers(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel.h5"
    path.write_bytes(hdf5(lambda file: file.create_dataset("data/ip/0", (2, 3), "c8")))
    net = Net(
        parse_net('layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 } } }'),
        Run(CaffeRandom(1)),
    )
    with pytest.raises(CaffemodelError, match="values of type complex64"):
        load_caffemodel(net, path)


# -- solver states -------------------------------------------------------------------------------------------

NET = """
layer { name: "db" type: "Data" top: "x" top: "label" transform_param { mirror: true }
        data_param { source: "db" batch_size: 2 backend: LMDB prefetch: 0 }
        data_order_param { order: SHUFFLED } }
layer { name: "rows" type: "HDF5Data" top: "data"
        hdf5_data_param { source: "list" batch_size: 3 shuffle: true } }
layer { name: "step" type: "DummyData" top: "step" top: "cont"
        dummy_data_param { shape { dim: 2 dim: 1 dim: 3 } shape { dim: 2 dim: 1 } } }
layer { name: "lstm" type: "LSTM" bottom: "step" bottom: "cont" top: "h"
        recurrent_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 3 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "silence" type: "Silence" bottom: "data" bottom: "h" }
"""
SOLVER = f"""
base_lr: 0.1 lr_policy: "fixed" random_seed: 1 snapshot_prefix: "s" max_iter: 9 net_param {{ {NET} }}
"""


def write_lmdb(path: str, *datums: Datum) -> None:
    with lmdb.open(path, map_size=1 << 20, sync=False) as environment, environment.begin(write=True) as batch:
        for index, datum in enumerate(datums):
            batch.put(b"%d" % index, datum.SerializeToString())


@pytest.fixture
def solver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Solver:
    """After two iterations; its snapshot is s_iter_2.solverstate."""
    monkeypatch.chdir(tmp_path)
    write_lmdb(
        "db", *(Datum(channels=1, height=2, width=2, data=bytes(4), label=label) for label in (0, 1, 2))
    )
    Path("list").write_text("rows.h5 rows.h5")
    Path("rows.h5").write_bytes(hdf5(rows))
    made = Solver(parse_solver(SOLVER))
    made.step(2)
    made.snapshot()
    return made


def edit(place: list[Any], value: Any) -> None:
    """Put another value at a place in the JSON text of s_iter_2.solverstate."""
    path = Path("s_iter_2.solverstate")
    state = SolverState.FromString(path.read_bytes())
    tree = {"top": json.loads(state.imae_run)}
    home: Any = tree
    for key in ["top", *place[:-1]]:
        home = home[key]
    home[place[-1] if place else "top"] = value
    state.imae_run = json.dumps(tree["top"] if place else value).encode()
    write_sealed(path, state)


def write_sealed(path: Path, state: SolverState) -> None:
    """Write a state with a checksum that is right: it is not damaged, somebody made it so."""
    state.DiscardUnknownFields()  # type: ignore[attr-defined]  # left out of the stubs
    path.write_bytes(seal(state.SerializeToString()))


INTS = {"array": "AAAAAAAAAAA=", "dtype": "<i8", "shape": [1]}
TWO_INTS = {"array": "AAAAAAAAAAAAAAAAAAAAAA==", "dtype": "<i8", "shape": [2]}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ([], [1], "not a JSON object"),
        (["checksum"], TWO_INTS, "checksum is"),
        (["model"], TWO_INTS, "model is"),
        (["finite"], TWO_INTS, "finite is"),
        (["buffers"], None, "cannot go on exactly"),
        (["buffers", 0], None, "cannot go on exactly"),
        (["buffers", 0, "lstm/state0"], INTS, "of another net"),
        (
            ["buffers", 0, "lstm/state0"],
            {"array": "AAAA", "dtype": "u1,u1", "shape": [1]},
            "an array of type",
        ),
        (["data", 0, "db"], None, "cannot go on exactly"),
        (["data", 0, "db", "index"], 1.5, "the saved index is 1.5"),
        (["data", 0, "db", "index"], 10**12, "index is 1000000000000 of 3"),
        (["data", 0, "db", "index"], -1, "index is -1 of 3"),
        (["data", 0, "rows", "file_order"], [1, 0], "file_order"),
        (["data", 0, "rows", "file_order"], TWO_INTS, "file_order"),
        (["data", 0, "rows", "row_order"], INTS, "the files are not those"),
        (["data", 0, "rows", "row"], None, "the saved row is None"),
        (["data", 0, "rows", "row"], 4, "row is 4 of 4"),
        (["data", 0, "rows", "file"], 2, "file is 2 of 2"),
        (["data", 0, "rows", "rand"], {"array": "AAAAAA==", "dtype": "<u4", "shape": [1]}, "words"),
        (["loss", "window"], [{}], "cannot go on exactly"),
        (["loss", "count"], float("inf"), "cannot go on exactly"),
    ],
)
def test_state_of_a_run(solver: Solver, place: list[Any], value: Any, message: str) -> None:
    edit(place, value)
    with pytest.raises(SnapshotError, match=message):
        solver.restore("s_iter_2.solverstate")


def test_state_of_a_run_is_what_the_edits_break(solver: Solver) -> None:
    solver.restore("s_iter_2.solverstate")
    solver.step(1)
    assert solver.iteration == 3


def test_state_of_a_run_in_deep_brackets(solver: Solver) -> None:
    path = Path("s_iter_2.solverstate")
    state = SolverState.FromString(path.read_bytes())
    state.imae_run = b"[" * 100_000
    write_sealed(path, state)
    with pytest.raises(SnapshotError, match="damaged"):
        solver.restore(str(path))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("iter", np.zeros(0, np.int32)),
        ("iter", np.zeros(1, np.complex64)),
        ("iter", np.ones(1, np.float32)),
        ("current_step", np.float32(1)),
        ("history/0", np.zeros(1, np.complex64)),
    ],
)
def test_state_in_hdf5(tmp_path: Path, name: str, values: Any) -> None:
    def fill(file: h5py.File) -> None:
        contents = {
            "iter": np.ones(1, np.int32),
            "current_step": np.ones(1, np.int32),
            "history/0": np.ones(1),
        }
        for key, content in {**contents, name: values}.items():
            file[key] = content

    path = tmp_path / "s.solverstate.h5"
    path.write_bytes(hdf5(fill))
    with pytest.raises(SnapshotError, match="not a solver state in HDF5, or damaged"):
        read_state(path)


def test_blob_of_many_axes() -> None:
    with pytest.raises(CaffemodelError, match="at most 32 axes"):
        array_from_blob(BlobProto(data=[1], shape=BlobShape(dim=[1] * 101)))


def test_blob_of_doubles_that_are_too_large() -> None:
    assert array_from_blob(BlobProto(double_data=[1e300, -1e300, 1])).tolist() == [np.inf, -np.inf, 1]


# -- pictures and means --------------------------------------------------------------------------------------


def test_tiff_with_its_directory_nowhere() -> None:
    with pytest.raises(DataError, match="could not decode"):
        decode_image(b"II+\0\x08\0\0\0" + b"\xff" * 8, cv2.IMREAD_COLOR, "picture")


def test_mean_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lmdb("db", *[Datum(channels=1, height=1, width=2, float_data=[3e38, 1])] * 2)
    with open_lmdb("db") as source:
        mean = compute_mean(source)
    assert mean.ravel().tolist() == [np.inf, 1]
    assert "The mean is not finite" in caplog.text


def test_mean_file_that_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "mean"
    path.write_bytes(BlobProto(num=1, channels=1, height=1, width=2, data=[np.inf, 1]).SerializeToString())
    param = TransformationParameter(mean_file=str(path), scale=0)
    transformer = DataTransformer(param, TRAIN, "layer")
    transformer.output_size((1, 1, 2), "image")
    values = transformer.transform_rows(np.ones((1, 1, 1, 2), np.uint8), np.arange(1))
    assert np.isnan(values[0, 0, 0, 0]) and values[0, 0, 0, 1] == 0


def test_overlap_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "windows"
    path.write_text("# 0 a.png 3 5 7 1  1 1e300 0 0 3 3")
    assert read_windows(str(path))[1][0].overlap == np.inf


# -- archives, CIFAR -----------------------------------------------------------------------------------------


def test_archive_with_a_header_that_is_not_utf_8(tmp_path: Path) -> None:
    """One line, or the archive is read: the tarfile of Python 3.11.2 passes over such a header."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        member = tarfile.TarInfo("a")
        member.pax_headers = {"hdrcharset": "ä"}
        file.addfile(member)
    path.write_bytes(path.read_bytes().replace("ä".encode(), b"\xff\xff"))
    try:
        with open_tree(path):
            pass
    except DataError as error:
        assert "cannot read" in str(error)


def test_cifar_pickle_with_strange_escapes() -> None:
    with pytest.raises(DataError, match="no batch of CIFAR"):
        read_pickled_batch(b"\x80\x02c\\\xbe\nx\n.", "batch")


# -- ONNX ----------------------------------------------------------------------------------------------------


def model(tmp_path: Path, shape: list[int | str] | None, old: bytes = b"", new: bytes = b"") -> Path:
    """A model that passes its input on, with bytes of its file replaced."""
    inputs = [] if shape is None else [onnx.helper.make_tensor_value_info("data", 1, shape)]
    value = onnx.helper.make_tensor("value", 1, [1], [1.0])
    node = (
        onnx.helper.make_node("Constant", [], ["out"], value=value)
        if shape is None
        else onnx.helper.make_node("Identity", ["data"], ["out"], name="node_1")
    )
    graph = onnx.helper.make_graph([node], "g", inputs, [onnx.helper.make_tensor_value_info("out", 1, None)])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.helper.set_model_props(made, {"imae.transform_param": "scale: 0.5"})
    data = made.SerializeToString()
    assert old in data
    path = tmp_path / "net.onnx"
    path.write_bytes(data.replace(old, new, 1) if old else data)
    return path


def test_onnx_with_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = model(tmp_path, ["n", 3, 4, 4], b"node_1", b"node\x80\x80")
    path.write_bytes(path.read_bytes().replace(b"Identity", b"Idontity"))
    with pytest.raises(ExportError, match="ONNX Runtime cannot load it"):
        open_session(path, threads=1)


@pytest.mark.parametrize(
    ("shape", "old", "new", "message"),
    [
        (None, b"", b"", "one input of images"),
        ([], b"", b"", "one input of images"),
        ([3, 4], b"", b"", "one input of images"),
        ([0, 3, 4, 4], b"", b"", "one input of images"),
        ([2**40, 3, 4, 4], b"", b"", "one input of images"),
        (["n", 3, 4, 4], b"scale: 0.5", b"scale:\x80 .5", "ONNX Runtime cannot load it"),
        (["n", 3, 4, 4], b"imae.transform_param", b"imae.transform_para\x80", "ONNX Runtime cannot load it"),
    ],
)
def test_onnx_of_something_else_than_images(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shape: list[int | str] | None,
    old: bytes,
    new: bytes,
    message: str,
) -> None:
    path = model(tmp_path, shape, old, new)
    assert main(["run", str(path), "--images", "none.png", "--threads", "1"]) == 2
    assert message in capsys.readouterr().err


# -- nets ----------------------------------------------------------------------------------------------------

IMAGES = (
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 7 } } } '
)


@pytest.mark.parametrize("pool", ["MAX", "AVE"])
def test_windows_that_begin_far_behind_the_image(pool: str) -> None:
    far, near = (
        Net(
            parse_net(
                IMAGES + f'layer {{ name: "p" type: "Pooling" bottom: "data" top: "p" '
                f"pooling_param {{ pool: {pool} kernel_size: 5 stride: {stride} }} }}"
            )
        )
        for stride in (1 << 24, 8)
    )
    data = {"data": torch.rand(2, 3, 6, 7)}
    assert far.blob_shapes["p"] == (2, 3, 2, 2)
    tops = [net.forward(data)["p"] for net in (far, near)]
    assert torch.equal(tops[0][:, :, 0, 0], tops[1][:, :, 0, 0]) and torch.equal(*(abs(top) for top in tops))


def test_a_blob_that_would_change_its_shape_in_place() -> None:
    im2col = (
        'layer { name: "c" type: "Im2col" bottom: "data" top: "data" convolution_param { kernel_size: 3 } }'
    )
    with pytest.raises(LayerError, match="blob 'data' is bottom and top, and its shape would change"):
        Net(parse_net(IMAGES + im2col))


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ("dim: -3 dim: 3", 0),
        ("dim: -3 dim: -3", 9),
        ("dim: -3 dim: -3", 0),
        ("dim: 4294967296", 0),
        ("dim: 0 dim: 4611686018427387904 dim: 4", 0),
        ("dim: 0 dim: 2147483647 dim: 2147483647 dim: 2147483647", 0),
    ],
)
def test_shapes_that_no_array_can_have(shape: str, values: int) -> None:
    data = " ".join(["data: 1"] * values)
    blob = f"blobs {{ shape {{ dim: {values} }} {data} }}" if values or "0" in shape else ""
    texts = [f'type: "Parameter" top: "x" parameter_param {{ shape {{ {shape} }} }} {blob}']
    if not values:
        texts.append(f'type: "Input" top: "x" input_param {{ shape {{ {shape} }} }}')
        texts.append(f'type: "DummyData" top: "x" dummy_data_param {{ shape {{ {shape} }} }}')
    for text in texts:
        with pytest.raises(LayerError, match=r"impossible|a blob's axes are 0 to|no values to fill"):
            Net(parse_net(f'layer {{ name: "l" {text} }}'), Run(CaffeRandom(1)))


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("stride", [2**31 - 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize(
    ("kernel", "pad", "mode"), [(3, 0, "CEIL"), (3, 0, "FLOOR"), (1, 0, "CEIL"), (3, 1, "CEIL")]
)
def test_strides_of_32_bits(method: str, stride: int, kernel: int, pad: int, mode: str) -> None:
    """There is a window at the beginning, and that is all; torch's strides have 31 bits."""

    def pooled(stride: int) -> list[torch.Tensor]:
        net = Net(
            parse_net(
                'force_backward: true layer { name: "x" type: "Input" top: "x" input_param { shape { '
                "dim: 1 dim: 1 dim: 6 dim: 7 } } } "
                'layer { name: "p" type: "Pooling" bottom: "x" top: "p" pooling_param { '
                f"kernel_size: {kernel} stride: {stride} pad: {pad} pool: {method} round_mode: {mode} }} }}"
            ),
            Run(CaffeRandom(1)),
        )
        x = torch.arange(42.0).view(1, 1, 6, 7).requires_grad_()
        top = net.forward({"x": x})["p"]
        top.sum().backward()
        assert x.grad is not None
        return [top.detach(), x.grad]

    for one, other in zip(pooled(stride), pooled(2**20), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
