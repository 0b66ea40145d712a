"""Bad input of every kind through the command line: exit status 2, one line, and nothing left behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from imae.cli.main import main
from imae.converters.lmdb_writer import write_lmdb
from imae.layers.data.datum import datum_from_array
from imae.prototxt import Datum, NetParameter
from imae.prototxt.text import read_binary

DATA = """
layer { name: "data" type: "Data" top: "data" top: "label"
        data_param { source: "lmdb" batch_size: 4 backend: LMDB } }
"""
BODY = """
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
"""
LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }\n'
NET = DATA + BODY + LOSS
SOLVER = """
net: "net.prototxt" base_lr: 1e-6 lr_policy: "fixed" max_iter: 3 display: 1 random_seed: 1
snapshot_prefix: "x"
"""
WEIGHTS = "x_iter_3.caffemodel"
COMMANDS = {
    "train": ["train", "solver.prototxt"],
    "test": ["test", "--model", "net.prototxt", "--weights", WEIGHTS, "--iterations", "3"],
    "export": ["export", "--model", "net.prototxt", "--weights", WEIGHTS, "--output", "new.onnx"],
    "run": ["run", "net.onnx", "--lmdb", "lmdb"],
}


def make_lmdb(path: str, labels: tuple[int, ...] = (0, 1, 2, 3, 4), odd: Datum | bytes | None = None) -> None:
    """12 images of 3 x 8 x 8 with the labels in turn; `odd` is the record in the place of number 7."""
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (12, 3, 8, 8), np.uint8)
    datums: list[Datum | bytes] = [
        datum_from_array(image, labels[index % len(labels)]) for index, image in enumerate(images)
    ]
    if odd is not None:
        datums[7] = odd
    # The writer takes whatever can be serialised.
    records = [cast(Datum, _Bytes(d)) if isinstance(d, bytes) else d for d in datums]
    write_lmdb(path, ((b"%08d" % i, datum) for i, datum in enumerate(records)))


class _Bytes:
    """Bytes that pass for a message."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def SerializeToString(self) -> bytes:  # protobuf's name
        return self._data


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that works: LMDB, net, solver, weights, solver state, ONNX model."""
    folder = tmp_path_factory.mktemp("made")
    before = os.getcwd()
    os.chdir(folder)
    try:
        make_lmdb("lmdb")
        Path("net.prototxt").write_text(NET)
        Path("solver.prototxt").write_text(SOLVER)
        assert main(COMMANDS["train"]) == 0
        assert main([*COMMANDS["export"][:-1], "net.onnx"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def state(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with status 2 and one line that holds the message; no file is new or another."""
    before = state(Path())
    capsys.readouterr()
    status = main(arguments)
    out, err = capsys.readouterr()
    complaints = [line for line in err.splitlines() if line.startswith("imae: ")]
    assert status == 2, err
    assert out == ""
    assert err.splitlines()[-1:] == complaints
    assert message in complaints[0]
    assert state(Path()).keys() == before.keys()
    assert state(Path()) == before


def test_the_project_works(here: Path) -> None:
    assert [main(arguments) for arguments in COMMANDS.values()] == [0, 0, 0, 0]


# -- a net that cannot be ------------------------------------------------------------------------------------

NETS = [
    ("num_output: 4", "num_outputs: 4", 'has no field "num_outputs"; did you mean "num_output"?'),
    ('"InnerProduct"', '"InnerProdukt"', "Unknown layer type: InnerProdukt; did you mean 'InnerProduct'?"),
    ('bottom: "conv"', 'bottom: "konv"', "Unknown bottom blob 'konv' (layer 'fc', bottom index 0)"),
    ("kernel_size: 3", "kernel_size: 11", "nothing would be left of bottom"),
    ("kernel_size: 3", "kernel_size: 3 group: 2", "multiples of group 2"),
    ("kernel_size: 3", "", "kernel_size must be specified once"),
    ("kernel_size: 3", "kernel_size: 3 stride: 0", "Stride dimensions must be nonzero."),
    ("num_output: 5", "num_output: 6", "Cannot copy param 0 weights from layer 'fc'; shape mismatch."),
    ('"xavier"', '"xavierr"', "xavierr"),
    (
        'bottom: "conv" top: "fc"',
        'bottom: "sum" top: "fc"',
        "layer 'sum' (Eltwise)",
    ),
    ('source: "lmdb"', 'source: "gone"', "lmdb 'gone': No such file or directory"),
    ("batch_size: 4", "batch_size: 0", "Positive batch size required"),
    ("backend: LMDB", "backend: LEVELDB", "Failed to open leveldb lmdb"),
]
SUM = """
layer { name: "p" type: "Pooling" bottom: "conv" top: "p" pooling_param { kernel_size: 2 } }
layer { name: "sum" type: "Eltwise" bottom: "conv" bottom: "p" top: "sum" }
"""


