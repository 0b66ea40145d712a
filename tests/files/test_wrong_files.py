"""Whole files under the wrong name: each reader's error names the kind of the file and the remedy."""

from __future__ import annotations

import bz2
import gzip
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import imae.pycaffe as caffe
from imae.cli.main import main
from imae.converters import convert_imageset, to_caffe
from imae.converters.export_onnx import export_file
from imae.converters.label_file import read_label_arrays, read_labels
from imae.converters.lmdb_writer import write_lmdb
from imae.converters.run_onnx import open_session
from imae.files.errors import ImaeError, LayerError, PrototxtError
from imae.files.file_kinds import FileKind, file_kind, mistaken_file
from imae.files.file_tree import open_tree
from imae.layers.data.datum import datum_from_array
from imae.net.net import Net
from imae.net.weights import load_caffemodel, save_caffemodel
from imae.prototxt import caffe_pb2
from imae.prototxt.fork_names import FORKS
from imae.prototxt.text import parse_net, parse_solver, read_net, read_solver
from imae.train.solverstate import State, read_state, write_state

NET = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
"""
SOLVER = 'net: "net.prototxt" base_lr: 1 lr_policy: "fixed" snapshot_prefix: "s" max_iter: 1'
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4665a2d8e25d4b4a1f4a\nsize 244022944\n"
HTML = "\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>x</body></html>\n"

# By file what errors say of it; HDF5 files hold something, which their readers say.
FILES = {
    "lfs": "it is a Git-LFS pointer, not the file itself: fetch that with git lfs pull",
    "html": "it is a web page in HTML, as a failed download leaves it: download the file itself",
    "net.prototxt": "it is a net's prototxt",
    "solver.prototxt": "it is a solver's prototxt",
    "w.caffemodel": "it is a caffemodel",
    "w.caffemodel.h5": "it is an HDF5 file",
    "s.solverstate": "it is a solver state in binary form: the weights are in the .caffemodel beside it",
    "s.solverstate.h5": "it is an HDF5 file",
    "mean.binaryproto": "it is a BlobProto, such as a mean image",
    "mean.npy": "it is a NumPy array: caffe.io.array_to_blobproto makes a BlobProto of it",
    "data.mdb": "it is the data.mdb of an LMDB: name its folder as the source of a Data layer",
    "datum": "it is a Datum",
    "w.gz": "it is a gzip archive: unpack it",
    "w.zip": "it is a zip archive: unpack it",
    "a.png": "it is an image",
    "m.onnx": "it is an ONNX model",
    "new.pth": "it is a PyTorch file, which may run code when it is read: it is not read here",
    "old.pth": "it is a PyTorch file, which may run code when it is read: it is not read here",
    "utf16.prototxt": "it is text in UTF-16: save it as UTF-8",
}
MESSAGES = ("w.caffemodel", "s.solverstate", "mean.binaryproto", "m.onnx", "datum")


def layer(text: str, run: bool = False) -> Callable[[str], None]:
    def read(file: str) -> None:
        net = Net(parse_net(f'layer {{ name: "d" top: "data" {text.replace("FILE", file)} }}'))
        if run:
            net.next_batch()

    return read


def of_list(read: Callable[[str], None], line: str) -> Callable[[str], None]:
    """A reader of a list that names the file."""

    def read_list(file: str) -> None:
        Path("list.txt").write_text(line.replace("FILE", file))
        read("list.txt")

    return read_list


IMAGES = layer('top: "l" type: "ImageData" image_data_param { source: "FILE" batch_size: 1 }', run=True)
HDF5 = layer('type: "HDF5Data" hdf5_data_param { source: "FILE" batch_size: 1 }')


def open_archive(file: str) -> None:
    with open_tree(file):
        pass


def renamed_state(file: str) -> State:
    Path("x.h5").write_bytes(Path(file).read_bytes())
    return read_state("x.h5")


# Reader and the files that it takes.
READERS: dict[str, tuple[Callable[[str], object], tuple[str, ...]]] = {
    "weights": (lambda file: load_caffemodel(Net(parse_net(NET)), file), ("w.caffemodel", "w.caffemodel.h5")),
    "weights of a fork": (
        lambda file: load_caffemodel(Net(parse_net(NET)), file, "other"),
        ("w.caffemodel",),
    ),
    "state": (read_state, ("s.solverstate", "s.solverstate.h5")),
    "state in HDF5": (renamed_state, ("s.solverstate.h5",)),
    "net": (read_net, ("net.prototxt",)),
    "solver": (read_solver, ("solver.prototxt",)),
    "mean_file": (
        layer(
            'type: "Data" transform_param { mean_file: "FILE" } '
            'data_param { source: "lmdb" batch_size: 1 backend: LMDB }'
        ),
        ("mean.binaryproto",),
    ),
    "LMDB": (layer('type: "Data" data_param { source: "FILE" batch_size: 1 backend: LMDB }'), ("data.mdb",)),
    "list of HDF5 files": (HDF5, ()),
    "HDF5 file": (of_list(HDF5, "FILE\n"), ()),
    "list of pictures": (IMAGES, ()),
    "picture": (of_list(IMAGES, "FILE 0\n"), ("a.png",)),
    "picture of a script": (caffe.io.load_image, ("a.png",)),
    "windows": (
        layer(
            'top: "l" type: "WindowData" transform_param { crop_size: 4 } '
            'window_data_param { source: "FILE" batch_size: 4 }'
        ),
        (),
    ),
    "list of convert-imageset": (convert_imageset.read_list, ()),
    "archive": (open_archive, ()),
    "ONNX": (open_session, ("m.onnx",)),
    "state dict": (to_caffe.read_state, ("new.pth", "old.pth")),
}
# The words that stand in the place of FILES'.
OTHERWISE = {
    ("net", "solver.prototxt"): "a solver has that field: this is the prototxt of a solver",
    ("solver", "net.prototxt"): "a net has that field: this is the prototxt of a net",
    ("archive", "w.gz"): "cannot read 'w.gz' as a .tar archive (.gz, .bz2, .xz): ",
    ("weights", "s.solverstate.h5"): "it holds a solver state",
    ("weights of a fork", "s.solverstate.h5"): "dialects are of binary files, this is HDF5",
    ("weights of a fork", "w.caffemodel.h5"): "dialects are of binary files, this is HDF5",
    ("state", "w.caffemodel.h5"): "it holds weights",
    ("state in HDF5", "w.caffemodel.h5"): "it holds weights",
    ("HDF5 file", "w.caffemodel.h5"): "Failed to find HDF5 dataset data in 'w.caffemodel.h5'; it has data",
    ("HDF5 file", "s.solverstate.h5"): "Failed to find HDF5 dataset data in 's.solverstate.h5'; it has curr",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all FILES."""
    folder = tmp_path_factory.mktemp("files")
    at = folder.joinpath
    at("lfs").write_text(LFS)
    at("html").write_text(HTML)
    at("net.prototxt").write_text(NET)
    at("solver.prototxt").write_text(SOLVER)
    at("utf16.prototxt").write_bytes(NET.encode("utf-16"))
    net = Net(parse_net(NET))
    save_caffemodel(net, at("w.caffemodel"))
    save_caffemodel(net, at("w.caffemodel.h5"), hdf5=True)
    history: list[NDArray[Any]] = [np.zeros((5, 3), np.float32), np.zeros(5, np.float32)]
    for name in ("s.solverstate", "s.solverstate.h5"):
        write_state(State(3, "w.caffemodel", 0, history, {"loss": 1.5}), at(name))
    mean = np.ones((1, 3, 8, 8))
    at("mean.binaryproto").write_bytes(caffe.io.array_to_blobproto(mean).SerializeToString())
    np.save(at("mean.npy"), mean[0])
    datum = datum_from_array(np.zeros((3, 8, 8), np.uint8), 1)
    at("datum").write_bytes(datum.SerializeToString())
    write_lmdb(at("lmdb"), [(b"0", datum)])
    at("data.mdb").write_bytes(at("lmdb/data.mdb").read_bytes())
    at("w.gz").write_bytes(gzip.compress(at("w.caffemodel").read_bytes()))
    with zipfile.ZipFile(at("w.zip"), "w") as archive:
        archive.write(at("w.caffemodel"), "w.caffemodel")
    cv2.imwrite(str(at("a.png")), np.zeros((8, 8, 3), np.uint8))
    export_file(parse_net(NET), None, at("m.onnx"))
    torch.save({"a": torch.zeros(3)}, at("new.pth"))
    torch.save({"a": torch.zeros(3)}, at("old.pth"), _use_new_zipfile_serialization=False)
    return folder


