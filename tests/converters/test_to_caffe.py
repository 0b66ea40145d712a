"""Weights trained in PyTorch as a caffemodel: written only where its net computes what they compute."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import tolerance
from torch import Tensor, nn

import imae
import imae.pycaffe as caffe
from imae.cli.main import main
from imae.converters.to_caffe import read_state, to_caffe
from imae.files.errors import CaffemodelError
from imae.prototxt.text import parse_net

NET = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 12 dim: 12 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 bias_term: false } }
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" }
layer { name: "scale1" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
        convolution_param { num_output: 5 kernel_size: 3 } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "fc" type: "InnerProduct" bottom: "conv2" top: "fc" inner_product_param { num_output: 3 } }
"""
MAPPING = """
features.0   conv1            # a whole module
features.1   bn1 scale1       # its weight and bias are the Scale's
features.4.weight  conv2.weight
features.4.bias    conv2.bias
classifier   fc
"""
KEYS = ["conv1.weight", "bn1.mean", "bn1.variance", "bn1.scale_factor", "scale1.weight", "scale1.bias",
        "conv2.weight", "conv2.bias", "fc.weight", "fc.bias"]  # fmt: skip


class Cnn(nn.Module):
    """As a PyTorch user writes it."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4, eps=eps), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(4, 5, 3), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Linear(80, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


@pytest.fixture
def trained(here: Path) -> Cnn:
    """A few steps of training; NET and MAPPING in files."""
    torch.manual_seed(1)
    model = Cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, labels = torch.randn(24, 3, 12, 12) + 0.5, torch.arange(24) % 3
    for _ in range(8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    Path("net.prototxt").write_text(NET)
    Path("map.txt").write_text(MAPPING)
    return model.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(7))


def assert_near(got: object, expected: Tensor) -> None:
    """To 1e-5 of the largest value."""
    limits = tolerance("onnx")
    np.testing.assert_allclose(got, expected, rtol=0, atol=limits.atol * float(expected.abs().max()))


def ours(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with the keys of imae.load."""
    to_caffe(parse_net(NET), model.state_dict(), "own.caffemodel", mapping=MAPPING)
    return dict(imae.load("net.prototxt", "own.caffemodel").state_dict())