@pytest.mark.parametrize("command", ["train", "test", "export"])
@pytest.mark.parametrize(("old", "new", "message"), NETS, ids=[new for _, new, _ in NETS])
def test_net(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, old: str, new: str, message: str
) -> None:
    assert old in NET
    net = NET.replace(old, new)
    if '"sum"' in new:
        net = net.replace('layer { name: "fc"', SUM + 'layer { name: "fc"')
    Path("net.prototxt").write_text(net)
    arguments = COMMANDS[command]
    if "Cannot copy" in message and command == "train":
        arguments = [*arguments, "--weights", WEIGHTS]
    refused(arguments, message, capsys)


# -- data that cannot be -------------------------------------------------------------------------------------

ODD: list[tuple[str, Datum | bytes, str]] = [
    ("size", datum_from_array(np.zeros((3, 9, 8), np.uint8), 0), "its size is 3 x 9 x 8"),
    ("channels", datum_from_array(np.zeros((1, 8, 8), np.uint8), 0), "1 x 8 x 8"),
    ("short", Datum(channels=3, height=8, width=8, data=bytes(100)), "that holds 100 values"),
    ("huge", Datum(channels=2**31 - 1, height=2**31 - 1, width=9, data=bytes(9)), "that holds 9 values"),
    ("negative", Datum(channels=-3, height=-8, width=8, data=bytes(192)), "the record is damaged"),
    ("no picture", Datum(encoded=True, data=b"\x89PNG"), "could not decode"),
    ("no datum", b"hello", "are not a Datum; the record is damaged"),
]


@pytest.mark.parametrize("command", ["train", "test", "run"])
@pytest.mark.parametrize(("odd", "message"), [case[1:] for case in ODD], ids=[case[0] for case in ODD])
def test_record(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, odd: Datum | bytes, message: str
) -> None:
    shutil.rmtree("lmdb")
    make_lmdb("lmdb", odd=odd)
    refused(COMMANDS[command], message, capsys)


@pytest.mark.parametrize("command", ["train", "test"])
@pytest.mark.parametrize(
    "loss", ["SoftmaxWithLoss", "IMAELoss", "MAELoss", "MSELoss", "GCELoss", "DMLoss", ""]
)
@pytest.mark.parametrize("label", [5, -1])
def test_label_out_of_range(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, loss: str, label: int
) -> None:
    shutil.rmtree("lmdb")
    make_lmdb("lmdb", labels=(0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, label))
    tail = f'type: "{loss}"' if loss else 'type: "Accuracy"'
    Path("net.prototxt").write_text(NET.replace('type: "SoftmaxWithLoss"', tail))
    name = loss or "Accuracy"
    message = f"layer 'loss' ({name}): label {label} is out of range: there are 5 classes"
    refused(COMMANDS[command], message, capsys)


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


FILES: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("empty", lambda data: b"", "lmdb 'lmdb': the file is empty; make the database again"),
    ("one byte", lambda data: data[:1], "lmdb 'lmdb': not an LMDB"),
    ("one page", lambda data: data[:4096], "lmdb 'lmdb': not an LMDB"),
    ("two pages", lambda data: data[:8192], "lmdb 'lmdb': "),
    ("half", cut(0.5), "lmdb 'lmdb': "),
    ("all but a byte", lambda data: data[:-1], "lmdb 'lmdb': "),
    ("text", lambda data: b"hello world\n" * 1000, "lmdb 'lmdb': not an LMDB"),
    ("zeros", lambda data: bytes(len(data)), "lmdb 'lmdb': not an LMDB"),
]


