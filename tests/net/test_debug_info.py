"""debug_info of a net and of a solver: the lines of Caffe, wherever a net runs.

tests/train/test_solver.py compares a whole training with the log that Caffe wrote.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import tolerance

import imae.pycaffe as caffe
from imae.cli.main import main
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net.net import Net
from imae.net.stepwise import Stepwise
from imae.prototxt.text import parse_net, parse_solver
from imae.train.options import Options
from imae.train.solver import Solver

LAYERS = """
layer { name: "data" type: "DummyData" top: "x" top: "label"
        dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 }
                           data_filler { type: "gaussian" } data_filler { value: 1 } } }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "shared" } param { lr_mult: 0 }
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } bias_filler { value: 0.5 } } }
layer { name: "relu" type: "ReLU" bottom: "a" top: "a" }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "shared" }
        inner_product_param { num_output: 3 bias_term: false } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "b" bottom: "label" top: "loss" }
"""
NET = "debug_info: true" + LAYERS
FORWARD = """Layer data, top blob x data | Layer data, top blob label data
    Layer a, top blob a data | Layer a, param blob shared data | Layer a, param blob 1 data
    Layer relu, top blob a data | Layer b, top blob b data | Layer b, param blob shared data
    Layer loss, top blob loss data"""
BACKWARD = """Layer loss, bottom blob b diff | Layer b, bottom blob a diff | Layer b, param blob 0 diff
    Layer relu, bottom blob a diff | Layer a, param blob 0 diff"""
TOTALS = "[Backward] All net params (data, diff)"


def expected(which: str, names: str) -> list[str]:
    return [f"[{which}] {name.strip()}" for name in re.split(r"\||\n", names)]


PASSES = [*expected("Forward", FORWARD), *expected("Backward", BACKWARD)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the net, and weights of it."""
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    caffe.Net("net.prototxt", caffe.TEST).save("w.caffemodel")
    return tmp_path


def said(log: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """(what, numbers) of each line of debug_info since the last call."""
    lines = [
        record.getMessage().strip().partition(": ") for record in log.records if "net.cpp" in place(record)
    ]
    log.clear()
    return [(what, value) for what, _, value in lines if what.startswith(("[Forward]", "[Backward]"))]


def place(record: logging.LogRecord) -> str:
    return str(getattr(record, "caffe", ""))


def logged(text: str) -> list[str]:
    """The lines of debug_info in a log on stderr, without their numbers."""
    return re.findall(r"(?m)net\.cpp:\d+\]     (\[(?:Forward|Backward)\] [^:]*)", text)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "imae")
    return caplog


def test_a_net_of_pycaffe_says_the_means_of_its_blobs(here: Path, log: pytest.LogCaptureFixture) -> None:
    net = caffe.Net("net.prototxt", caffe.TRAIN)
    log.clear()
    net.forward()
    lines = said(log)
    assert [what for what, _ in lines] == expected("Forward", FORWARD)
    got = [float(value) for _, value in lines]
    shared, bias = net.params["a"]
    blobs = [net.blobs[name] for name in ("x", "label", "a", "a", "b", "loss")]
    x, label, relu, after_relu, b, loss = (np.abs(blob.data).mean() for blob in blobs)
    before_relu = np.abs(net.blobs["x"].data @ shared.data.T + bias.data).mean()
    weight = np.abs(shared.data).mean()
    want = [x, label, before_relu, weight, np.abs(bias.data).mean(), after_relu, b, weight, loss]
    np.testing.assert_allclose(got, want, rtol=tolerance("printed").rtol)
    assert relu == after_relu < before_relu

    net.backward()
    lines = said(log)
    assert [what for what, _ in lines] == expected("Backward", BACKWARD)
    assert float(lines[-1][1]) == pytest.approx(np.abs(shared.diff).mean(), rel=tolerance("printed").rtol)


def test_only_what_runs_is_said(here: Path, log: pytest.LogCaptureFixture) -> None:
    net = caffe.Net("net.prototxt", caffe.TRAIN)
    log.clear()
    net.forward(start="relu", end="b")
    assert [what for what, _ in said(log)] == expected("Forward", FORWARD)[5:8]
    net.forward()
    said(log)
    net.backward(start="loss", end="b")
    assert [what for what, _ in said(log)] == expected("Backward", BACKWARD)[:3]


