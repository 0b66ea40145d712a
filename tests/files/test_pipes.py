"""Files that come through a pipe, as `imae train <(zcat net.gz)`, give what they give as files."""

from __future__ import annotations

import gzip
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import h5py
import numpy as np
import onnx
import pytest

import imae.pycaffe as caffe
from imae.cli.main import main
from imae.converters.describe_model import MODEL, WEIGHTS
from imae.converters.export_onnx import export_file
from imae.converters.lmdb_writer import write_lmdb
from imae.files.errors import ImaeError
from imae.files.file_kinds import FileKind, mistaken_file
from imae.files.read import open_to_read, read_bytes
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net.net import Net
from imae.net.weights import save_caffemodel
from imae.prototxt import TEST, TRAIN, BlobProto, Datum, NetParameter
from imae.prototxt.text import parse_net
from imae.train.launched_ranks import spawn

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="the system has no /dev/fd")

NET = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 2 dim: 2 } } }
layer { name: "bn" type: "BatchNorm" bottom: "x" top: "x" }
layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc"
        inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
"""
TRAINED = """
layer { name: "data" type: "DummyData" top: "x" top: "label" dummy_data_param {
        shape { dim: 2 dim: 3 dim: 2 dim: 2 } shape { dim: 2 }
        data_filler { type: "constant" value: 2 } data_filler { type: "constant" value: 1 } } }
layer { name: "bn" type: "BatchNorm" bottom: "x" top: "x" }
layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc"
        inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""
SOLVER = """
net: "NET" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 random_seed: 1 snapshot_prefix: "out"
display: 1 snapshot: 1 max_iter: 2 test_iter: 1 test_interval: 1
"""
LISTED = """
layer { name: "d" type: "ImageData" top: "x" top: "label" transform_param { mean_file: "mean" }
        image_data_param { source: "list" batch_size: 2 } }
layer { name: "h" type: "HDF5Data" top: "h" hdf5_data_param { source: "hdf5_list" batch_size: 1 } }
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pipe() -> Iterator[Callable[[str], str]]:
    """The path of a pipe through which a file comes, as of a shell's <(cat FILE)."""
    readers: list[int] = []
    writers: list[threading.Thread] = []

    def piped(name: str) -> str:
        reader, writer = os.pipe()
        readers.append(reader)

        def fill() -> None:
            with suppress(BrokenPipeError), open(writer, "wb") as file:  # some do not read to the end
                file.write(Path(name).read_bytes())

        writers.append(threading.Thread(target=fill))
        writers[-1].start()
        return f"/dev/fd/{reader}"

    yield piped
    for reader in readers:
        os.close(reader)
    for thread in writers:
        thread.join()


def make_files() -> None:
    """All that the commands below read."""
    Path("net").write_text(NET)
    Path("trained").write_text(TRAINED)
    Path("solver").write_text(SOLVER.replace("NET", "trained"))
    net = Net(parse_net(TRAINED), Run(CaffeRandom(1)))
    save_caffemodel(net, "w")
    save_caffemodel(net, "w.h5", hdf5=True)
    nvidia = NetParameter.FromString(Path("w").read_bytes())
    (norm,) = (layer for layer in nvidia.layer if layer.type == "BatchNorm")
    del norm.blobs[:]
    for values in ([1, 2, 3], [4, 5, 6], [1, 1, 2], [1, 1, 3], [0]):  # scale, bias, mean, variance, reserved
        norm.blobs.add(data=values).shape.dim.append(len(values))
    Path("nvidia").write_bytes(nvidia.SerializeToString())
    line = "I1129 00:00:00.000000     1 solver.cpp:239] Iteration %d (1 iter/s, 1s/1 iters), loss = 2\n"
    Path("log").write_text(line % 0 + line % 1)
    Path("classes").write_text("b\na\n")
    Path("list").write_text("1.png 1\n2.png 2\n" * 5000)  # more than a pipe holds
    Path("labels").write_text("1 0\n")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in ("a/1.png", "b/2.png"):
            cv2.imwrite(name[2:], np.full((2, 2, 3), ord(name[0]), np.uint8))
            tar.add(name[2:], name)
    Path("tar").write_bytes(packed.getvalue())
    Path("tar.gz").write_bytes(gzip.compress(packed.getvalue()))
    write_lmdb("db", [(b"%d" % i, Datum(channels=1, height=1, width=1, data=b"a", label=i)) for i in (0, 1)])
    mean = BlobProto(num=1, channels=3, height=2, width=2, data=[1] * 12)
    Path("mean").write_bytes(mean.SerializeToString())
    with h5py.File("h5", "w") as file:
        file["h"] = np.ones((2, 3), np.float32)
    Path("hdf5_list").write_text("h5\n")