@pytest.mark.parametrize("command", ["train", "test", "export", "run"])
@pytest.mark.parametrize(("damage", "message"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
def test_database(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    damage: Callable[[bytes], bytes],
    message: str,
) -> None:
    file = Path("lmdb/data.mdb")
    damaged = damage(file.read_bytes())
    file.unlink()
    file.write_bytes(damaged)
    refused(COMMANDS[command], message, capsys)


# -- weights and snapshots -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "test", "export"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "not a binary caffe.NetParameter"),
        (lambda p: p.write_bytes(b""), "the file is empty"),
        (lambda p: p.unlink(), "no such file"),
        (lambda p: (p.unlink(), p.mkdir()), "is a folder, expected a file"),
    ],
    ids=["cut", "empty", "missing", "folder"],
)
def test_weights(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    make: Callable[[Path], object],
    message: str,
) -> None:
    make(Path(WEIGHTS))
    arguments = COMMANDS[command] + (["--weights", WEIGHTS] if command == "train" else [])
    refused(arguments, f"{WEIGHTS}: {message}", capsys)


def test_weights_of_another_net(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.prototxt").write_text(
        NET.replace('name: "conv"', 'name: "c"').replace('name: "fc"', 'name: "f"')
    )
    message = "the model of another net: it has blobs for conv, fc, the net needs c, f"
    for arguments in (COMMANDS["test"], COMMANDS["export"], [*COMMANDS["train"], "--weights", WEIGHTS]):
        refused(arguments, message, capsys)


