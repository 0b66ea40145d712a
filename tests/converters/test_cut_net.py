"""`imae export --until BLOB`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tolerances import tolerance

from imae.cli.main import main
from imae.converters.deploy import deploy_net
from imae.converters.export_onnx import export_net
from imae.files.errors import ExportError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import Layer
from imae.layers.registry import layer_class
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt.text import parse_net

FILLER = 'weight_filler { type: "gaussian" std: 0.5 }'
NET = f"""
name: "two heads"
layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: 1 dim: 3 dim: 6 dim: 5 }} }} }}
layer {{ name: "other" type: "Input" top: "other" }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param {{ num_output: 4 kernel_size: 3 {FILLER} }} }}
layer {{ name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }}
layer {{ name: "relu" type: "ReLU" bottom: "bn" top: "bn" }}
layer {{ name: "slice" type: "Slice" bottom: "bn" top: "left" top: "right" }}
layer {{ name: "fc" type: "InnerProduct" bottom: "left" top: "fc"
        inner_product_param {{ num_output: 2 {FILLER} }} }}
layer {{ name: "strange" type: "NobodyKnows" bottom: "right" bottom: "other" top: "strange" }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "other" top: "loss" }}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    return tmp_path


def export(*arguments: str) -> int:
    return main(["export", "--model", "net.prototxt", "--output", "x.onnx", *arguments])


@pytest.mark.parametrize("fold", [[], ["--fold"]], ids=["plain", "folded"])
def test_only_what_the_blobs_need_stays(here: Path, fold: list[str]) -> None:
    """An unknown type and an input without a shape below the cut do no harm."""
    assert export("--until", "left", "--until", "conv", *fold) == 0
    graph = onnx.load("x.onnx").graph
    assert [value.name for value in graph.input] == ["data"]
    assert [value.name for value in graph.output] == ["left", "conv"]
    assert {node.op_type for node in graph.node} <= {
        "Conv",
        "BatchNormalization",
        "Relu",
        "Split",
        "Identity",
    }
    cut = parse_net(NET)
    del cut.layer[6:], cut.layer[1]
    net = Net(deploy_net(cut), Run(CaffeRandom(0)))
    x = np.random.default_rng(1).standard_normal((1, 3, 6, 5)).astype(np.float32)
    want = net({"data": torch.from_numpy(x)}, keep=["conv", "left"])
    got = onnxruntime.InferenceSession("x.onnx").run(["left", "conv"], {"data": x})
    rtol, atol, _ = tolerance("onnx")
    for value, name in zip(got, ("left", "conv"), strict=True):
        np.testing.assert_allclose(value, want[name].detach().numpy(), rtol=rtol, atol=atol)


def test_in_place_layers_belong_to_their_blob(here: Path) -> None:
    assert export("--until", "bn") == 0
    graph = onnx.load("x.onnx").graph
    assert [value.name for value in graph.output] == ["bn"] and "Relu" in {n.op_type for n in graph.node}
    x = np.random.default_rng(1).standard_normal((2, 3, 6, 5)).astype(np.float32)
    (value,) = onnxruntime.InferenceSession("x.onnx").run(["bn"], {"data": x})
    assert value.shape == (2, 4, 4, 3) and value.min() == 0


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        ("cnov", "--until: net 'two heads' has no blob 'cnov' in phase TEST; did you mean 'conv'?"),
        ("data", "--until: blob 'data' is an input of the net; name one that a layer computes"),
        ("strange", "Unknown layer type: NobodyKnows"),
    ],
)
def test_blobs_that_cannot_be_outputs(
    here: Path, capsys: pytest.CaptureFixture[str], blob: str, message: str
) -> None:
    assert export("--until", blob, "--input-shape", "other:1,2") == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("x.onnx").exists()


def test_a_blob_that_needs_labels(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("--until", "loss", "--until", "fc") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "net 'two heads' has no blob 'loss' that is computed from its inputs alone" in last


def test_a_layer_without_an_onnx_form_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blob is named as in the prototxt, not as that of an automatic split; inputs are no way out."""
    text = NET.replace("NobodyKnows", "Eltwise").replace(
        'bottom: "other" top: "strange"', 'bottom: "left" top: "strange"'
    )
    net = Net(deploy_net(parse_net(text)), Run(CaffeRandom(0)))
    own = "type {} has no ONNX form; its class gives it one by Layer.to_onnx"
    for kind, way_out in (
        ("Eltwise", "; or cut the net before it with --until right --until left"),
        ("ReLU", "; or give its top a name of its own and cut the net before it with --until bn"),
        ("Convolution", ""),
    ):
        with monkeypatch.context() as patch, pytest.raises(ExportError) as caught:
            patch.setattr(layer_class(kind), "to_onnx", Layer.to_onnx)
            export_net(net)
        assert str(caught.value).endswith(own.format(kind) + way_out)
