"""docs/from-caffe-to-onnx.md: its commands run, with small files of its names, and print what it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from imae import pycaffe
from imae.cli.main import main
from imae.layers.blob import blob_from_array

GUIDE = (Path(__file__).parents[2] / "docs" / "from-caffe-to-onnx.md").read_text(encoding="utf-8")
HAS_OPENCV_5 = int(cv2.__version__.split(".")[0]) >= 5
needs_opencv_5 = pytest.mark.skipif(
    not HAS_OPENCV_5, reason=f"the guide is about OpenCV 5; here is {cv2.__version__}"
)


def conv(name: str, bottom: str, num_output: int, kernel: int = 3, more: str = "pad: 1") -> str:
    return (
        f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" convolution_param {{ '
        f'num_output: {num_output} kernel_size: {kernel} {more} weight_filler {{ type: "msra" }} }} }}\n'
    )


def data(channels: int, height: int, width: int, more: str = "") -> str:
    return (
        f'layer {{ name: "data" type: "Input" top: "data" {more} input_param {{ shape {{ dim: 1 '
        f"dim: {channels} dim: {height} dim: {width} }} }} }}\n"
    )


def classifier(classes: int, source: str) -> str:
    return (
        f"{source}{conv('conv', 'data', 2, 5, 'stride: 8')}"
        'layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { '
        f'num_output: {classes} weight_filler {{ type: "xavier" }} }} }}\n'
        'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }\n'
    )


def detector(channels: int, side: int, prior: str, output: str, end: str) -> str:
    """An SSD of one feature map, with two priors a cell and two classes."""
    flat = "\n".join(
        f'layer {{ name: "{name}_perm" type: "Permute" bottom: "{name}" top: "{name}_perm" permute_param {{ '
        "order: 0 order: 2 order: 3 order: 1 } }\n"
        f'layer {{ name: "mbox_{name}" type: "Flatten" bottom: "{name}_perm" top: "mbox_{name}" }}'
        for name in ("loc", "conf")
    )
    return f"""{data(channels, side, side)}{conv("conv", "data", 4, 5, f"stride: {side // 6}")}
{conv("loc", "conv", 8)}{conv("conf", "conv", 4)}{flat}
layer {{ name: "prior" type: "PriorBox" bottom: "conv" bottom: "data" top: "prior"
  prior_box_param {{ min_size: 60 max_size: 90 {prior} }} }}
layer {{ name: "pairs" type: "Reshape" bottom: "mbox_conf" top: "pairs"
  reshape_param {{ shape {{ dim: 0 dim: -1 dim: 2 }} }} }}
layer {{ name: "softmax" type: "Softmax" bottom: "pairs" top: "softmax" softmax_param {{ axis: 2 }} }}
layer {{ name: "mbox_conf_flatten" type: "Flatten" bottom: "softmax" top: "mbox_conf_flatten" }}
layer {{ name: "{end}" type: "DetectionOutput" bottom: "mbox_loc" bottom: "mbox_conf_flatten" bottom: "prior"
  top: "{end}" detection_output_param {{ num_classes: 2 nms_param {{ nms_threshold: 0.45 top_k: 40 }}
  code_type: CENTER_SIZE keep_top_k: 5 confidence_threshold: 0.01 {output} }} }}
"""


UPSCALER = f"""{data(1, 22, 24)}{conv("conv", "data", 4)}
layer {{ name: "fc" type: "Deconvolution" bottom: "conv" top: "fc" convolution_param {{ num_output: 1
  kernel_size: 3 stride: 2 pad: 1 weight_filler {{ type: "msra" }} }} }}
"""
SCANNER = f"""{data(3, 12, 12)}{conv("conv", "data", 4, more="")}
{conv("conv4-1", "conv", 2, 1, "")}{conv("conv4-2", "conv", 4, 1, "")}
layer {{ name: "prob1" type: "Softmax" bottom: "conv4-1" top: "prob1" }}
"""
CLASSES = classifier(56, data(3, 26, 22, "transform_param { scale: 0.00390625 }"))
AGES = classifier(8, data(3, 227, 227))
QR = detector(1, 384, "", "", "detection_output")
TEXT = detector(3, 96, "\ndenser_prior_boxes: true\n", "\nuse_polygon: true\n", "detection_out")
# heading -> name -> net, with the weights' name
NETS = {
    "Five minutes": {"deploy.prototxt": (CLASSES, "model/verifycode_iter_40000.caffemodel")},
    "An SSD": {"detect.prototxt": (QR, "detect.caffemodel")},
    "Super-resolution": {"sr.prototxt": (UPSCALER, "sr.caffemodel")},
    "A fully convolutional net": {"12net.prototxt": (SCANNER, "12net.caffemodel")},
    "Age and gender": {"deploy.prototxt": (AGES, None)},
    "A text detector": {"deploy.prototxt": (TEXT, None)},
}
IMAGES = {
    "data/test_split/10010-C.jpg": (26, 20),
    "qr.png": (48, 64),
    "small.jpg": (26, 85),
    "people.png": (50, 33),
    "cat.jpg": (36, 48),
}


def blocks(heading: str) -> Iterator[tuple[str, str]]:
    """(language, text) of a section's blocks of code."""
    section = re.search(rf"(?ms)^##+ {re.escape(heading)}.*?$(.*?)(?=^##|\Z)", GUIDE)
    assert section, heading
    yield from re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", section[1])


