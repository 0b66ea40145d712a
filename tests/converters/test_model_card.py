"""Model cards: what they say, and that their lines of Python compute what `imae run` computes."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tolerances import tolerance

from imae.cli.main import main
from imae.converters.model_card import card_text
from imae.converters.preprocessing import Preprocessing
from imae.converters.run_onnx import image_batches, model_preprocessing, open_session
from imae.layers.blob import blob_from_array
from imae.prototxt import TransformationParameter

EXPORT = ["export", "--model", "net.prototxt", "--output", "net.onnx", "--card"]
FILLED = 'weight_filler { type: "xavier" }'


def net(shape: str, layers: str, channels: int = 3) -> str:
    """A deploy net with an input (1, channels, shape)."""
    dims = f"dim: 1 dim: {channels} " + " ".join(f"dim: {side}" for side in shape.split("x"))
    return f"""
        name: "seven <classes>"
        layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims} }} }} }}
        {layers}"""


FC = f"""
layer {{ name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
        inner_product_param {{ num_output: 7 {FILLED} }} }}
layer {{ name: "prob" type: "Softmax" bottom: "fc" top: "prob" }}"""
MAP = f"""
layer {{ name: "score" type: "Convolution" bottom: "data" top: "score"
        convolution_param {{ num_output: 3 kernel_size: 1 {FILLED} }} }}"""
TWO = f"""{FC}
layer {{ name: "other" type: "Reduction" bottom: "data" top: "sum" }}"""
BOXES = f"""
layer {{ name: "loc" type: "Convolution" bottom: "data" top: "loc"
        convolution_param {{ num_output: 4 kernel_size: 4 stride: 4 {FILLED} }} }}
layer {{ name: "loc_flat" type: "Flatten" bottom: "loc" top: "loc_flat" }}
layer {{ name: "conf" type: "Convolution" bottom: "data" top: "conf"
        convolution_param {{ num_output: 3 kernel_size: 4 stride: 4 {FILLED} }} }}
layer {{ name: "perm" type: "Permute" bottom: "conf" top: "perm"
        permute_param {{ order: 0 order: 2 order: 3 order: 1 }} }}
layer {{ name: "rows" type: "Reshape" bottom: "perm" top: "rows"
        reshape_param {{ shape {{ dim: 0 dim: -1 dim: 3 }} }} }}
layer {{ name: "soft" type: "Softmax" bottom: "rows" top: "soft" softmax_param {{ axis: 2 }} }}
layer {{ name: "conf_flat" type: "Flatten" bottom: "soft" top: "conf_flat" }}
layer {{ name: "priors" type: "PriorBox" bottom: "loc" bottom: "data" top: "priors"
        prior_box_param {{ min_size: 4 }} }}
