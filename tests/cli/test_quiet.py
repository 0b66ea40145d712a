"""Commands that print results keep the net's own log for --verbose; warnings and errors always appear."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from tiny_solver import DATA, FIVE_OUTPUTS, TINY_NET, TINY_SOLVER, write_solver

from imae.cli.main import main
from imae.net.net import Net
from imae.net.weights import save_caffemodel
from imae.prototxt.text import parse_net

# The commands, and the source files of Caffe whose lines their log has.
RUNS: dict[str, tuple[list[str], set[str]]] = {
    "test": (["--model", "net.prototxt", "--weights", "w.caffemodel", "--iterations", "2"], {"caffe.cpp"}),
    "export": (["--model", "net.prototxt", "--weights", "w.caffemodel", "--output", "net.onnx"], set()),
    "to-caffe": (["--model", "net.prototxt", "--weights", "a.pt", "--output", "made.caffemodel"], set()),
    "extract-features": (
        ["w.caffemodel", "net.prototxt", "a", "features", "1", "lmdb"],
        {"extract_features.cpp"},
    ),
}
OTHER = 'layer { name: "other" type: "Bias" bottom: "data" top: "other" }\n'
LEFTOVER = 'layer { name: "relu" type: "ReLU" bottom: "a" top: "a" pooling_param { kernel_size: 2 } }\n'
OLD_FORM = 'layers { name: "relu" type: RELU bottom: "x" top: "x" }\n'


@pytest.fixture(autouse=True)
def in_folder(here: Path) -> Path:
    """A folder with a net that has a field without effect, a solver, and weights that have one layer more."""
    loss = TINY_NET.removeprefix(DATA + FIVE_OUTPUTS)
    write_solver(TINY_SOLVER + "max_iter: 1\n", DATA + FIVE_OUTPUTS + LEFTOVER + loss)
    net = Net(parse_net(TINY_NET + OTHER))
    save_caffemodel(net, "w.caffemodel")
    weight, bias = net.params["a"]
    torch.save({"a.weight": weight.detach(), "a.bias": bias.detach()}, "a.pt")
    return here


def places(log: str) -> set[str]:
    """The source files of Caffe whose lines a log has."""
    return set(re.findall(r" (\w+\.[ch]pp):\d+\] ", log))


@pytest.mark.parametrize("name", RUNS)
def test_the_nets_log_is_for_verbose(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, own = RUNS[name]
    assert main([name, *arguments]) == 0
    err = capsys.readouterr().err
    assert places(err) == own
    assert "these fields do nothing, as in Caffe: layer 'relu' (ReLU): pooling_param" in err


@pytest.mark.parametrize("flag", ["--verbose", "-verbose", "-v"])
def test_verbose_has_caffes_whole_log(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *RUNS["export"][0], flag]) == 0
    err = capsys.readouterr().err
    assert "layer_factory.hpp:77] Creating layer a\n" in err and "Ignoring source layer other\n" in err
    assert logging.getLogger("imae.caffe").filters == []


def test_the_upgrade_of_a_net_is_for_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pydot", reason="drawings need it")
    Path("old.prototxt").write_text(OLD_FORM)
    assert main(["draw-net", "old.prototxt", "net.dot"]) == 0
    assert capsys.readouterr() == ("Drawing net to net.dot\n", "")
    assert main(["draw-net", "old.prototxt", "net.dot", "--verbose"]) == 0
    assert places(capsys.readouterr().err) == {"upgrade_proto.cpp"}


def test_caffes_note_on_its_future_is_for_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    """It came with every deploy file of the old form, and there is nothing to do about it."""
    fields = 'input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8 '
    Path("old.prototxt").write_text(fields + 'layer { name: "a" type: "ReLU" bottom: "data" top: "a" }')
    command = ["export", "--model", "old.prototxt", "--output", "net.onnx"]
    assert main(command) == 0
    assert capsys.readouterr().err == ""
    assert main([*command, "--verbose"]) == 0
    assert "upgrade_proto.cpp:74] Note that future Caffe releases" in capsys.readouterr().err


def test_an_error_is_the_only_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = list(RUNS["export"][0])
    arguments[3] = "none.caffemodel"
    Path("net.prototxt").write_text(TINY_NET)
    capsys.readouterr()
    assert main(["export", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("imae: ") and err.count("\n") == 1


def test_training_and_timing_keep_caffes_log(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["train", "solver.prototxt"], ["time", "--model", "net.prototxt", "--iterations", "1"]):
        assert main(command) == 0
        assert "Network initialization done." in capsys.readouterr().err


def test_caffes_own_spelling_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`imae caffe train`, as the program was called."""
    assert main(["caffe", "train", "--solver=solver.prototxt"]) == 0
    assert capsys.readouterr().err.endswith("Optimization Done.\n")
    assert main(["caffe"]) == 0
    assert capsys.readouterr().out.startswith("usage: imae COMMAND")
