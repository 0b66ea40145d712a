"""What an exported model says of itself: source, version, difference, licence, names; and the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from importlib.metadata import version
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from test_onnx_names import LENET, X

from imae.cli.main import main
from imae.converters.describe_model import class_counts, file_sha256, parameter_counts
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net.net import Net
from imae.net.weights import save_caffemodel
from imae.prototxt import TEST
from imae.prototxt.text import parse_net

EXPORT = ["export", "--model", "lenet.prototxt", "--output", "lenet.onnx"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a net, its weights, and the names of its three classes."""
    monkeypatch.chdir(tmp_path)
    Path("lenet.prototxt").write_text(LENET)
    save_caffemodel(net_of(LENET), "lenet.caffemodel")
    Path("synset_words.txt").write_text("n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n")
    return tmp_path


def net_of(text: str) -> Net:
    param = parse_net(text)
    param.state.phase = TEST
    return Net(param, Run(CaffeRandom(3)))


def metadata_of(path: str = "lenet.onnx") -> dict[str, str]:
    return {prop.key: prop.value for prop in onnx.load(path).metadata_props}


def test_a_model_says_where_it_is_from(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = project / "lenet.caffemodel"
    options = ["--weights", str(weights), "--license", "CC BY-NC 4.0", "--labels", "synset_words.txt"]
    assert main([*EXPORT, *options]) == 0
    model, metadata = onnx.load("lenet.onnx"), metadata_of()
    assert (model.producer_name, model.producer_version) == ("imae", version("imae"))
    assert model.doc_string == "Caffe's net 'LeNet', made from lenet.prototxt and lenet.caffemodel"
    printed = re.search(r"batch sizes 1, 3: (\S+) \(values up to (\S+)\)", capsys.readouterr().out)
    assert printed is not None
    measured = json.loads(metadata.pop("imae.difference"))
    assert measured == {
        "difference": float(printed[1]),
        "largest": float(printed[2]),
        "batch_sizes": [1, 3],
    }
    assert json.loads(metadata.pop("names")) == {"0": "tench, Tinca tinca", "1": "crane", "2": "crane"}
    assert metadata == {
        "imae.version": version("imae"),
        "imae.source.model": "lenet.prototxt",
        "imae.source.model_sha256": hashlib.sha256(LENET.encode()).hexdigest(),
        "imae.source.weights": "lenet.caffemodel",
        "imae.source.weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "imae.license": "CC BY-NC 4.0",
    }


def test_what_is_not_given_is_not_there(project: Path) -> None:
    assert main([*EXPORT, "--fixed-batch"]) == 0
    assert set(metadata_of()) == {
        "imae.version",
        "imae.source.model",
        "imae.source.model_sha256",
        "imae.source.from_fillers",
        "imae.difference",
    }
    assert json.loads(metadata_of()["imae.source.from_fillers"]) == ["conv1", "ip1", "ip2"]
    assert onnx.load("lenet.onnx").doc_string == "Caffe's net 'LeNet', made from lenet.prototxt"
    assert json.loads(metadata_of()["imae.difference"])["batch_sizes"] == [1]


def test_layers_that_the_weights_lack_are_named(project: Path) -> None:
    Path("lenet.prototxt").write_text(LENET.replace('"ip2" type', '"new" type'))
    assert main([*EXPORT, "--weights", "lenet.caffemodel", "--allow-missing", "--card"]) == 0
    assert metadata_of()["imae.source.from_fillers"] == '["new"]'
    words = 'No weights were given for these layers, which have their fillers\' values: `["new"]`.'
    assert words in Path("lenet.md").read_text()


def test_a_model_of_which_nothing_was_compared_has_no_difference(project: Path) -> None:
    text = f'{X} layer {{ name: "none" type: "Power" bottom: "x" top: "y" power_param {{ scale: 0 }} }}'
    Path("lenet.prototxt").write_text(text)
    assert main(EXPORT) == 0
    assert "imae.difference" not in metadata_of()
    assert onnx.load("lenet.onnx").doc_string == "A net of Caffe's, made from lenet.prototxt"


def test_preprocessing_stays(project: Path) -> None:
    assert main([*EXPORT, "--transform", "scale: 0.5"]) == 0
    assert {"imae.transform_param", "imae.input.scale", "imae.version"} < set(metadata_of())


def test_a_pipe_has_no_name(project: Path) -> None:
    """`imae export --model <(sed ... net.prototxt)`; it can be read once, and is read twice."""
    end, start = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(start, LENET.encode()), os.close(start)))
    writer.start()
    try:
        assert main(["export", "--model", f"/dev/fd/{end}", "--output", "lenet.onnx"]) == 0
    finally:
        writer.join()
        os.close(end)
    assert metadata_of()["imae.source.model"] == "pipe"
    assert metadata_of()["imae.source.model_sha256"] == hashlib.sha256(LENET.encode()).hexdigest()


def test_the_same_export_gives_the_same_bytes(project: Path) -> None:
    options = ["--weights", "lenet.caffemodel", "--labels", "synset_words.txt", "--mean", "0.5", "--card"]
    files = ("lenet.onnx", "lenet.md")
    first, second = [], []
    for contents in (first, second):
        assert main([*EXPORT, *options]) == 0
        contents += [Path(name).read_bytes() for name in files]
        for name in files:
            Path(name).unlink()
    assert first == second