def shape_of(line: str) -> str:
    """A line without its numbers and class names."""
    return re.sub(r"-?\d+(\.\d+)?(e-?\d+)?", "#", re.sub('"[^"]*"', '"#"', line))


@pytest.fixture
def folder(heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with stand-ins for the files of a section."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(1)
    for name, (net, weights) in NETS[heading].items():
        Path(name).write_text(net)
        if weights:
            Path(weights).parent.mkdir(exist_ok=True)
            pycaffe.set_random_seed(2)
            pycaffe.Net(name, pycaffe.TEST).save(weights)
    for name, size in IMAGES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(name, cv2.resize(generator.integers(0, 256, (6, 8, 3), np.uint8), size[::-1]))
    if heading == "Five minutes":
        Path("label.txt").write_text("".join(f"{i}-letter{i}\n" for i in range(56)))
        Path("test.txt").write_text("10010-C.jpg 13\n")
    elif heading == "Age and gender":
        Path("ages.txt").write_text("".join(f"{i}-{i + 1}\n" for i in range(8)))
        mean = generator.uniform(90, 130, (1, 3, 256, 256)).astype(np.float32)
        Path("mean.binaryproto").write_bytes(blob_from_array(mean).SerializeToString())
    return tmp_path


def commands(heading: str) -> list[str]:
    return [line for language, text in blocks(heading) if language == "sh" for line in text.splitlines()]


def run_lines(lines: list[str]) -> None:
    for line in lines:
        if line.startswith("imae "):
            assert main(shlex.split(line)[1:]) == 0, line
        else:
            subprocess.run(line, shell=True, check=True)


@pytest.mark.parametrize("heading", NETS)
def test_the_commands_print_what_is_shown(
    heading: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = [line for language, text in blocks(heading) if language == "text" for line in text.splitlines()]
    if heading == "A text detector":
        assert main(["export", "--model", "deploy.prototxt", "--output", "x.onnx"]) == 2
        assert shown[0].split(": ", 2)[2] in capfd.readouterr().err
        del shown[0]
    run_lines(commands(heading))
    printed = set(map(shape_of, capfd.readouterr().out.splitlines()))
    assert shown and [line for line in shown if shape_of(line) not in printed] == []


@needs_opencv_5
@pytest.mark.parametrize("heading", ["Five minutes", "An SSD", "Super-resolution"])
def test_opencv_gives_what_imae_run_gives(
    heading: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (code,) = (text for language, text in blocks(heading) if language == "python")
    # the last export of the first section is of another preparation, which its code does not have
    lines = commands(heading)
    first = next(index for index, line in enumerate(lines) if line.startswith("imae export"))
    run_lines([line for line in lines[: first + 1] if not line.startswith("imae doctor")])
    capfd.readouterr()
    names: dict[str, object] = {}
    exec(compile(code, "the guide", "exec"), names)
    printed = capfd.readouterr().out.split()
    (image,) = re.findall(r'imread\("(.*?)"', code)
    assert main(["run", re.findall(r'readNetFromONNX\("(.*?)"', code)[0], image, "--csv", "-"]) == 0
    header, row, *_ = (line.split(",") for line in capfd.readouterr().out.splitlines())
    found = dict(zip(header, row, strict=True))
    if heading == "Five minutes":
        assert printed[0] == found["class"] and float(printed[1]) == pytest.approx(float(found["score"]))
    elif heading == "An SSD":
        assert printed[0] == found["label"] and float(printed[1]) == pytest.approx(float(found["score"]))
        corners = [float(found[name]) for name in ("xmin", "ymin", "xmax", "ymax")]
        assert list(map(float, printed[2:6])) == pytest.approx(corners)
    else:
        large = cv2.imread("large.png", cv2.IMREAD_GRAYSCALE)
        assert large is not None and large.shape == (51, 169)


@needs_opencv_5
def test_the_errors_of_opencv_5(tmp_path: Path) -> None:
    with pytest.raises(AttributeError) as missing:
        cv2.dnn.readNetFromCaffe("deploy.prototxt", "w.caffemodel")  # type: ignore[attr-defined]
    assert f"AttributeError: {missing.value}\n" in GUIDE
    (tmp_path / "w.caffemodel").write_bytes(b"")
    (tmp_path / "deploy.prototxt").write_text(CLASSES)
    with pytest.raises(cv2.error) as removed:
        cv2.dnn.readNet(str(tmp_path / "w.caffemodel"), str(tmp_path / "deploy.prototxt"))
    # before it: the version, and the place in the sources
    assert re.search(r"error: .*", str(removed.value))[0].strip() in GUIDE  # type: ignore[index]


def test_the_errors_of_others(tmp_path: Path) -> None:
    (tmp_path / "deploy.prototxt").write_text(CLASSES)
    path = str(tmp_path / "w.caffemodel")
    pycaffe.Net(str(tmp_path / "deploy.prototxt"), pycaffe.TEST).save(path)
    with pytest.raises(InvalidArgument) as refused:
        onnxruntime.InferenceSession(path)
    assert str(refused.value).replace(path, "w.caffemodel") in GUIDE


def test_the_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", GUIDE):
        # made by `benchmarks runtimes`
        assert (Path(__file__).parents[2] / "docs" / link).exists() or link == "runtimes.md", link
