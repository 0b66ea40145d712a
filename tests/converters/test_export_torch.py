"""imae export --to safetensors and pt2: what PyTorch reads is the net."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from test_onnx import NET, SHAPE

import imae
from imae.cli.main import main
from imae.converters.export_torch import METADATA_FILE, export_torch
from imae.converters.preprocessing import from_metadata
from imae.converters.torch_module import CaffeModule, layer_name
from imae.files.errors import ExportError
from imae.net.weights import save_caffemodel
from imae.prototxt import NetParameter
from imae.prototxt.text import parse_net, read_net, to_text

COMMAND = ["export", "--model", "net.prototxt", "--weights", "w.caffemodel", "--input-shape", "3,11,9"]
IMAGES = "images: resized to 11x9 (the input's size), BGR 0..255, minus 100, times 0.02"


@pytest.fixture
def module(here: Path) -> CaffeModule:
    """NET with statistics as after some training, also in files."""
    Path("net.prototxt").write_text(NET)
    net = imae.load("net.prototxt", input_shape=SHAPE, random_seed=5)
    with torch.no_grad():
        for blob, value in zip(net.bn.parameters(), (0.1, 2, 0.5), strict=True):
            blob.fill_(value)
    save_caffemodel(net.caffe_net, "w.caffemodel")
    return net


def sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def check_metadata(metadata: dict[str, str]) -> None:
    assert metadata["imae.version"] == version("imae") and metadata["imae.net"] == "mixture"
    assert metadata["imae.source.model"] == "net.prototxt"
    assert metadata["imae.source.model_sha256"] == sha256("net.prototxt")
    assert metadata["imae.source.weights_sha256"] == sha256("w.caffemodel")
    prepared = from_metadata(metadata, "the file")
    assert prepared is not None and list(prepared.transform.mean_value) == [100]
    assert metadata["imae.input.scale"] == "0.02"


def test_safetensors(module: CaffeModule, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, "--output", "net.safetensors"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "wrote net.safetensors: 8 tensors, 371 values",
        IMAGES,
        "read again: the same keys, shapes and bits as the net's",
    ]
    state = safetensors.torch.load_file("net.safetensors")
    fresh = imae.load("net.prototxt", input_shape=SHAPE, random_seed=6)
    fresh.load_state_dict(state)
    x = torch.randn(2, *SHAPE)
    assert torch.equal(fresh(x), module(x))
    with safetensors.safe_open("net.safetensors", "pt") as file:
        check_metadata(file.metadata())


@pytest.mark.parametrize("fixed", [False, True])
def test_pt2(module: CaffeModule, capsys: pytest.CaptureFixture[str], fixed: bool) -> None:
    options = ["--fixed-batch"] if fixed else []
    assert main([*COMMAND, "--output", "net.out", "--to", "pt2", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    sizes = "batch sizes 1" if fixed else "batch sizes 1, 3"
    assert lines[0] == "wrote net.out: 8 tensors, 371 values"
    assert lines[1] == IMAGES
    assert lines[2].startswith(f"largest difference from the net, {sizes}: 0 (values up to ")
    extra = {METADATA_FILE: ""}
    program = torch.export.load("net.out", extra_files=extra)
    x = torch.randn(1 if fixed else 5, *SHAPE)
    assert torch.equal(program.module()(x), module(x))
    assert list(program.state_dict) == list(module.state_dict())
    check_metadata(json.loads(extra[METADATA_FILE]))
    # Paths of the machine that exported it are none of the user's.
    assert str(Path(__file__).parents[2]).encode() not in Path("net.out").read_bytes()


def test_several_outputs_and_a_shared_blob(here: Path) -> None:
    ip = 'inner_product_param { num_output: 3 weight_filler { type: "xavier" } } param { name: "w" }'
    param = parse_net(
        'layer { name: "in" type: "Input" top: "a" top: "b" input_param { shape { dim: 2 dim: 3 } } }'
        f'layer {{ name: "p" type: "InnerProduct" bottom: "a" top: "pa" {ip} }}'
        f'layer {{ name: "q/1" type: "InnerProduct" bottom: "b" top: "qb" {ip} }}'
    )
    export_torch(param, None, "net.pt2", "pt2")
    a, b = torch.ones(4, 3), torch.zeros(4, 3)
    result = torch.export.load("net.pt2").module()(a, b)
    assert list(result) == ["pa", "qb"] and result["pa"].any() and not result["qb"].any()
    written = export_torch(param, None, "net.safetensors", "safetensors")
    assert (written.tensors, written.values) == (4, 15)
    state = safetensors.torch.load_file("net.safetensors")
    assert torch.equal(state["p.weight"], state["q/1.weight"])
    assert sorted(state) == ["p.bias", "p.weight", "q/1.bias", "q/1.weight"]


@pytest.mark.parametrize(
    "name",
    ["a\nb", "a;b", "a,b", "a(b", 'a"b', "a\\", "None", "\0", "é", 'training") or open("run'],
)
def test_the_name_of_a_layer_is_no_code(here: Path, name: str) -> None:
    """torch.export writes the names of modules into Python code, and runs it."""
    net = NetParameter(name="n")
    net.layer.add(name="data", type="Input", top=["data"]).input_param.shape.add().dim.extend([1, 3, 4, 4])
    layer = net.layer.add(name=name, type="Convolution", bottom=["data"], top=[name])
    layer.convolution_param.num_output = 2
    layer.convolution_param.kernel_size.append(1)
    layer.convolution_param.weight_filler.type = "msra"
    Path("net.prototxt").write_text(to_text(net))
    assert main(["export", "--model", "net.prototxt", "--output", "net.pt2"]) == 0
    assert sorted(path.name for path in here.iterdir()) == ["net.prototxt", "net.pt2"]
    keys = [key for key, _ in torch.export.load("net.pt2").module().named_parameters()]
    assert [layer_name(key.rpartition(".")[0]) for key in keys] == [name, name]


def test_a_net_for_one_batch_size(here: Path) -> None:
    param = parse_net(
        'name: "n" layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 6 } } }'
        'layer { name: "r" type: "Reshape" bottom: "x" top: "y" reshape_param { shape { dim: 3 dim: 4 } } }'
    )
    with pytest.raises(ExportError, match="if the net is for one batch size only, use --fixed-batch"):
        export_torch(param, None, "net.pt2", "pt2")
    assert not Path("net.pt2").exists()
    assert export_torch(param, None, "net.pt2", "pt2", dynamic_batch=False).batch_sizes == (2,)


def test_a_net_that_reads_its_own_values(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shapes = "shape { dim: 1 dim: 8 } shape { dim: 1 dim: 6 } shape { dim: 1 dim: 2 dim: 8 }"
    param = parse_net(
        f'layer {{ name: "in" type: "Input" top: "a" top: "b" top: "c" input_param {{ {shapes} }} }}'
        'layer { name: "d" type: "DetectionOutput" bottom: "a" bottom: "b" bottom: "c" top: "d" '
        "detection_output_param { num_classes: 3 nms_param { nms_threshold: 0.45 } } }"
    )
    with pytest.raises(ExportError, match=r"torch\.export cannot trace net '': Could not extract"):
        export_torch(param, None, "net.pt2", "pt2", dynamic_batch=False)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "safetensors", "--fold"], "--fold is for ONNX models; leave it out with --to safetensors"),
        (["--to", "safetensors", "--fixed-batch"], "--fixed-batch is for ONNX models"),
        (["--to", "pt2", "--opset", "15"], "--opset is for ONNX models; leave it out with --to pt2"),
        (["--to", "torch"], "invalid choice: 'torch'"),
    ],
)
def test_options_that_do_not_belong(
    module: CaffeModule, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMMAND, "--output", "net.out", *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("net.out").exists()


def test_weights_that_are_not_finite_are_refused(module: CaffeModule) -> None:
    with torch.no_grad():
        module.fc.weight[0, 0] = np.inf
    save_caffemodel(module.caffe_net, "w.caffemodel")
    for to in ("safetensors", "pt2"):
        with pytest.raises(ExportError, match=r"fc\.weight holds NaN or infinity; train it again"):
            export_torch(read_net("net.prototxt"), "w.caffemodel", "net.out", to, input_shape=SHAPE)  # type: ignore[arg-type]
    assert not Path("net.out").exists()