@pytest.mark.parametrize("reader", READERS)
def test_each_reader_says_what_a_wrong_file_is(
    reader: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    read, right = READERS[reader]
    for name, words in FILES.items():
        if name in right:
            read(name)
            continue
        with pytest.raises(ImaeError) as caught:
            read(name)
        message = str(caught.value)
        if reader == "LMDB" and name in MESSAGES and "damaged" in message:
            continue  # of a file that is no LMDB the first bytes are looked at, not a whole message
        assert OTHERWISE.get((reader, name), words) in message, (name, message)


def test_every_kind_is_told_by_its_content(files: Path) -> None:
    told = {name: file_kind(files.joinpath(name).read_bytes()) for name in FILES}
    assert None not in told.values()
    assert {name: f"it is {kind.value}" for name, kind in told.items() if kind is not None} == FILES
    rest = {
        bz2.compress(b"x"): FileKind.BZIP2,
        b"\xfd7zXZ\0\0\x04": FileKind.XZ,
        b"\x80\x04\x95\x10\0": FileKind.PICKLE,
        b"x" * 257 + b"ustar\x0000": FileKind.TAR,
        b"<html>": FileKind.HTML,
        b"GIF89a\1\0\1\0\0\0\0;": FileKind.PICTURE,
    }
    assert {data: file_kind(data) for data in rest} == rest
    assert set(told.values()) | set(rest.values()) == set(FileKind)
    many = b"\x1a\x01x" * 50_000  # more fields than are looked at
    assert file_kind(b"\x08\x03" + many) is FileKind.STATE
    for data in (
        b"",
        b"\n",
        b"layer" + b" " * 60_000,
        b"12 3\n",
        b"name 1\nother 2\n",
        bytes(range(256)),
        b"\x08",
    ):
        assert file_kind(data) is None
    assert mistaken_file(files) == mistaken_file(files / "nothing") == ""


# Text that begins as a message or a magic number does: BlobProto's double_data (A), data (*, -), raw_data (b)
TEXT_LIKE_BINARY = (
    "A\xe4.png 1",
    "-\xe4\xe4",
    "*!\xe4" + "x" * 30 + " 2",
    "b.\xe9" + "x" * 43 + "\n",
    "GIF89a/\xe4.png 0\n",
    "GIF87a/1.png 0\n",
    "BZh91AY&SY/1.png 0\n",
    "x" * 256 + " ustar/\xe4.png 1\n",
    "A\x1b[31mab 1",
)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
@pytest.mark.parametrize("text", TEXT_LIKE_BINARY)
def test_text_is_no_binary_file(text: str, encoding: str, tmp_path: Path) -> None:
    data = text.encode(encoding)
    assert file_kind(data) is None
    (tmp_path / "list").write_bytes(data)
    line, lines = data.removesuffix(b"\n"), convert_imageset.read_list(str(tmp_path / "list"))
    assert [os.fsencode(name) for name, _ in lines] == [line.rpartition(b" ")[0] or line]


def test_short_text_at_random_is_no_binary_file() -> None:
    """Nor are a few bytes at random a message of Caffe's, whose fields are never alone."""
    draw = random.Random(1)
    letters = [c for c in range(256) if c in b"\t\n\r" or (c >= 32 and c != 127)]
    for _ in range(20_000):
        text = bytes(draw.choices(letters, k=draw.randrange(1, 20)))
        assert file_kind(text) is None, text
        # With the first bytes of a BlobProto's values.
        anything = draw.choice([b"A", b"-", b"*", b"b", b"B"]) + draw.randbytes(draw.randrange(12))
        assert file_kind(anything) is not FileKind.BLOB, anything


def test_what_is_told_is_of_the_files_that_caffe_wrote() -> None:
    kinds = {
        ".caffemodel": FileKind.NET,
        ".solverstate": FileKind.STATE,
        ".binaryproto": FileKind.BLOB,
        ".mdb": FileKind.LMDB,
        ".h5": FileKind.HDF5,
    }
    found = [path for path in (Path(__file__).parents[1] / "cases").rglob("*") if path.suffix in kinds]
    assert len({path.suffix for path in found}) > 3
    for path in found:
        assert file_kind(path.read_bytes()) is kinds[path.suffix], path


def test_a_command_says_it_in_one_line(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(files)
    for command in (
        ["train", "solver.prototxt", "--weights", "lfs"],
        ["train", "solver.prototxt", "--snapshot", "lfs"],
        ["export", "--model", "net.prototxt", "--weights", "lfs", "--output", "x.onnx"],
        ["upgrade-net-proto-binary", "lfs", "new"],
        ["quantize", "lfs", "x.onnx", "--to", "fp16"],
    ):
        assert main(command) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("imae: lfs: ") and last.endswith(FILES["lfs"]), last
    assert not Path("x.onnx").exists() and not Path("new").exists()
    assert main(["train", "net.prototxt"]) == 2
    assert "this is the prototxt of a net" in capsys.readouterr().err


# -- forks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            'layer { name: "s" type: "Axpy" spatial_dropout_param { dropout_ratio: 1 } }',
            'field "spatial_dropout_param"; Intel\'s fork (intel/caffe) has it, Caffe has not, nor has imae',
        ),
        (
            'layer { name: "c" type: "Convolution" convolution_param { relu: true } }',
            "Intel's fork (intel/caffe) has it, Caffe has not; write a ReLU layer after this one",
        ),
        (
            'layer { name: "b" type: "BatchNorm" batch_norm_param { scale_filler { } } }',
            "NVIDIA Caffe (NVIDIA/caffe) has it, Caffe has not; give --dialect nvidia",
        ),
        (
            'layer { name: "b" type: "BatchNorm" batch_norm_param { bias_filler { } } }',
            "Intel's fork (intel/caffe) and NVIDIA Caffe (NVIDIA/caffe) have it, Caffe has not; give --",
        ),
        (
            'layer { name: "b" type: "BatchNorm" batch_norm_param { use_weight_bias: true } }',
            "write a Scale layer after the BatchNorm for its scale and bias, and remove it",
        ),
        (
            "layer { transform_param { multi_scale: true } }",
            'no field "multi_scale"; yjxiong\'s fork (yjxiong/caffe) has it, Caffe has not, nor has imae',
        ),
        (
            'layer { name: "p" type: "Proposal" proposal_param { max_rois: 300 } }',
            "Lenovo's Proposal, as in synopsys-caffe has it, Caffe has not; it is another layer than",
        ),
        ('layers { name: "c" type: CONVOLUTION3D }', "; C3D (facebook/C3D) has it, Caffe has not"),
        ("default_forward_type: FLOAT16", "NVIDIA Caffe (NVIDIA/caffe) has it"),
        ("layer { pooling_param { cell_mode: 1 } }", 'has no field "cell_mode"'),
    ],
)
def test_a_field_of_a_fork_names_the_fork(text: str, words: str) -> None:
    try:
        parse_net(text)
    except PrototxtError as error:
        assert words in str(error)
    else:
        pytest.fail(f"it was read: {text}")