layer {{ name: "found" type: "DetectionOutput" bottom: "loc_flat" bottom: "conf_flat" bottom: "priors"
        top: "found" detection_output_param {{ num_classes: 3 nms_param {{ nms_threshold: 0.5 }}
                                              confidence_threshold: 0.1 }} }}"""
SSD_RESIZE = "resize_param { resize_mode: WARP height: 8 width: 12 interp_mode: CUBIC } mean_value: 100"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image, labels, and two mean images."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(5)
    smooth = cv2.resize(rng.integers(0, 256, (5, 7, 3), np.uint8), (31, 23), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite("image.jpg", smooth)
    Path("labels.txt").write_text("".join(f"name {number}\n" for number in range(7)))
    Path("voc.prototxt").write_text(
        'item { name: "bg" label: 0 } item { name: "car" label: 1 } item { name: "cat" label: 2 }'
    )
    for name, size in (("wide", (12, 16)), ("fits", (8, 12))):
        mean = rng.uniform(90, 130, (3, *size)).astype(np.float32)
        Path(f"{name}.binaryproto").write_bytes(blob_from_array(mean[None]).SerializeToString())
    return tmp_path


def lines_of(card: str) -> str:
    (code,) = re.findall(r"^```python\n(.*?)\n```$", card, re.MULTILINE | re.DOTALL)
    return str(code)


def outputs_of_run(path: str = "net.onnx", image: str = "image.jpg") -> list[NDArray[Any]]:
    """All outputs for the image, prepared as `imae run` does it."""
    session = open_session(path)
    (feed,) = session.get_inputs()
    prepared = model_preprocessing(session, path) or Preprocessing(TransformationParameter())
    size = feed.shape[0] if isinstance(feed.shape[0], int) else 1
    ((images, _),) = image_batches([image] * size, prepared, size, feed.shape)
    outputs: list[NDArray[Any]] = session.run(None, {feed.name: images})
    return outputs


@pytest.mark.parametrize(
    ("layers", "shape", "channels", "options"),
    [
        (FC, "8x8", 3, ["--transform", "mean_value: 104 mean_value: 117 mean_value: 123 scale: 0.017"]),
        (FC, "8x8", 3, ["--transform", "mean_value: 99.5 crop_size: 8", "--resize", "11x14"]),
        (FC, "8x8", 3, ["--transform", "scale: 0.00390625", "--channels", "RGB", "--labels", "labels.txt"]),
        (FC, "8x8", 1, ["--transform", "mean_value: 33 scale: 0.1"]),
        (FC, "8x8", 3, ["--mean", "wide.binaryproto", "--transform", "scale: 0.5 crop_size: 8"]),
        (FC, "8x12", 3, ["--mean", "fits.binaryproto", "--labels", "labels.txt"]),
        (FC, "8x12", 3, ["--mean", "fits.binaryproto", "--channels", "RGB"]),
        (FC, "8x8", 3, ["--transform", "scale: 0.5", "--fixed-batch", "--input-shape", "data:3,3,8,8"]),
        (FC, "8x8", 3, []),
        (FC, "8x8", 1, []),
        (MAP, "8x12", 3, ["--transform", "scale: 0.01", "--labels", "voc.prototxt"]),
        (MAP, "8x12", 3, ["--mean", "100,110,120"]),
        (MAP, "8x12", 3, ["--mean", "100,110,120", "--dynamic-size"]),
        (MAP, "8x12", 3, ["--transform", "mean_value: 99 crop_size: 20", "--dynamic-size"]),
        (TWO, "8x8", 3, ["--mean", "100,110,120", "--until", "fc"]),
        (TWO, "8x8", 3, ["--mean", "100,110,120"]),
        (BOXES, "8x12", 3, ["--transform", SSD_RESIZE, "--labels", "voc.prototxt"]),
        (BOXES, "8x12", 3, ["--mean", "100,110,120", "--fixed-batch"]),
        (FC, "8x8", 3, ["--mean", "wide.binaryproto", "--embed-preprocess", "bgr"]),
        (FC, "8x8", 3, ["--mean", "1,2,3", "--embed-preprocess", "rgb", "--labels", "labels.txt"]),
        (FC, "8x8", 1, ["--transform", "scale: 0.1", "--embed-preprocess", "gray", "--fixed-batch"]),
        (FC, "8x8", 3, ["--mean", "wide.binaryproto", "--embed-preprocess", "rgb", "--embed-resize"]),
    ],
)
def test_its_lines_compute_what_run_computes(
    folder: Path,
    layers: str,
    shape: str,
    channels: int,
    options: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("net.prototxt").write_text(net(shape, layers, channels))
    assert main([*EXPORT, *options]) == 0
    code = lines_of(Path("net.md").read_text())
    Path("code.py").write_text(code)
    capsys.readouterr()
    found = runpy.run_path("code.py")
    want = outputs_of_run()
    rtol, atol, _ = tolerance("onnx")
    assert len(found["outputs"]) == len(want)
    for got, values in zip(found["outputs"], want, strict=True):
        assert got.shape == values.shape and values.size
        np.testing.assert_allclose(got, values, rtol=rtol, atol=atol)
    printed = capsys.readouterr().out
    assert printed
    if "labels.txt" in options:
        best = int(want[0][0].argmax())
        assert printed.split()[:3] == [str(best), "name", str(best)]
    if layers is BOXES and "voc.prototxt" in options:
        assert {line.split()[0] for line in printed.splitlines()} <= {"car", "cat"}
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 13


def test_what_a_card_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.prototxt").write_text(net("8x8", FC))
    options = [
        "--labels",
        "labels.txt",
        "--license",
        "BSD-2-Clause",
        "--transform",
        "scale: 0.5 crop_size: 8",
    ]
    assert main([*EXPORT, *options]) == 0
    assert "wrote net.md, the model card" in capsys.readouterr().out
    card = Path("net.md").read_text()
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert front.splitlines() == [
        "license: bsd-2-clause",
        "library_name: onnx",
        "pipeline_tag: image-classification",
        "tags:",
        "- onnx",
        "- caffe",
    ]
    model = onnx.load("net.onnx")
    size = Path("net.onnx").stat().st_size
    parameters = 7 * 3 * 8 * 8 + 7
    for text in (
        r"# seven \<classes\>",
        "A model for image classification in ONNX: the file `net.onnx`.",
        f"It has {len(model.graph.node)} nodes of opset 17, {parameters:,} parameters and {size:,} bytes.",
        "It has names for 7 classes: 0: name 0; 1: name 1; 2: name 2; 3: name 3; 4: name 4; ...",
        "On random inputs, in batches of 1 and 3, its outputs in ONNX Runtime are at most ",
        "Licence: BSD-2-Clause.",
        "| `data` | float32 | `batch x 3 x 8 x 8` |",
        "An image is prepared so: resized to 8x8 (the model does not say from which size it was cropped), "
        "BGR 0..255, times 0.5.",
        "| `crop` | `8x8` |",
        "| `prob` | float32 | `batch x 7` |",
        "`prob` has a probability for each class.",
    ):
        assert text in body
    assert re.search(r"^\| net \| `net\.prototxt` \| `[0-9a-f]{64}` \|$", body, re.MULTILINE)
    assert str(folder) not in card


def test_parameters_are_those_of_blobs(folder: Path) -> None:
    """Not the boxes of PriorBox, nor axes and the like."""
    Path("net.prototxt").write_text(net("8x12", BOXES))
    assert main(EXPORT) == 0
    assert f" {(4 + 3) * (3 * 4 * 4 + 1)} parameters " in Path("net.md").read_text()


def test_a_licence_without_an_identifier(folder: Path) -> None:
    Path("net.prototxt").write_text(net("8x8", FC))
    assert main([*EXPORT[:-1], "--card", "other.md", "--license", 'Ours: "no" #1']) == 0
    card = Path("other.md").read_text()
    assert card.splitlines()[1:3] == ["license: other", 'license_name: "Ours: \\"no\\" #1"']
    assert r'Licence: Ours: "no" \#1.' in card
    assert not Path("net.md").exists()
    assert main(EXPORT) == 0
    front = Path("net.md").read_text().split("---\n")[1]
    assert "license" not in front and "Licence: not stated." in Path("net.md").read_text()


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (
            "resize_param { resize_mode: FIT_LARGE_SIZE_AND_PAD height: 8 width: 8 }",
            "These lines feed zeros: images are resized by `FIT_LARGE_SIZE_AND_PAD`.",
        ),
        (
            "resize_param { height: 8 width: 8 interp_mode: LINEAR interp_mode: AREA }",
            "These lines feed zeros: images are resized at random.",
        ),
        (
            "crop_size: 8 exclude_last_crop: true",
            "These lines feed zeros: the preparation has `exclude_last_crop: true`.",
        ),
    ],
)
def test_what_a_line_of_opencv_cannot_prepare(folder: Path, transform: str, reason: str) -> None:
    Path("net.prototxt").write_text(net("8x8", FC))
    assert main([*EXPORT, "--transform", transform]) == 0
    card = Path("net.md").read_text()
    assert reason in card
    Path("code.py").write_text(lines_of(card))
    assert [value.shape for value in runpy.run_path("code.py")["outputs"]] == [(1, 7)]


def test_a_model_that_does_not_say_how_images_are_prepared(folder: Path) -> None:
    Path("net.prototxt").write_text(net("8x8", FC))
    assert main(EXPORT) == 0
    assert "The model does not say how an image becomes its input" in Path("net.md").read_text()


def test_inputs_that_are_no_images(folder: Path) -> None:
    Path("net.prototxt").write_text(
        """
        layer { name: "in" type: "Input" top: "a \\"b\\"" top: "c"
                input_param { shape { dim: 2 dim: 3 } shape { dim: 2 dim: 4 } } }
        layer { name: "it" type: "Concat" bottom: "a \\"b\\"" bottom: "c" top: "d" }"""
    )
    assert main(EXPORT) == 0
    card = Path("net.md").read_text()
    assert "These lines feed zeros in place of its inputs." in card and "prepared" not in card
    Path("code.py").write_text(lines_of(card))
    assert [value.shape for value in runpy.run_path("code.py")["outputs"]] == [(1, 7)]


def test_images_and_another_input(folder: Path) -> None:
    text = net("8x8", 'layer { name: "a" type: "Flatten" bottom: "data" top: "a" }')
    text += 'layer { name: "in" type: "Input" top: "info" input_param { shape { dim: 1 dim: 3 } } }'
    text += 'layer { name: "it" type: "Concat" bottom: "a" bottom: "info" top: "d" }'
    Path("net.prototxt").write_text(text)
    assert main([*EXPORT, "--mean", "1,2,3"]) == 0
    card = Path("net.md").read_text()
    assert "An image is prepared so: BGR 0..255, minus 1 2 3." in card and "| `info` |" in card
    assert "These lines feed zeros in place of its inputs." in card
    Path("code.py").write_text(lines_of(card))
    assert [value.shape for value in runpy.run_path("code.py")["outputs"]] == [(1, 8 * 8 * 3 + 3)]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "How far its outputs are from those of the net was not measured."),
        ({"imae.difference": "small"}, "How far its outputs are from those of the net was not measured."),
        ({"imae.difference": '{"difference": [1]}'}, "was not measured."),
        (
            {
                "imae.difference": '{"difference": 1e-06, "largest": 2.5, "batch_sizes": [1, 3]}',
                "imae.quantized": "fp16",
            },
            "It is quantized: fp16. Before that: On random inputs, in batches of 1 and 3, its outputs in "
            "ONNX Runtime are at most 1e-06 away from those of the net, whose largest value is 2.5.",
        ),
    ],
)
def test_what_it_says_of_the_difference(metadata: dict[str, str], words: str) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", [value], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    helper.set_model_props(model, metadata)
    assert words in card_text(model, "net.onnx")


def test_names_of_strangers_stay_text() -> None:
    """In the words, in the tables, and in the lines of Python."""
    evil = "x`|<b>\n```\n'''\"; import os"
    info = helper.make_tensor_value_info(evil, TensorProto.FLOAT, [1, 2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    graph = helper.make_graph([helper.make_node("Relu", [evil], ["y"])], evil, [info], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.doc_string = "[link](http://x) <script>"
    helper.set_model_props(model, {"imae.license": "<i>", "names": '{"0": "a|b", "1": "*c*"}'})
    card = card_text(model, "net.onnx")
    assert "\n# x\\`\\|\\<b\\>\\\\n\\`\\`\\`" in card
    assert r"\[link\](http://x) \<script\>" in card
    assert r"0: a\|b; 1: \*c\*" in card
    code = lines_of(card)
    assert compile(code, "code", "exec").co_names.count("os") == 0
    assert repr(evil) in code
