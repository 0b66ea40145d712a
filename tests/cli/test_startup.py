"""What a training imports before its first iteration: nothing that it does not use and that takes long."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from imae.files.errors import LayerError
from imae.layers.registry import layer_class, layer_types

PROGRAM = """
import sys
import imae.cli.main, imae.cli.command_train, imae.train.solver
from imae.net.net import Net
from imae.prototxt.models.resnet import resnet
from fed_nets import fed, unfilled
Net(unfilled(fed(resnet(20, loss="IMAELoss"), 2, 3, 32, 32)))
print(*sys.modules)
"""
# Libraries of other commands, torch's compiler, and layers of types that the net does not have.
UNUSED = (
    "onnx", "onnxruntime", "lmdb", "h5py", "cv2", "matplotlib", "sympy", "torch._dynamo", "torch._inductor",
    "imae.layers.recurrent.lstm", "imae.layers.data.window_data", "imae.layers.utility.python",
)  # fmt: skip


def output(program: str, *arguments: str) -> list[str]:
    """The words that a Python of its own prints."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()


def test_a_training_imports_what_its_net_needs() -> None:
    loaded = set(output(PROGRAM))
    assert "imae.layers.plugins.imae_loss" in loaded
    assert not loaded.intersection(UNUSED)


def test_types_are_found_before_all_modules_are_loaded() -> None:
    names = ["SoftmaxWithLoss", "HDF5Data", "IMAELoss"]
    program = "import sys; from imae.layers.registry import layer_class as find; names = sys.argv[1:]; "
    program += "print(*(find(name).__name__ for name in names), 'imae.layers.recurrent.lstm' in sys.modules)"
    assert output(program, *names) == [*names, "False"]


def test_an_unknown_type_lists_those_of_all_modules() -> None:
    with pytest.raises(LayerError, match="Unknown layer type: Sigmoids; did you mean 'Sigmoid'") as caught:
        layer_class("Sigmoids")
    for name in layer_types():
        assert name in str(caught.value)


def test_no_help_waits_for_torch() -> None:
    """That of no command, in one process; the completion has all options and needs none either."""
    program = "import contextlib, io, sys; from imae.cli.main import COMMANDS, main, make_parser\n"
    program += "for name in COMMANDS: assert make_parser(name).format_help()\n"
    program += "with contextlib.redirect_stdout(io.StringIO()): main(['completion', 'bash'])\n"
    assert "torch" not in output(program + "print(*sys.modules)")