# -- labels ------------------------------------------------------------------------------------------------

VALUES = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 6 dim: 1 dim: 1 } } }'


@pytest.mark.parametrize(
    ("layers", "counts"),
    [
        ('layer { name: "a" type: "ReLU" bottom: "x" top: "y" }', {"y": 6}),
        (
            'layer { name: "a" type: "ReLU" bottom: "x" top: "a" }'
            'layer { name: "d" type: "Dropout" bottom: "a" top: "y" }',
            {"y": 6},
        ),
        ('layer { name: "a" type: "ArgMax" bottom: "x" top: "y" }', {"y": 6}),
        ('layer { name: "a" type: "ArgMax" bottom: "x" top: "y" argmax_param { axis: 1 } }', {"y": 6}),
        (
            'layer { name: "r" type: "Reshape" bottom: "x" top: "r"'
            "        reshape_param { shape { dim: 0 dim: 2 dim: 3 } } }"
            'layer { name: "p" type: "Softmax" bottom: "r" top: "y" softmax_param { axis: 2 } }',
            {"y": 3},
        ),
        (
            'layer { name: "r" type: "Reshape" bottom: "x" top: "y"'
            "        reshape_param { shape { dim: 0 dim: 2 dim: 3 } } }",
            {},
        ),
        (
            'layer { name: "s" type: "Slice" bottom: "x" top: "y" top: "z" slice_param { slice_point: 1 } }',
            {"z": 5},
        ),
    ],
)
def test_the_classes_of_outputs(layers: str, counts: dict[str, int]) -> None:
    net = net_of(VALUES + layers)
    assert class_counts(net, net.outputs) == counts


def test_the_classes_of_sequences_and_boxes() -> None:
    from test_onnx_names import LSTM

    assert class_counts(net_of(LSTM), ["h"]) == {"h": 5}
    shapes = "shape { dim: 1 dim: 8 } shape { dim: 1 dim: 6 } shape { dim: 1 dim: 2 dim: 8 }"
    boxes = net_of(
        f'layer {{ name: "in" type: "Input" top: "l" top: "c" top: "p" input_param {{ {shapes} }} }}'
        'layer { name: "it" type: "DetectionOutput" bottom: "l" bottom: "c" bottom: "p" top: "found"'
        "        detection_output_param { num_classes: 3 nms_param { nms_threshold: 0.5 } } }"
    )
    assert class_counts(boxes, ["found"]) == {"found": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\n", "--labels has 2 names, but output 'prob' has 3 classes; give a name for each class"),
        ("a\nb\nc\nd\n", "--labels has 4 names, but output 'prob' has 3 classes"),
        (
            'item { name: "a" label: 3 } item { name: "b" label: 1 }',
            "--labels has 2 names, the last for label 3, but output 'prob' has 3 classes",
        ),
    ],
)
def test_labels_must_fit_the_classes(
    project: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("labels.txt").write_text(text)
    assert main([*EXPORT, "--labels", "labels.txt"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("lenet.onnx").exists()


def test_a_label_map_may_leave_the_background_out(project: Path) -> None:
    Path("labelmap.prototxt").write_text('item { name: "a" label: 1 } item { name: "b" label: 2 }')
    assert main([*EXPORT, "--labels", "labelmap.prototxt"]) == 0
    assert json.loads(metadata_of()["names"]) == {"1": "a", "2": "b"}


# -- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--license", "a\nb"], "--license must be one line of text"),
        (["--license", " BSD"], "--license must be one line of text"),
        (["--license", "x" * 1001], "--license has 1001 characters, at most 1000 fit"),
        (["--labels", "none.txt"], "cannot read the labels 'none.txt': No such file"),
        (["--card", "lenet.onnx"], "--card and --output are both 'lenet.onnx'"),
        (["--card", "no/card.md"], "cannot write 'no/card.md': there is no folder 'no'"),
        (["--card", "."], "cannot write '.': it is a folder; give --card the name of a file"),
        (["--card", "lenet.prototxt"], "--card would replace a file that is read; give another name"),
    ],
)
def test_options_that_cannot_be_right(
    project: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*EXPORT, *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("lenet.onnx").exists()


def test_the_sha256_of_a_large_file(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(data)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_constants_are_no_parameters() -> None:
    """The page counted the prior boxes of an SSD among its parameters, the card did not."""
    sizes = {
        "conv.weight": 6, "conv.bias": 2, "fc.weight_quantized": 8, "fc.weight_scale": 1,
        "fc.weight_zero_point": 1, "prior/constant": 40, "shape": 3,
    }  # fmt: skip
    tensors = [helper.make_tensor(name, TensorProto.FLOAT, [n], [0.0] * n) for name, n in sizes.items()]
    model = helper.make_model(helper.make_graph([], "g", [], [], tensors))
    assert parameter_counts(model) == {"conv.weight": 6, "conv.bias": 2, "fc.weight_quantized": 8}
    others = helper.make_model(helper.make_graph([], "g", [], [], tensors[-1:]))
    assert parameter_counts(others) == {"shape": 3}