def test_both_ways_to_run_a_net_say_the_same(log: pytest.LogCaptureFixture) -> None:
    net, other = (Net(parse_net(NET), Run(CaffeRandom(1))) for _ in range(2))
    log.clear()
    other.forward()
    first = said(log)
    stepwise = Stepwise(net)
    stepwise.forward()
    assert said(log) == first
    assert [what for what, _ in first] == expected("Forward", FORWARD)
    stepwise.backward()
    assert [what for what, _ in said(log)] == [*expected("Backward", BACKWARD), TOTALS]
    net.debug_info = False
    net.forward()
    stepwise.forward()
    assert said(log) == []


def test_commands_say_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "net.prototxt", "--iterations", "2"]
    assert main(["test", *flags, "--weights", "w.caffemodel"]) == 0
    assert logged(capsys.readouterr().err) == 2 * expected("Forward", FORWARD)
    assert main(["time", *flags]) == 0
    err = capsys.readouterr().err
    assert logged(err) == [*PASSES, TOTALS]
    assert (
        err.index("[Forward]") < err.index("Initial loss") < err.index("[Backward]") < err.index("Benchmark")
    )
    assert main(["extract-features", "w.caffemodel", "net.prototxt", "b", "out", "3", "lmdb"]) == 0
    assert logged(capsys.readouterr().err) == 3 * expected("Forward", FORWARD)


COMMON = 'base_lr: 0 lr_policy: "fixed" random_seed: 1 snapshot_after_train: false display: 2'


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_solvers_debug_info_takes_the_place_of_the_nets(
    device: str, log: pytest.LogCaptureFixture
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    test = "test_iter: 1 test_interval: 3"
    quiet = Solver(parse_solver(f"{COMMON} {test} net_param {{ {NET} }}"), Options(device=device))
    warning = "debug_info of a net has no effect here: the solver's counts, which is false"
    assert warning in log.messages
    log.clear()
    quiet.step(4)
    assert said(log) == []
    loud = Solver(
        parse_solver(f"{COMMON} {test} debug_info: true net_param {{ {LAYERS} }}"), Options(device=device)
    )
    assert warning not in log.messages
    log.clear()
    loud.step(4)
    lines = [what for what, _ in said(log)]
    iteration = [*PASSES, TOTALS]
    tested = expected("Forward", FORWARD)
    assert lines == [*tested, *iteration, *iteration, *tested]


def test_the_nets_own_counts_before_the_first_iteration(log: pytest.LogCaptureFixture) -> None:
    """As in Caffe, where max_iter is 0: the solver has not set it yet when the last loss is shown."""
    solver = Solver(parse_solver(f"{COMMON} max_iter: 0 net_param {{ {NET} }}"))
    log.clear()
    solver.solve()
    assert [what for what, _ in said(log)] == expected("Forward", FORWARD)


def test_the_nets_own_does_not_change_what_it_learns() -> None:
    """It runs the plain plan, but BatchNorms by the same kernels."""
    layers = """
    layer { name: "data" type: "DummyData" top: "x" top: "label"
            dummy_data_param { shape { dim: 8 dim: 3 dim: 16 dim: 16 } shape { dim: 8 }
                               data_filler { type: "gaussian" } data_filler { value: 1 } } }
    layer { name: "conv" type: "Convolution" bottom: "x" top: "conv"
            convolution_param { num_output: 16 kernel_size: 3 weight_filler { type: "xavier" } } }
    layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }
    layer { name: "fc" type: "InnerProduct" bottom: "bn" top: "fc"
            inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
    """
    common = COMMON.replace("base_lr: 0 ", "base_lr: 0.1 ")
    texts = [f"{common} net_param {{ {debug} {layers} }}" for debug in ("", "debug_info: true")]
    solvers = [Solver(parse_solver(text)) for text in texts]
    for solver in solvers:
        solver.step(3)
    for plain, debugged in zip(*(solver.net.learnable for solver in solvers), strict=True):
        assert torch.equal(plain, debugged)