def test_a_type_of_a_fork_names_the_fork() -> None:
    with pytest.raises(
        LayerError, match=r"Unknown layer type: CPMData; OpenPose's fork .* nor has imae \(known"
    ):
        Net(parse_net('layer { name: "f" type: "CPMData" top: "x" }'))


def test_a_solvers_field_of_a_fork_names_the_fork() -> None:
    with pytest.raises(PrototxtError, match=r"no value SAG; .*; NVIDIA Caffe \(NVIDIA/caffe\) has it"):
        parse_solver("solver_type: SAG")


def test_the_table_of_forks_is_about_messages_that_exist() -> None:
    for fork in FORKS:
        assert fork.types or fork.fields
        for entry in fork.fields.split():
            message, _, name = entry.rpartition(".")
            assert name
            assert message in ("", "NormalizationMode", "Engine", "SolverType") or hasattr(
                caffe_pb2, message
            ), entry


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x.txt"])
def test_labels(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(LFS)
    for read in (read_labels, read_label_arrays):
        with pytest.raises(ImaeError, match="; it is a Git-LFS pointer"):
            read(str(path))
    path.unlink()
    os.mkfifo(path)  # nobody writes into it
    for read in (read_labels, read_label_arrays):
        with pytest.raises(ImaeError, match="it is a pipe, not a file"):
            read(str(path))