# What stands in braces comes through a pipe. The results are called out...
COMMANDS = (
    "train {solver}",
    "train {solver} --weights {w}",
    "train {solver} --weights {w.h5}",
    "train {solver} --dialect nvidia --weights {nvidia}",
    "test --model {trained} --weights {w} --iterations 2",
    "test --model {trained} --weights {nvidia} --dialect nvidia",
    "time --model {trained} --iterations 1",
    "export --model {net} --weights {w} --output out",
    "export --model {net} --weights {w.h5} --output out",
    "export --model {net} --weights {nvidia} --dialect nvidia --output out",
    "extract-features {w} {trained} fc out 1 lmdb",
    "extract-features {nvidia} {trained} fc out 1 lmdb --dialect nvidia",
    "upgrade-net-proto-text {net} out",
    "upgrade-net-proto-text {net} out --dialect nvidia",
    "upgrade-net-proto-binary {w} out",
    "upgrade-net-proto-binary {nvidia} out --dialect nvidia",
    "upgrade-solver-proto-text {solver} out",
    "draw-net {net} out.dot",
    "compare-logs {log} log",
    "convert-folder {tar} out",
    "convert-folder {tar.gz} out --classes {classes} --labels {labels}",
    "convert-imageset ./ {list} out --gray",
    "corrupt-labels db out --noise file --labels {labels}",
)


def results() -> dict[str, bytes]:
    """The files that a command has written, by name, but for those that name what was read; they are gone."""
    paths = [path for path in Path().rglob("*") if str(path).startswith("out") and path.is_file()]
    found = {str(path): path.read_bytes() for path in paths}
    for path in paths:
        path.unlink()
    for folder in {path.parent for path in paths} - {Path()}:
        folder.rmdir()
    return {path: data for path, data in found.items() if not path.endswith(".clean_labels.npz")}