def test_weights_that_are_nan(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = read_binary(WEIGHTS, NetParameter)
    for layer in model.layer:
        for blob in layer.blobs:
            blob.data[0] = float("nan")
    Path(WEIGHTS).write_bytes(model.SerializeToString())
    refused(COMMANDS["export"], "layer 'conv': blob 0 holds NaN or infinity", capsys)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_snapshot_that_is_cut_short(here: Path, capsys: pytest.CaptureFixture[str], share: float) -> None:
    path = Path("x_iter_3.solverstate")
    path.write_bytes(cut(share)(path.read_bytes()))
    refused([*COMMANDS["train"], "--snapshot", str(path)], f"{path}: not a binary caffe.SolverState", capsys)


def test_snapshot_where_a_folder_is_in_the_way(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(WEIGHTS).unlink()
    Path(WEIGHTS).mkdir()
    refused(COMMANDS["train"], f"cannot write '{WEIGHTS}': it exists and is not a regular file", capsys)


# -- deploying -----------------------------------------------------------------------------------------------

HEADER = (
    'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 8 dim: 3 dim: 8 dim: 8 } } }'
)
EXPORTS = [
    (
        'layer { name: "r" type: "Reshape" bottom: "fc" top: "r" reshape_param { shape { dim: 8 dim: -1 } } }'
        'layer { name: "last" type: "InnerProduct" bottom: "r" top: "last" '
        "inner_product_param { num_output: 2 } }",
        "cannot run with a batch of 3: ",
    ),
    (
        'layer { name: "bn" type: "BatchNorm" bottom: "fc" top: "fc" '
        "batch_norm_param { use_global_stats: false } }",
        "layer 'bn': use_global_stats is false, so it depends on the batch; set it to true",
    ),
]


@pytest.mark.parametrize("fold", [[], ["--fold"]], ids=["plain", "folded"])
@pytest.mark.parametrize(("tail", "message"), EXPORTS, ids=["one batch size", "statistics of the batch"])
def test_net_that_cannot_be_deployed(
    here: Path, capsys: pytest.CaptureFixture[str], tail: str, message: str, fold: list[str]
) -> None:
    Path("net.prototxt").write_text(HEADER + BODY + tail)
    refused(["export", "--model", "net.prototxt", "--output", "new.onnx", *fold], message, capsys)


def test_scale_on_another_axis_than_the_outputs_is_not_folded(here: Path) -> None:
    tail = """
    layer { name: "rows" type: "InnerProduct" bottom: "conv" top: "rows"
            inner_product_param { num_output: 4 axis: 2 weight_filler { type: "xavier" } } }
    layer { name: "scale" type: "Scale" bottom: "rows" top: "scale"
            scale_param { filler { type: "uniform" } } }
    """
    Path("net.prototxt").write_text(HEADER + BODY + tail)
    assert main(["export", "--model", "net.prototxt", "--output", "new.onnx", "--fold"]) == 0


def test_model_with_several_outputs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aux = (
        BODY.replace('name: "fc"', 'name: "aux"')
        .replace('top: "fc"', 'top: "aux"')
        .partition('layer { name: "aux')
    )
    Path("net.prototxt").write_text(HEADER + BODY + aux[1] + aux[2])
    assert main(["export", "--model", "net.prototxt", "--output", "net.onnx"]) == 0
    message = "one output of the model is needed, it has several; use --output with aux, fc"
    refused(COMMANDS["run"], message, capsys)
    refused([*COMMANDS["run"], "--output", "x"], "there is no 'x'; use --output with aux, fc", capsys)
    assert main([*COMMANDS["run"], "--output", "fc"]) == 0


def test_boxes_are_no_classes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ssd = """
    layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 8 dim: 8 } } }
    layer { name: "loc" type: "InnerProduct" bottom: "data" top: "loc" inner_product_param { num_output: 4 } }
    layer { name: "conf" type: "InnerProduct" bottom: "data" top: "conf"
            inner_product_param { num_output: 2 bias_filler { type: "constant" value: 1 } } }
    layer { name: "loc4" type: "Reshape" bottom: "loc" top: "loc4"
            reshape_param { shape { dim: 0 dim: 4 dim: 1 dim: 1 } } }
    layer { name: "prior" type: "PriorBox" bottom: "loc4" bottom: "data" top: "prior"
            prior_box_param { min_size: 4 } }
    layer { name: "out" type: "DetectionOutput" bottom: "loc" bottom: "conf" bottom: "prior" top: "out"
            detection_output_param { num_classes: 2 nms_param { top_k: 1 } keep_top_k: 1 } }
    """
    Path("net.prototxt").write_text(ssd)
    assert main(["export", "--model", "net.prototxt", "--output", "net.onnx"]) == 0
    message = "output 'out' holds boxes (rows of image, label, score, xmin, ymin, xmax, ymax), no scores"
    refused(COMMANDS["run"], message, capsys)


def test_last_batch_of_a_fixed_size(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def accuracy() -> str:
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy = "))

    assert main(COMMANDS["run"]) == 0
    want = accuracy()
    Path("net.prototxt").write_text(HEADER + BODY)
    assert main([*COMMANDS["export"], "--fixed-batch"]) == 0
    capsys.readouterr()
    assert main(["run", "new.onnx", "--lmdb", "lmdb"]) == 0
    assert accuracy() == want


@pytest.mark.parametrize("threads", ["-1", "1000000"])
def test_threads_of_run(here: Path, capsys: pytest.CaptureFixture[str], threads: str) -> None:
    refused([*COMMANDS["run"], "--threads", threads], "--threads must be 0 to ", capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cuda-graph"], "--cuda-graph is of GPUs; give --gpu, too, or leave it out"),
        (["--compile"], "--compile is of GPUs; give --gpu, too, or leave it out"),
        (["--precision", "tf32"], "--precision tf32 is of GPUs; give --gpu, too, or use fp32 or bf16"),
    ],
)
def test_what_only_a_gpu_can_is_refused_on_the_cpu(
    here: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused([*COMMANDS["train"], *flags], message, capsys)


def test_one_number_a_channel_can_be_trained(here: Path) -> None:
    """Batch 1 and one pixel: a variance of 0, which torch's own check refuses."""
    tail = """
    layer { name: "one" type: "Pooling" bottom: "conv" top: "one" pooling_param { global_pooling: true } }
    layer { name: "bn" type: "BatchNorm" bottom: "one" top: "one" }
    layer { name: "scale" type: "Scale" bottom: "one" top: "one" scale_param { bias_term: true } }
    layer { name: "relu" type: "ReLU" bottom: "one" top: "one" }
    """
    body = BODY.replace('layer { name: "fc"', tail + 'layer { name: "fc"').replace(
        'bottom: "conv" top: "fc"', 'bottom: "one" top: "fc"'
    )
    Path("net.prototxt").write_text(DATA.replace("batch_size: 4", "batch_size: 1") + body + LOSS)
    assert main(COMMANDS["train"]) == 0
