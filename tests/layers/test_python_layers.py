"""Python layers in a stranger's prototxt: said before they are imported, and never imported where refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import imae.pycaffe as caffe
from imae.cli.main import COMMANDS, main
from imae.files.errors import ImaeError, LayerError
from imae.layers.registry import layer_class
from imae.net.net import Net
from imae.net.weights import save_caffemodel
from imae.prototxt import TEST, LayerParameter
from imae.prototxt.python_layers import VARIABLE, no_python_layers
from imae.prototxt.text import parse_net, parse_text, read_net

MODULE = """
import sys
from pathlib import Path
import caffe

Path("ran").touch()
print("the code runs", file=sys.stderr)


class Same(caffe.Layer):
    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = top[0].diff
"""
NET = """
layer { name: "x" type: "DummyData" top: "x" top: "y"
        dummy_data_param { shape { dim: 2 dim: 3 } shape { dim: 2 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 4 } }
layer { name: "same" type: "Python" bottom: "ip" top: "same"
        python_param { module: "strange_code" layer: "Same" } RULE }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "y" top: "loss" }
"""
SOLVER = """
net: "net.prototxt" base_lr: 0 lr_policy: "fixed" max_iter: 1 test_iter: 1 test_interval: 1
test_initialization: false snapshot_prefix: "s"
"""
RULES = {"any": "", "train": "include { phase: TRAIN }", "test": "exclude { phase: TRAIN }"}
RUNS = {
    "train": ["train", "solver.prototxt"],
    "test": ["test", "--model", "net.prototxt", "--weights", "w.caffemodel", "--iterations", "1"],
    "time": ["time", "--model", "net.prototxt", "--iterations", "1"],
    "export": ["export", "--model", "net.prototxt", "--weights", "w.caffemodel", "--output", "net.onnx"],
    "summary": ["summary", "--model", "net.prototxt"],
    "extract-features": ["extract-features", "w.caffemodel", "net.prototxt", "ip", "features", "1", "lmdb"],
}
FORBIDDEN = (
    "layer 'same' (Python): it makes this process import and run the module 'strange_code', which "
    "--no-python-layers or IMAE_NO_PYTHON_LAYERS forbids; read that code before you allow it"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The net's .caffemodel."""
    path = tmp_path_factory.mktemp("weights") / "w.caffemodel"
    save_caffemodel(Net(parse_net(NET.replace("RULE", "exclude { }"))), path)
    return path.read_bytes()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bytes) -> Iterator[Path]:
    """A folder with a stranger's solver, weights and code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("solver.prototxt").write_text(SOLVER)
    Path("w.caffemodel").write_bytes(weights)
    Path("strange_code.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("strange_code", None)


def write_net(rule: str) -> None:
    Path("net.prototxt").write_text(NET.replace("RULE", rule))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("command", RUNS)
def test_each_command_that_builds_a_net_refuses_it(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, rule: str
) -> None:
    """Also a layer that this command would not build."""
    write_net(RULES[rule])
    before = {path.name for path in here.iterdir()}
    capsys.readouterr()
    assert main([*RUNS[command], "--no-python-layers"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"imae: {FORBIDDEN}"
    assert {path.name for path in here.iterdir()} == before
    assert "strange_code" not in sys.modules
    assert VARIABLE not in os.environ


@pytest.mark.parametrize("command", RUNS)
def test_otherwise_it_is_said_before_the_code_runs(
    here: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    write_net("")
    assert main(RUNS[command]) == (2 if command == "export" else 0)  # it has no ONNX form
    said = capsys.readouterr().err
    warning = (
        "layer 'same': the prototxt makes this process import and run code: module strange_code, "
        f"{here}/strange_code.py\n"
    )
    assert 0 < said.index(warning) < said.index("the code runs")
    assert said.count("makes this process import") == said.count("the code runs") == 1
    assert Path("ran").exists()


def test_nets_without_such_a_layer_are_not_touched(here: Path) -> None:
    Path("net.prototxt").write_text("".join(NET.splitlines(keepends=True)[:4]) + NET.splitlines()[-1])
    for command in RUNS.values():
        assert main([*command, "--no-python-layers"]) == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_that_build_nets_have_the_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    assert ("--no-python-layers" in capsys.readouterr().out) == (
        name in (*RUNS, "retrieve", "to-caffe", "out-of-fold")
    )


def test_drawing_imports_nothing(here: Path) -> None:
    pytest.importorskip("pydot")
    write_net("")
    assert main(["draw-net", "net.prototxt", "net.dot"]) == 0
    assert not Path("ran").exists()


@pytest.mark.parametrize("value", ["1", "yes", "0", ""])
def test_scripts_have_an_environment_variable(
    here: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    write_net("")
    monkeypatch.setenv(VARIABLE, value)
    if value in ("0", ""):
        assert caffe.Net("net.prototxt", caffe.TEST).blobs["same"].data.shape == (2, 4)
        return
    for build in (
        lambda: caffe.Net("net.prototxt", caffe.TEST),
        lambda: caffe.SGDSolver("solver.prototxt"),
        lambda: caffe.Classifier("net.prototxt", "w.caffemodel"),
    ):
        with pytest.raises(LayerError) as error:
            build()
        assert str(error.value) == FORBIDDEN
    assert not Path("ran").exists()


def test_nobody_who_builds_gets_around_it(here: Path) -> None:
    """A net, a layer alone, in a thread, in a process that is started; afterwards it is as it was."""
    write_net("")
    net = read_net("net.prototxt")
    layer = LayerParameter()
    layer.CopyFrom(net.layer[2])
    layer.phase = TEST
    script = (
        "from imae.prototxt import TEST, filter_net, read_net; filter_net(read_net('net.prototxt'), TEST)"
    )
    with no_python_layers():
        for build in (lambda: Net(net), lambda: layer_class("Python")(layer)):
            with pytest.raises(LayerError, match="forbids"):
                build()
            with ThreadPoolExecutor(1) as executor, pytest.raises(LayerError, match="forbids"):
                executor.submit(build).result()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode != 0 and FORBIDDEN in done.stderr
    assert not Path("ran").exists() and VARIABLE not in os.environ
    Net(net)
    assert Path("ran").exists()


def test_the_setting_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    with pytest.raises(ImaeError), no_python_layers():
        assert os.environ[VARIABLE] == "1"
        raise ImaeError("what a command may raise")
    assert os.environ[VARIABLE] == "0"


def test_the_parameter_alone_is_refused_too() -> None:
    with no_python_layers(), pytest.raises(LayerError, match=r"layer 'r' \(Other\): .* the module 'm'"):
        Net(parse_net('layer { name: "r" type: "Other" python_param { module: "m" layer: "L" } }'))
    assert parse_text("", LayerParameter, "nothing").type == ""


@pytest.mark.parametrize("module", [".x", "", "a..b", "a.", r"a\000b", "no such", "no/such", "1"])
def test_what_is_no_modules_name(module: str) -> None:
    text = f'layer {{ name: "p" type: "Python" top: "p" python_param {{ module: "{module}" layer: "L" }} }}'
    with pytest.raises(LayerError, match=r"layer 'p' \(Python\)"):
        Net(parse_net(text))


def test_a_net_alone_brings_pycaffe_for_its_python_layers(here: Path) -> None:
    """No script imported imae.pycaffe; a net without such layers does not import it either."""
    write_net("")
    script = (
        "import sys; from imae.net.net import Net; from imae.prototxt import parse_net, read_net\n"
        "Net(parse_net('')); print('imae.pycaffe' in sys.modules)\n"
        "Net(read_net('net.prototxt')); print(sys.modules['caffe'] is sys.modules['imae.pycaffe'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