def without_sources(data: bytes) -> bytes:
    """A model without the names of the files that it is from: a pipe has none."""
    model = onnx.load_model_from_string(data)
    model.doc_string = ""
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert metadata.pop(MODEL) and metadata.pop(WEIGHTS)
    onnx.helper.set_model_props(model, metadata)
    return model.SerializeToString()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(
    here: Path, command: str, pipe: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    make_files()
    shown, made = [], []
    for through in (str, pipe):
        given = re.sub(r"\{(.+?)\}", lambda found: through(found[1]), command)  # noqa: B023
        status = main(given.split())
        captured = capsys.readouterr()
        assert status == 0, captured.err
        shown.append(re.findall(r"(?m)\] +((?:Batch|Test net output|Iteration \d+, ).*)", captured.err))
        made.append(results())
    if command.startswith("export "):
        made = [{path: without_sources(data) for path, data in files.items()} for files in made]
    assert shown[0] == shown[1] and made[0] == made[1]
    name = command.split()[0]
    assert bool(shown[0]) == (name in ("train", "test"))
    assert bool(made[0]) == (name not in ("test", "time", "compare-logs"))


def test_a_snapshot(here: Path, pipe: Callable[[str], str]) -> None:
    make_files()
    assert main(["train", "solver"]) == 0
    whole = results()
    for name in ("out_iter_1.caffemodel", "out_iter_1.solverstate"):
        Path(name).write_bytes(whole[name])
    for dialect in ([], ["--dialect", "other"]):
        assert main(["train", "solver", "--snapshot", pipe("out_iter_1.solverstate"), *dialect]) == 0
        for name in ("out_iter_2.caffemodel", "out_iter_2.solverstate"):
            assert Path(name).read_bytes() == whole[name]
            Path(name).unlink()


def test_the_net_of_a_solver(here: Path, pipe: Callable[[str], str]) -> None:
    """It is read for the train net and for the test net."""
    make_files()
    made = []
    for net in ("trained", pipe("trained")):
        Path("solver").write_text(SOLVER.replace("NET", net))
        assert main(["train", "solver"]) == 0
        made.append(results())
    assert made[0] == made[1] != {}


def test_what_layers_read(here: Path, pipe: Callable[[str], str]) -> None:
    """Two nets of one text, as a solver makes them, and HDF5 itself."""
    make_files()
    Path("hdf5_list").write_text(pipe("h5"))
    text = LISTED
    for name in ("mean", "list", "hdf5_list"):
        text = text.replace(f'"{name}"', f'"{pipe(name)}"')
    batches = []
    for param in (parse_net(LISTED.replace("hdf5_list", "plain")), parse_net(text), parse_net(text)):
        Path("plain").write_text("h5\n")
        batches.append(Net(param, Run(CaffeRandom(1))).next_batch())
    for batch in batches[1:]:
        assert batch.keys() == batches[0].keys()
        for name, blob in batches[0].items():
            assert blob.equal(batch[name]), name


def test_pycaffe(here: Path, pipe: Callable[[str], str]) -> None:
    make_files()
    for weights, dialect in (("w", None), ("w.h5", None), ("nvidia", "nvidia")):
        nets = [
            caffe.Net(net, TEST, weights=given, dialect=dialect)
            for net, given in (("net", weights), (pipe("net"), pipe(weights)))
        ]
        for one, other in zip(*(net.params.values() for net in nets), strict=True):
            for a, b in zip(one, other, strict=True):
                assert np.array_equal(a.data, b.data)
    assert caffe.Net(pipe("trained"), TRAIN).forward().keys() == {"loss"}


def test_a_wrong_file_is_still_told(here: Path, pipe: Callable[[str], str]) -> None:
    make_files()
    assert mistaken_file(pipe("w"), FileKind.BLOB) == "; it is a caffemodel"


def test_a_pipe_can_be_opened_again(here: Path, pipe: Callable[[str], str]) -> None:
    make_files()
    path = pipe("list")
    for _ in range(2):
        assert read_bytes(path) == Path("list").read_bytes()
        with open_to_read(path) as file:
            assert file.read(5) == b"1.png"


def test_what_is_read_all_over(
    here: Path, pipe: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    """By libraries that take a path, and by several processes."""
    make_files()
    export_file(parse_net(NET), None, "m.onnx")
    capsys.readouterr()
    for command, words in (
        ("run {m.onnx} --images 1.png", "it is a pipe; ONNX Runtime reads a model from a file only"),
        ("quantize {m.onnx} out --to fp16", "it is a pipe; ONNX Runtime reads a model from a file only"),
        ("split-lmdb {db/data.mdb} out --share 0.5", "it is a pipe; records are read from all over a file"),
        ("compute-image-mean {db/data.mdb} out", "it is a pipe; records are read from all over a file"),
    ):
        assert main(re.sub(r"\{(.+)\}", lambda found: pipe(found[1]), command).split()) == 2
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        assert words in line
    assert not results()


def test_several_ranks_cannot_share_a_pipe(here: Path, pipe: Callable[[str], str]) -> None:
    make_files()
    for words in (["train", pipe("solver")], ["train", "solver", f"--weights={pipe('w')}"]):
        with pytest.raises(ImaeError, match="several processes cannot read one pipe; write it"):
            spawn(2, words)


def test_a_shells_own(here: Path) -> None:
    make_files()
    command = "train <(cat solver) --dialect nvidia --weights <(cat nvidia)"
    done = subprocess.run(
        ["bash", "-c", f'"$0" -m imae.cli.main {command}', sys.executable],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert {"out_iter_2.caffemodel", "out_iter_2.solverstate"} <= results().keys()
