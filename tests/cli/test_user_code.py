"""An error inside the code of a plugin or of a Python layer is one line; one of our own is a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """
import torch
from imae.layers.layer import DataLayer, Layer
from imae.layers.plugins import designed_loss
from imae.layers.registry import register_layer
from imae.losses.designed import DesignedLoss

class Same(Layer):
    num_bottoms = num_tops = 1
    def forward(self, x):
        return 1 * x

@register_layer("Init")
class Init(Same):
    def __init__(self, param):
        self.scale = param.no_such_param

@register_layer("Setup")
class Setup(Same):
    def setup(self, bottom_shapes):
        self.add_blob((bottom_shapes[0][7],), None)

@register_layer("Filler")
class Filler(Same):
    def setup(self, bottom_shapes):
        self.add_blob((3,), None)

@register_layer("TopShapes")
class TopShapes(Same):
    def top_shapes(self, bottom_shapes):
        return [bottom_shapes[1]]

@register_layer("NoShapes")
class NoShapes(Same):
    def top_shapes(self, bottom_shapes):
        print("no return")

@register_layer("Forward")
class Forward(Same):
    def forward(self, x):
        return self.half(x)
    def half(self, x):
        return x @ x

@register_layer("OtherShape")
class OtherShape(Same):
    def top_shapes(self, bottom_shapes):
        return [(4, 3)]

@register_layer("NoTensor")
class NoTensor(Same):
    def forward(self, x):
        x + 1

@register_layer("Double")
class Double(Same):
    def forward(self, x):
        return x.double()

@register_layer("Whole")
class Whole(Same):
    def forward(self, x):
        return x.long()

@register_layer("TwoTops")
class TwoTops(Same):
    def forward(self, x):
        return x, x

@register_layer("Batch")
class Batch(DataLayer):
    num_tops = 1
    def top_shapes(self, bottom_shapes):
        return [(4, 5)]
    def next_batch(self):
        return (torch.zeros(5, 4),)

class Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x
    @staticmethod
    def backward(ctx, diff):
        return diff * ctx.scale

@register_layer("Backward")
class Backward(Same):
    def forward(self, x):
        return Gradient.apply(x.clone()) * 1

class Weights(DesignedLoss):
    settings = ()
    def weight(self, p, rest):
        raise KeyError

@register_layer("Loss")
class Loss(designed_loss.DesignedLoss):
    field = "loss_param"
    def make_loss(self):
        return Weights()

@register_layer("NoOnnx")
class NoOnnx(Same):
    def to_onnx(self, graph, bottoms, tops):
        graph.node("Add", [bottoms[0], bottoms[1]], tops)
"""
MODULE = """
import caffe
class Same(caffe.Layer):
    def setup(self, bottom, top): pass
    def reshape(self, bottom, top): top[0].reshape(*bottom[0].shape)
    def forward(self, bottom, top): top[0].data[...] = bottom[0].data
    def backward(self, top, propagate_down, bottom): bottom[0].diff[...] = top[0].diff
class Init(Same):
    def __init__(self, param): self.number = int("ten")
class Setup(Same):
    def setup(self, bottom, top): self.number = int(self.param_str)
class Reshape(Same):
    def reshape(self, bottom, top): top[1].reshape(1)
class Forward(Same):
    def forward(self, bottom, top): top[0].data[...] = bottom[0].data[:, 1:]
class Backward(Same):
    def backward(self, top, propagate_down, bottom): bottom[1].diff[...] = 0