def test_a_cnn_trained_in_pytorch_runs_as_a_net_of_caffe(
    trained: Cnn, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(trained.state_dict(), "w.pt")
    command = ["to-caffe", "--model", "net.prototxt", "--weights", "w.pt", "--map", "map.txt"]
    assert main([*command, "--output", "w.caffemodel"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "wrote w.caffemodel: 5 layers, 10 blobs, 553 values"
    assert lines[1].startswith("largest difference of its net from the weights' own: 0 (values up to ")
    with torch.no_grad():
        expected = trained(images())
    net = caffe.Net("net.prototxt", "w.caffemodel", caffe.TEST)
    net.blobs["data"].data[...] = images().numpy()
    assert_near(net.forward()["fc"], expected)
    assert net.params["bn1"][2].data.tolist() == [1]
    assert_near(imae.load("net.prototxt", "w.caffemodel")(images()).detach(), expected)


def test_the_users_own_model_is_compared(trained: Cnn) -> None:
    result = to_caffe(
        parse_net(NET), trained.state_dict(), "a.caffemodel", mapping=MAPPING, reference=trained
    )
    assert result.reference_difference is not None and 0 < result.reference_difference < 1e-5 * result.largest
    with pytest.raises(CaffemodelError, match="the reference is in training mode; call its eval"):
        to_caffe(parse_net(NET), trained.state_dict(), "b", mapping=MAPPING, reference=trained.train())
    trained.eval()
    other = Cnn(eps=1e-2)  # what the weights alone cannot show
    other.load_state_dict(trained.state_dict())
    with pytest.raises(
        CaffemodelError, match=r"the reference is .* away from the net's outputs, .* nothing is"
    ):
        to_caffe(parse_net(NET), trained.state_dict(), "b", mapping=MAPPING, reference=other.eval())
    with pytest.raises(CaffemodelError, match="the reference has not the net's outputs, fc"):
        to_caffe(parse_net(NET), trained.state_dict(), "b", mapping=MAPPING, reference=trained.features)
    with pytest.raises(CaffemodelError, match="the reference cannot run on the net's inputs, data"):
        to_caffe(
            parse_net(NET), trained.state_dict(), "b", mapping=MAPPING, reference=nn.Conv2d(7, 1, 1).eval()
        )
    assert not Path("b").exists()


def test_a_reference_in_onnx(trained: Cnn, capsys: pytest.CaptureFixture[str]) -> None:
    """The model that imae itself exports stands for one that torch.onnx does: it needs a package more."""
    torch.save({"epoch": 3, "state_dict": trained.state_dict()}, "w.pt")
    to_caffe(parse_net(NET), trained.state_dict(), "own.caffemodel", mapping=MAPPING)
    export = ["export", "--model", "net.prototxt", "--weights", "own.caffemodel", "--output", "m.onnx"]
    assert main(export) == 0
    command = ["to-caffe", "--model", "net.prototxt", "--weights", "w.pt", "--map", "map.txt"]
    command += ["--reference", "m.onnx", "--output", "w.caffemodel"]
    assert main(command) == 0
    assert "largest difference from m.onnx: " in capsys.readouterr().out
    with torch.no_grad():
        trained.classifier.bias += 0.01
    torch.save(trained.state_dict(), "w.pt")
    before = Path("w.caffemodel").read_bytes()
    assert main(command) == 2
    assert "m.onnx is " in capsys.readouterr().err
    assert Path("w.caffemodel").read_bytes() == before
    assert sorted(path.name for path in Path().iterdir() if "tmp" in path.name) == []


def test_the_keys_of_imae_load_need_no_mapping(trained: Cnn) -> None:
    import safetensors.torch

    state = ours(trained)
    assert list(state) == KEYS
    safetensors.torch.save_file(state, "w.safetensors")
    for weights in ("w.safetensors", state, {f"module.{key}": value for key, value in state.items()}):
        result = to_caffe(parse_net(NET), weights, "w.caffemodel")
        assert (result.layers, result.blobs, result.difference) == (5, 10, 0)
        assert Path("w.caffemodel").read_bytes() == Path("own.caffemodel").read_bytes()
    tuned = imae.load("net.prototxt", "own.caffemodel")
    with torch.no_grad():
        tuned.fc.weight.mul_(2)
    to_caffe(parse_net(NET), tuned.state_dict(), "w.caffemodel", reference=tuned.eval())
    assert torch.equal(imae.load("net.prototxt", "w.caffemodel")(images()), tuned(images()))


def test_other_types_of_numbers_and_axes_of_one(trained: Cnn) -> None:
    state = ours(trained)
    state["scale1.weight"] = state["scale1.weight"].double().view(1, 4, 1, 1)
    state["fc.weight"] = state["fc.weight"].bfloat16()
    to_caffe(parse_net(NET), state, "w.caffemodel")
    net = imae.load("net.prototxt", "w.caffemodel")
    assert torch.equal(net.fc.weight, state["fc.weight"].float())
    assert torch.equal(net.scale1.weight, state["scale1.weight"].float().flatten())


def test_constants_and_what_is_left_out(trained: Cnn) -> None:
    state = {key: value for key, value in ours(trained).items() if key != "conv2.bias"} | {
        "head": torch.ones(2)
    }
    result = to_caffe(parse_net(NET), state, "w.caffemodel", mapping="zeros conv2.bias\nhead -")
    assert result.not_used == ["head"]
    assert not imae.load("net.prototxt", "w.caffemodel").conv2.bias.any()


def test_a_blob_that_layers_share(here: Path) -> None:
    ip = 'inner_product_param { num_output: 3 bias_term: false } param { name: "w" }'
    net = parse_net(
        'layer { name: "in" type: "Input" top: "a" top: "b" input_param { shape { dim: 2 dim: 3 } } }'
        f'layer {{ name: "p" type: "InnerProduct" bottom: "a" top: "pa" {ip} }}'
        f'layer {{ name: "q" type: "InnerProduct" bottom: "b" top: "qb" {ip} }}'
    )
    weight = torch.arange(9.0).view(3, 3)
    for state in ({"p.weight": weight}, {"p.weight": weight, "q.weight": weight}):
        assert to_caffe(net, state, "w.caffemodel").largest > 0
    with pytest.raises(CaffemodelError, match=r"p\.weight and q\.weight are one blob of the net, and their"):
        to_caffe(net, {"p.weight": weight, "q.weight": weight + 1}, "no.caffemodel")


def without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {new if name == old else name: value for name, value in state.items()}


def changed(key: str, value: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {**state, key: value}


WRONG = [
    (
        without("fc.bias"),
        "",
        "it has nothing for fc.bias (1 of the net's 10 blobs); say by a mapping (--map)",
    ),
    (
        renamed("fc.bias", "fc.bais"),
        "",
        "nothing for fc.bias (1 of the net's 10 blobs), and no blob has the name of fc.bais; did you mean "
        "fc.bias?",
    ),
    (changed("extra.weight", torch.ones(1)), "", "the net has no blob for extra.weight"),
    (changed("fc.bias", torch.ones(4)), "", "fc.bias has shape (4,); the net's blob has (3,)"),
    (
        changed("fc.bias", torch.ones(3).long()),
        "",
        "fc.bias must be floating-point numbers; they are torch.int64",
    ),
    (changed("fc.bias", torch.full((3,), torch.nan)), "", "fc.bias holds NaN or infinity"),
    (dict, "fc.bias", "line 1 of the mapping: expected 'tensor layer.blob'"),
    (dict, "\nfc.bias fc.bais", "line 2 of the mapping: the net has no blob fc.bais; did you mean fc.bias?"),
    (dict, "fx.bias fc.bias", "line 1 of the mapping: the weights have no fx.bias; did you mean fc.bias?"),
    (dict, "fc.bias fc.bias scale1", "fc.bias is one tensor, and becomes one blob"),
    (dict, "conv1 relu1", "the net has no blob relu1.weight for conv1.weight"),
    (dict, "fc.bias fc.bias\nconv2.bias fc.bias", "line 2 of the mapping: fc.bias gets fc.bias already"),
    (dict, "fc.bias conv2.bias\nconv2.bias fc.bias", "fc.bias, which becomes conv2.bias, has shape (3,)"),
]


@pytest.mark.parametrize(("change", "mapping", "message"), WRONG, ids=range(len(WRONG)))
def test_weights_that_do_not_fit(
    trained: Cnn, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], mapping: str, message: str
) -> None:
    with pytest.raises(CaffemodelError) as caught:
        to_caffe(parse_net(NET), change(ours(trained)), "w.caffemodel", mapping=mapping)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("w.caffemodel").exists()


def test_an_lstm_of_pytorch_has_another_order_of_gates(here: Path) -> None:
    net = parse_net(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 1 dim: 3 } } }'
        'layer { name: "c" type: "Input" top: "cont" input_param { shape { dim: 2 dim: 1 } } }'
        'layer { name: "l" type: "LSTM" bottom: "x" bottom: "cont" top: "h" '
        "recurrent_param { num_output: 2 } }"
    )
    state = {"rnn.weight_ih_l0": torch.ones(8, 3), "rnn.weight_hh_l0": torch.ones(8, 2), "b": torch.ones(8)}
    mapping = "rnn.weight_ih_l0 l.W_xc\nrnn.weight_hh_l0 l.W_hc\nb l.b_c"
    with pytest.raises(
        CaffemodelError, match="whose gates have the order i, f, g, o, and Caffe's i, f, o, g"
    ):
        to_caffe(net, state, "w.caffemodel", mapping=mapping)


