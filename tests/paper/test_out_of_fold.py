"""`imae out-of-fold`: probabilities by nets that have not seen the records; on the digits, at a tiny size."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from tolerances import tolerance

from imae.cli.main import main
from imae.converters.corrupt_labels import corrupt_labels
from imae.converters.lmdb_writer import write_lmdb
from imae.converters.split_lmdb import subset_lmdb
from imae.layers.data.lmdb_source import open_lmdb
from imae.net.net import Net
from imae.net.weights import load_caffemodel
from imae.paper import out_of_fold, processes
from imae.prototxt import NetParameter, SolverParameter
from imae.prototxt.text import parse_net, read_text

NET = """
layer { name: "digits" type: "Data" top: "data" top: "label" include { phase: TRAIN }
        transform_param { scale: 0.00390625 }
        data_param { source: "data/train_lmdb" batch_size: 10 backend: LMDB } }
layer { name: "digits" type: "Data" top: "data" top: "label" include { phase: TEST stage: "test" }
        transform_param { scale: 0.00390625 }
        data_param { source: "data/digits_test_lmdb" batch_size: 7 backend: LMDB } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
        inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy"
        include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss"
        include { phase: TRAIN } }
"""
SOLVER = """net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 20 random_seed: 1
test_iter: 3 test_interval: 2 test_state { stage: "test" } solver_mode: CPU
"""
COMMAND = ["out-of-fold", "--solver", "solver.prototxt", "--lmdb", "data/train_lmdb", "--folds", "3"]


class Finished:
    """A training that has run in this process."""

    def __init__(self, status: int) -> None:
        self.returncode = status

    def poll(self) -> int:
        return self.returncode


@pytest.fixture(autouse=True)
def _prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "POLL_INTERVAL", 0.01)
    assert main(["convert-digits", "data"]) == 0
    subset_lmdb("data/digits_train_lmdb", "data/small_lmdb", per_class=10)
    corrupt_labels("data/small_lmdb", "data/train_lmdb", "symmetric-exclusive", rate=0.3, seed=1)
    Path("net.prototxt").write_text(NET)
    Path("solver.prototxt").write_text(SOLVER)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folds that are started, which are trained in this process."""
    names: list[str] = []

    def start(folder: Path, options: list[str]) -> subprocess.Popen[bytes]:
        names.append(folder.name)
        Path(folder, "log").write_text("one line\nthe last line\n")
        status = main(["train", str(folder / "solver.prototxt"), "--resume", "auto", *options])
        return cast("subprocess.Popen[bytes]", Finished(status))

    monkeypatch.setattr(out_of_fold, "start_training", start)
    return names


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    assert main(arguments) == 2
    return capfd.readouterr().err.splitlines()[-1]


def test_folds_share_every_class() -> None:
    labels = np.repeat([0, 1, 2], [7, 12, 1])
    place = out_of_fold.folds_of(labels, 3, 1)
    assert sorted(np.bincount(place)) == [6, 7, 7]
    for label in (0, 1):
        counts = np.bincount(place[labels == label], minlength=3)
        assert np.ptp(counts) <= 1
    assert (place == out_of_fold.folds_of(labels, 3, 1)).all()
    assert (place != out_of_fold.folds_of(labels, 3, 2)).any()


