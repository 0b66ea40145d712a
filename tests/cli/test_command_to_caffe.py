"""The command to-caffe, and that the list of commands needs no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import imae
from imae.cli.main import main

NET = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc" inner_product_param { num_output: 2 } }
"""


def test_weights_by_the_names_of_their_layers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.prototxt").write_text(NET)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2))
    torch.save(model.state_dict(), "w.pt")
    Path("map.txt").write_text("0 fc  # the only layer\n")
    command = ["to-caffe", "--model", "net.prototxt", "--weights", "w.pt", "--output", "w.caffemodel"]
    assert main(command) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "imae: w.pt: it has nothing for fc.weight, fc.bias (2 of the net's 2 blobs), and no blob has the "
        "name of 0.weight, 0.bias; did you mean fc.weight?; say by a mapping (--map) which tensor becomes "
        "which blob"
    )
    assert main([*command, "--map", "map.txt"]) == 0
    assert capsys.readouterr().out.startswith("wrote w.caffemodel: 1 layers, 2 blobs, 8 values\n")
    x = torch.ones(1, 3)
    assert torch.allclose(imae.load("net.prototxt", "w.caffemodel")(x), model(x))


def test_its_help_shows_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["to_caffe", "--help"])
    text = capsys.readouterr().out
    for flag in ("--model", "--weights", "--output", "--map", "--reference", "--input-shape", "--stage"):
        assert flag in text


def test_the_list_of_commands_needs_no_torch() -> None:
    program = (
        "import sys; from imae.cli.main import main; main(['--help']); "
        "print(*{'torch', 'onnx', 'safetensors'} & set(sys.modules), 'loaded')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "to-caffe" in output and output.splitlines()[-1] == "loaded"