"""
DATA = """layer { name: "in" type: "DummyData" top: "x" top: "y"
dummy_data_param { shape { dim: [4, 5] } shape { dim: 4 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 5 } }
"""
LAYER = 'layer { name: "mine" type: "TYPE" bottom: "ip" top: "z" }\n'
PYTHON = LAYER.replace('"TYPE"', '"Python" python_param { module: "MODULE" layer: "CLASS" }')
LOSS = """layer { name: "next" type: "InnerProduct" bottom: "z" top: "w"
inner_product_param { num_output: 5 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "w" bottom: "y" top: "loss" }
"""
BATCH = 'layer { name: "mine" type: "Batch" top: "b" }\n'
OUR_LAYERS = 'layer { name: "sum" type: "Reduction" bottom: "ip" top: "z" }\n'
DESIGNED = 'layer { name: "mine" type: "Loss" bottom: "ip" bottom: "y" top: "loss" }\n'
TIME = ["time", "--model", "net.prototxt", "--iterations", "1"]
EXPORT = ["export", "--model", "net.prototxt", "--output", "net.onnx"]
HOW = "; mend it there (IMAE_TRACEBACK=1 in the environment prints the traceback)"
XYZ = "of the plugin imae-xyz"


def at(code: str) -> str:
    """Where this code of the plugin is."""
    number = PLUGIN[: PLUGIN.index(code)].count("\n") + 1
    return f"line {number} of imae_xyz/layers.py, raised"


# Each case: the command, the net, and what the line on stderr is made of, in order.
MINE = {
    name: f"imae: layer 'mine' ({name}): "
    for name in (
        "Init",
        "Setup",
        "Filler",
        "TopShapes",
        "NoShapes",
        "Forward",
        "OtherShape",
        "NoTensor",
        "Double",
        "Whole",
        "TwoTops",
        "Backward",
        "NoOnnx",
    )
}
CODE = {
    "Init": ("__init__", at("param.no_such_param"), "AttributeError: "),
    "Setup": ("setup", at("bottom_shapes[0][7]"), "IndexError: tuple index out of range"),
    "Filler": ("setup", at("self.add_blob((3,), None)"), "AttributeError: "),
    "TopShapes": ("top_shapes", at("bottom_shapes[1]"), "IndexError: list index out of range"),
    "Forward": ("forward", at("x @ x"), "RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
    "Backward": ("backward", at("ctx.scale"), "AttributeError: "),
    "NoOnnx": ("to_onnx", at("bottoms[1]"), "IndexError: list index out of range"),
}
SHAPES = {
    "NoShapes": (f"top_shapes {XYZ} must return a list with the shape of each top", "; got None"),
    "OtherShape": (
        f"forward {XYZ} returned a top 0 of shape 4 5 (20), and top_shapes states 4 3 (12); mend one",
    ),
    "NoTensor": (f"forward {XYZ} must return a tensor, or a tuple of them; got NoneType",),
    "Double": (f"forward {XYZ} returned a top 0 of torch.float64; the bottoms are of torch.float32",),
    "Whole": (f"forward {XYZ} returned a top 0 of torch.int64 on cpu; need floating point on cpu",),
    "TwoTops": (f"forward {XYZ} returned 2 tops; top_shapes has shapes of 1",),
}
CASES = {
    **{
        name: (
            EXPORT if name == "NoOnnx" else TIME,
            LAYER.replace("TYPE", name) + LOSS,
            (MINE[name], *words[:1], f" {XYZ}, ", *words[1:], HOW),
        )
        for name, words in CODE.items()
    },
    **{
        name: (TIME, LAYER.replace("TYPE", name) + LOSS, (MINE[name], *words))
        for name, words in SHAPES.items()
    },
    "Batch": (TIME, BATCH, ("imae: layer 'mine' (Batch): ", "next_batch", XYZ, "5 4 (20)", "4 5 (20)")),
    "Loss": (TIME, DESIGNED, ("imae: layer 'mine' (Loss): ", f"weight {XYZ}, ", "raised KeyError", HOW)),
    **{
        f"Python {name}": (
            TIME,
            PYTHON.replace("MODULE", "mine").replace("CLASS", name) + LOSS,
            (
                "imae: layer 'mine' (Python): ",
                f"{method} of mine.{name}, line {line} of ",
                f"mine.py, raised {error}",
                HOW,
            ),
        )
        for name, method, line, error in [
            ("Init", "__init__", 9, "ValueError: invalid literal"),
            ("Setup", "setup", 11, "ValueError: invalid literal"),
            ("Reshape", "reshape", 13, "IndexError: "),
            ("Forward", "forward", 15, "ValueError: could not broadcast"),
            ("Backward", "backward", 17, "IndexError: "),
        ]
    },
    **{
        f"Python {module}": (
            TIME,
            PYTHON.replace("MODULE", module).replace("CLASS", "Same") + LOSS,
            ("imae: layer 'mine' (Python): ", f"the import of {module}", error, HOW),
        )
        for module, error in [
            ("broken", "line 1 of "),
            ("unfinished", "SyntaxError: "),
            ("needs", "'no_such'"),
        ]
    },
}
MODULES = {
    "mine": MODULE,
    "broken": "print(1 / 0)\n",
    "unfinished": "class Same(:\n",
    "needs": "import no_such\n",
}
PROGRAM = """
import io, json, os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from imae.cli.main import main
from imae.layers.utility.reduction import Reduction
results = {}
def run(name, command, net):
    Path("net.prototxt").write_text(net)
    with redirect_stderr(io.StringIO()) as err, redirect_stdout(io.StringIO()):
        try:
            status = main(command)
        except Exception as error:
            status = f"{type(error).__name__}: {error}"
    text = err.getvalue()
    results[name] = status, text if name == "traceback" else text.splitlines()[-1]
cases = json.loads(Path("cases.json").read_text())
for name, (command, net) in cases.items():
    run(name, command, net)
os.environ["IMAE_TRACEBACK"] = "1"
run("traceback", *cases["Forward"])
def fail(*ignored):
    return [][0]
Reduction.forward = fail
run("ours", ["time", "--model", "net.prototxt", "--iterations", "1"], OUR_NET)
print(json.dumps(results))
"""


def install(folder: Path) -> None:
    """The plugin imae-xyz as pip would leave it."""
    files = {
        "imae_xyz/__init__.py": "",
        "imae_xyz/layers.py": PLUGIN,
        "imae_xyz-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: imae-xyz\nVersion: 1\n",
        "imae_xyz-1.dist-info/entry_points.txt": "[imae.layers]\nxyz = imae_xyz.layers\n",
    }
    for file, text in files.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int | str, str]]:
    """For each case: the exit status, or the error that `main` has let through, and the last line."""
    folder = tmp_path_factory.mktemp("user_code")
    install(folder)
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    cases = {name: (command, DATA + net) for name, (command, net, _) in CASES.items()}
    (folder / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("OUR_NET", repr(DATA + OUR_LAYERS))],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int | str, str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("case", CASES)
def test_one_line_says_who_and_where(results: dict[str, tuple[int | str, str]], case: str) -> None:
    status, line = results[case]
    assert status == 2, line
    place = 0
    for words in CASES[case][2]:
        place = line.find(words, place)
        assert place >= 0, (words, line)


def test_an_error_of_our_own_is_left_as_it_is(results: dict[str, tuple[int | str, str]]) -> None:
    assert results["ours"][0] == "IndexError: list index out of range"


def test_the_traceback_is_printed_on_request(results: dict[str, tuple[int | str, str]]) -> None:
    status, text = results["traceback"]
    assert status == 2
    assert "in half\n    return x @ x" in text
    assert text.splitlines()[-1].startswith(MINE["Forward"])


def test_doctor_goes_on_after_it(tmp_path: Path) -> None:
    install(tmp_path / "site")
    project = tmp_path / "project"
    project.mkdir()
    for name in ("Setup", "NoOnnx", "Init"):
        (project / f"{name}.prototxt").write_text(DATA + LAYER.replace("TYPE", name) + LOSS)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-m", "imae.cli.main", "doctor", str(project)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    text = " ".join(done.stdout.split())
    assert f"setup {XYZ}" in text and f"to_onnx {XYZ}" in text and f"__init__ {XYZ}" in text, text