class Evil:
    def __reduce__(self) -> tuple[Callable[[int], object], tuple[int]]:
        return sys.exit, (3,)


def pickled(value: object) -> bytes:
    return pickle.dumps(value)


def saved(value: object) -> bytes:
    torch.save(value, "saved")
    return Path("saved").read_bytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "neither safetensors nor a state dict"),
        (lambda: b"hello", "neither safetensors nor a state dict"),
        (
            lambda: pickled(Evil()),
            "neither safetensors nor a state dict that can be read without running code",
        ),
        (
            lambda: saved({"a": Evil()}),
            "neither safetensors nor a state dict that can be read without running",
        ),
        (lambda: saved(nn.Linear(2, 2)), "neither safetensors nor a state dict that can be read without"),
        (lambda: saved([torch.ones(2)]), "it holds no state dict, tensors by their names"),
        (lambda: saved({"model": {"a": 1}}), "it holds no state dict, tensors by their names"),
        (lambda: saved({"a": torch.ones(9)})[:-30], "neither safetensors nor a state dict"),
        (lambda: (9).to_bytes(8, "little") + b'{"a": 1}x', "not a safetensors file"),
        (lambda: NET.encode(), "neither safetensors nor a file of torch.save; it is a net's prototxt"),
    ],
)
def test_files_that_are_no_weights(here: Path, make: Callable[[], bytes], message: str) -> None:
    Path("w.pt").write_bytes(make())
    with pytest.raises(CaffemodelError) as caught:
        read_state("w.pt")
    assert message in str(caught.value) and "w.pt" in str(caught.value)


def test_paths_that_cannot_be(trained: Cnn, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(ours(trained), "w.pt")
    base = ["to-caffe", "--model", "net.prototxt", "--weights"]
    for words, message in (
        (["no.pt", "--output", "w"], "cannot read 'no.pt': No such file or directory"),
        (["w.pt", "--output", "w.h5"], "only binary caffemodels are written"),
        (["w.pt", "--output", "no/w"], "there is no folder"),
        (["w.pt", "--output", "w", "--map", "no"], "cannot read 'no': No such file"),
        (["w.pt", "--output", "w", "--map", "own.caffemodel"], "a mapping is UTF-8 text; this file is none"),
        (["w.pt", "--output", "w", "--reference", "no.onnx"], "no.onnx: no such file"),
    ):
        assert main(base + words) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error, error
    assert not Path("w").exists()