def test_the_probabilities(started: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Those of a record come from the net of its fold, which has not seen it; in the order of the keys."""
    assert main([*COMMAND, "--output", "p.npz"]) == 0
    out = capfd.readouterr().out
    assert started == ["fold0", "fold1", "fold2"]
    assert out.startswith("3 folds, 0 of them done\n") and "accuracy against given labels 0." in out
    with open_lmdb("data/train_lmdb") as source, np.load("p.npz") as arrays:
        keys, labels = source.keys(), [source.datum(i).label for i in range(100)]
        pixels = [np.frombuffer(source.datum(i).data, np.uint8) for i in range(100)]
        assert arrays["key"].tolist() == keys and arrays["labels"].tolist() == labels
        probabilities, fold = arrays["pred_probs"], arrays["fold"]
        assert probabilities.shape == (100, 10) and probabilities.dtype == np.float32
        assert (arrays["predicted"] == probabilities.argmax(1)).all()
        assert json.loads(str(arrays["settings"]))["folds"] == 3
    images = torch.from_numpy(np.stack(pixels).astype(np.float32) / 256).reshape(100, 1, 8, 8)
    deploy = parse_net(
        'layer { name: "x" type: "Input" top: "data" '
        "input_param { shape { dim: 100 dim: 1 dim: 8 dim: 8 } } }"
        'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" '
        "inner_product_param { num_output: 10 } }"
    )
    rtol, atol, _ = tolerance("same arithmetic")
    for number in range(3):
        with open_lmdb(f"p/fold{number}/others_lmdb") as others:
            assert set(others.keys()) == {key for key, own in zip(keys, fold, strict=True) if own != number}
        net = Net(deploy)
        load_caffemodel(net, f"p/fold{number}/run_iter_20.caffemodel")
        with torch.no_grad():
            want = net.forward({"data": images})["ip"].softmax(1).numpy()
        np.testing.assert_allclose(probabilities[fold == number], want[fold == number], rtol=rtol, atol=atol)
        solver = read_text(Path("p", f"fold{number}", "solver.prototxt"), SolverParameter)
        assert not solver.test_iter and not solver.test_state and solver.random_seed == 1
    # What is done is not trained again. A .npy has the probabilities alone.
    assert main([*COMMAND, "--output", "p.npy"]) == 0
    assert len(started) == 3 and (np.load("p.npy") == probabilities).all()


def test_a_fold_that_has_failed_is_trained_again(
    started: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    works = out_of_fold.start_training

    def fail(folder: Path, options: list[str]) -> subprocess.Popen[bytes]:
        if folder.name != "fold1":
            return works(folder, options)
        Path(folder, "log").write_text("one line\nthe last line\n")
        return cast("subprocess.Popen[bytes]", Finished(3))

    monkeypatch.setattr(out_of_fold, "start_training", fail)
    error = refused([*COMMAND, "--output", "p.npz"], capfd)
    assert error == (
        "imae: 1 of 3 folds have not ended: 1; their logs are p/fold1/log and the like; the same command "
        "goes on with them"
    )
    assert not Path("p.npz").exists()
    monkeypatch.setattr(out_of_fold, "start_training", works)
    assert main([*COMMAND, "--output", "p.npz"]) == 0
    assert started == ["fold0", "fold2", "fold1"]


def test_other_folds_and_nets_are_not_mixed(started: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--output", "p.npz"]) == 0
    assert "'p/settings.json' is of other folds" in refused(
        [*COMMAND, "--seed", "2", "--output", "p.npz"], capfd
    )
    Path("net.prototxt").write_text(NET.replace("xavier", "msra"))
    assert "net or solver have changed since" in refused([*COMMAND, "--output", "p.npz"], capfd)
    assert len(started) == 3


def test_scores_that_are_probabilities_already(started: list[str]) -> None:
    """A Softmax layer before the Accuracy layer is not applied twice."""
    assert main([*COMMAND, "--output", "p.npz"]) == 0
    net = NET.replace('"Accuracy" bottom: "ip"', '"Accuracy" bottom: "prob"').replace(
        'layer { name: "accuracy"',
        'layer { name: "prob" type: "Softmax" bottom: "ip" top: "prob" include { phase: TEST } }\n'
        'layer { name: "accuracy"',
    )
    Path("net.prototxt").write_text(net)
    assert main([*COMMAND, "--output", "q.npz"]) == 0
    rtol, atol, _ = tolerance("same arithmetic")
    with np.load("p.npz") as p, np.load("q.npz") as q:
        np.testing.assert_allclose(p["pred_probs"], q["pred_probs"], rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("arguments", "net", "error"),
    [
        (["--output", "p.txt"], NET, "'p.txt': the output must be a .npz (all arrays) or a .npy"),
        (
            ["--output", "p.npz", "--folds", "1"],
            NET,
            "--folds must be from 2 to 100, the number of records; got 1",
        ),
        (["--output", "p.npz", "--jobs", "0"], NET, "--jobs must be at least 1, got 0"),
        (["--output", "p.npz", "--seed", "4294967296"], NET, "--seed must be from 0 to 4294967295"),
        (
            [],
            NET,
            "out-of-fold needs --solver SOLVER, --lmdb LMDB and --output FILE.npz; there is no --output",
        ),
        (["--output", "p.npz", "--lmdb", "data/small_lmdb"], NET, "no Data layer reads 'data/small_lmdb'"),
        (
            ["--output", "data/train_lmdb.npz"],
            NET,
            "the runs would be written into the LMDB 'data/train_lmdb'",
        ),
        (["--output", "no/p.npz"], NET, "cannot write 'no/p.npz': there is no folder 'no'"),
        (["--output", "p.npz", "--stage", "x"], NET, "it has 0 with stages x; see --stage"),
    ],
)
def test_what_is_refused(
    arguments: list[str], net: str, error: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("net.prototxt").write_text(net)
    assert error in refused([*COMMAND, *arguments], capfd)
    assert not Path("p.npz").exists() and not Path("p").exists()


def test_options_for_the_nets_are_for_the_trainings_too(
    started: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    passed: list[list[str]] = []
    start = out_of_fold.start_training

    def note(folder: Path, options: list[str]) -> subprocess.Popen[bytes]:
        passed.append(options)
        return start(folder, options)

    monkeypatch.setattr(out_of_fold, "start_training", note)
    options = ["--threads", "1", "--cpu", "--strict", "--no-python-layers"]
    assert main([*COMMAND, *options, "--output", "p.npz"]) == 0
    assert passed == [options] * 3
    python = 'layer { name: "p" type: "Python" python_param { module: "m" layer: "L" } }'
    Path("net.prototxt").write_text(NET + python)
    assert "IMAE_NO_PYTHON_LAYERS forbids" in refused([*COMMAND, *options, "--output", "q.npz"], capfd)


def test_keys_that_an_npz_cannot_hold(capfd: pytest.CaptureFixture[str]) -> None:
    with open_lmdb("data/train_lmdb") as source:
        write_lmdb("data/zero_lmdb", [(b"a", source.datum(0)), (b"b\0", source.datum(1))])
    Path("net.prototxt").write_text(NET.replace("train_lmdb", "zero_lmdb"))
    line = refused([*COMMAND, "--lmdb", "data/zero_lmdb", "--output", "p.npz", "--folds", "2"], capfd)
    assert line == "imae: 'data/zero_lmdb' has keys that end in a zero byte; an .npz cannot hold them"


def test_a_net_without_scores(started: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    param = NetParameter()
    param.CopyFrom(parse_net(NET))
    del param.layer[3]
    Path("net.prototxt").write_text(str(param))
    assert "neither an Accuracy nor a loss layer in phase TEST" in refused(
        [*COMMAND, "--output", "p.npz"], capfd
    )
