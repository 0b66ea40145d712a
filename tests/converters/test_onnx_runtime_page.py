"""The code of docs/onnx-runtime.md gives, away from net and mean file, what `imae test` computes."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tolerances import tolerance

from imae import pycaffe
from imae.cli.main import main
from imae.converters.lmdb_writer import write_lmdb
from imae.layers.blob import blob_from_array
from imae.layers.data.datum import datum_from_array

PAGE = Path(__file__).parents[2] / "docs" / "onnx-runtime.md"
PLAIN, EMBEDDED = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
COUNT, CLASSES, HEIGHT, WIDTH = 12, 5, 10, 12
NET = """
name: "small"
layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ phase: TEST }}
  transform_param {{ {transform} }} data_param {{ source: "lmdb" batch_size: 1 backend: LMDB }} }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param {{ num_output: 4 kernel_size: 3 weight_filler {{ type: "msra" }} }} }}
layer {{ name: "relu" type: "ReLU" bottom: "conv" top: "conv" }}
layer {{ name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
  inner_product_param {{ num_output: 5 weight_filler {{ type: "msra" }} }} }}
layer {{ name: "prob" type: "Softmax" bottom: "fc" top: "prob" }}
layer {{ name: "silence" type: "Silence" bottom: "label" }}
"""
TRANSFORMS = {
    "mean file": "mean_file: 'mean.binaryproto' scale: 0.01",
    "mean file and crop": "mean_file: 'mean.binaryproto' crop_size: 7 scale: 0.01",
    "mean values": "mean_value: 104 mean_value: 117 mean_value: 123 scale: 0.01",
    "one mean value": "mean_value: 110 scale: 0.01",
    "scale": "scale: 0.00390625",
    "crop": "crop_size: 7 scale: 0.01",
    "all": "mean_value: 104 mean_value: 117 mean_value: 123 crop_size: 7 scale: 0.01",
}
FORMS = {
    "plain": [],
    "rgb": ["--embed-preprocess", "rgb"],
    "bgr": ["--embed-preprocess", "bgr"],
    "resizing": ["--embed-preprocess", "rgb", "--embed-resize"],
}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is for the net, its data and the mean file; the other one, for images in PNG."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(project)
    return elsewhere


def write_images(elsewhere: Path, pixels: NDArray[np.uint8]) -> None:
    """Pixels (N, H, W, C), BGR."""
    write_lmdb(
        "lmdb", ((b"%04d" % i, datum_from_array(x.transpose(2, 0, 1), 0)) for i, x in enumerate(pixels))
    )
    mean = pixels.mean(0, np.float64).astype(np.float32).transpose(2, 0, 1)
    Path("mean.binaryproto").write_bytes(blob_from_array(mean[None]).SerializeToString())
    for i, image in enumerate(pixels):
        cv2.imwrite(str(elsewhere / f"{i}.png"), image)


def random_images(channels: int) -> NDArray[np.uint8]:
    return np.random.default_rng(8).integers(0, 256, (COUNT, HEIGHT, WIDTH, channels), np.uint8)


def write_net(transform: str) -> None:
    Path("net.prototxt").write_text(NET.format(transform=transform))
    pycaffe.set_random_seed(3)
    pycaffe.Net("net.prototxt", pycaffe.TEST).save("net.caffemodel")


def scores_of_imae_test(capsys: pytest.CaptureFixture[str]) -> NDArray[np.float64]:
    """The scores (N, classes) that `imae test` logs for each batch, of one image."""
    command = ["test", "--model", "net.prototxt", "--weights", "net.caffemodel", "--iterations", str(COUNT)]
    capsys.readouterr()
    assert main(command) == 0
    log = "".join(capsys.readouterr())
    scores = defaultdict(list)
    for batch, value in re.findall(r"Batch (\d+), prob = (\S+)", log):
        scores[int(batch)].append(float(value))
    return np.array([scores[i] for i in range(COUNT)])


def scores_of_the_page(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, code: str, options: list[str]
) -> NDArray[np.float32]:
    """Export, carry the model alone to the other folder, and run the page's code there on all images."""
    export = ["export", "--model", "net.prototxt", "--weights", "net.caffemodel", "--output", "net.onnx"]
    assert main([*export, *options]) == 0
    shutil.move("net.onnx", elsewhere / "net.onnx")
    shutil.rmtree(Path.cwd())
    monkeypatch.chdir(elsewhere)
    names: dict[str, object] = {}
    exec(code, names)
    scores = names["scores"]
    assert callable(scores)
    return np.concatenate([scores(f"{i}.png") for i in range(COUNT)])


def check(page: NDArray[np.float32], test: NDArray[np.float64]) -> None:
    assert len(set(test.argmax(1))) > 1, "one class for all images would be no test"
    np.testing.assert_array_equal(page.argmax(1), test.argmax(1))
    allowed = tolerance("printed"), tolerance("onnx")
    np.testing.assert_allclose(page, test, max(a.rtol for a in allowed), max(a.atol for a in allowed))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_code_gives_the_classes_of_imae_test(
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    transform: str,
    form: str,
) -> None:
    write_images(images, random_images(3))
    write_net(TRANSFORMS[transform])
    want = scores_of_imae_test(capsys)
    code = EMBEDDED if FORMS[form] else PLAIN
    check(scores_of_the_page(images, monkeypatch, code, FORMS[form]), want)


@pytest.mark.parametrize("options", [[], ["--embed-preprocess", "gray"]], ids=["plain", "embedded"])
def test_gray_images(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    write_images(images, random_images(1))
    write_net("mean_file: 'mean.binaryproto' crop_size: 7 scale: 0.01")
    want = scores_of_imae_test(capsys)
    check(scores_of_the_page(images, monkeypatch, EMBEDDED if options else PLAIN, options), want)


@pytest.mark.parametrize("form", FORMS)
def test_images_of_other_sizes(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """The LMDB has them resized, as Caffe's convert_imageset does; the files are larger."""
    generator = np.random.default_rng(4)
    large = [generator.integers(0, 256, (17 + i, 31 - i, 3), np.uint8) for i in range(COUNT)]
    write_images(images, np.stack([cv2.resize(image, (WIDTH, HEIGHT)) for image in large]))
    for i, image in enumerate(large):
        cv2.imwrite(str(images / f"{i}.png"), image)
    write_net("mean_file: 'mean.binaryproto' crop_size: 7 scale: 0.01")
    want = scores_of_imae_test(capsys)
    page = scores_of_the_page(images, monkeypatch, EMBEDDED if FORMS[form] else PLAIN, FORMS[form])
    if form != "resizing":
        check(page, want)
    else:  # some pixels are a grey level away; no two classes of an image are so near
        first, second = np.sort(want, 1)[:, ::-1].T[:2]
        assert (first - second).min() > 2 * tolerance("resized").atol
        np.testing.assert_array_equal(page.argmax(1), want.argmax(1))
        np.testing.assert_allclose(page, want, *tolerance("resized")[:2])
