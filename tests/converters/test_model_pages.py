"""The commands of docs/run.md, docs/onnx-runtime.md and docs/html-page.md run, on small files of their names.

The code of docs/onnx-runtime.md: test_onnx_runtime_page.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from page_commands import commands_to_run
from pages import blocks, page, run_lines
from test_guide import classifier, data, detector

from imae import pycaffe
from imae.cli.main import main
from imae.layers.blob import blob_from_array

CLASSES = 6


def write_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (34, 40, 3), np.uint8))


def write_model(name: str, net: str) -> None:
    """deploy.prototxt and w.caffemodel; with a name the ONNX model, too."""
    Path("deploy.prototxt").write_text(net)
    pycaffe.set_random_seed(1)
    pycaffe.Net("deploy.prototxt", pycaffe.TEST).save("w.caffemodel")
    if name:
        options = ["--model", "deploy.prototxt", "--weights", "w.caffemodel", "--transform", ""]
        assert main(["export", *options, "--output", name]) == 0


@pytest.fixture
def folder(here: Path) -> Path:
    """The working directory, with a classifier and the names of its classes."""
    write_model("", classifier(CLASSES, data(3, 32, 32)))
    Path("synset_words.txt").write_text("".join(f"n{i:08} thing {i}, item {i}\n" for i in range(CLASSES)))
    return here


def test_run(folder: Path) -> None:
    """docs/run.md"""
    write_model("ssd.onnx", detector(3, 60, "", "", "detection_out"))
    write_model("net.onnx", classifier(CLASSES, data(3, 32, 32)))
    for index, name in enumerate(["cat.png", "dog.png", "img/0/a.png", "img/1/b.png", "street.jpg"]):
        write_image(Path(name), index)
    for name in ("images/a.png", "images/b.png"):
        write_image(Path(name))
    Path("val.txt").write_text("a.png 0\nb.png 1\n")
    items = [f'item {{ name: "{name}" label: {label} }}\n' for label, name in enumerate(["none", "car"])]
    Path("labelmap_voc.prototxt").write_text("".join(items))
    resized = ["--resize-height", "32", "--resize-width", "32"]
    assert main(["convert-imageset", *resized, "images/", "val.txt", "test_lmdb"]) == 0
    lines = commands_to_run("docs/run.md")
    printed = run_lines(lines)
    assert printed[lines[0]].count(".png: ") == 2
    assert '"thing 0, item 0"' in printed[lines[1]]
    assert "accuracy" in printed[lines[2]] and "accuracy" in printed[lines[3]]
    assert Path("found", "street.jpg").exists()
    assert [
        Path(entry["image"]).name for entry in json.loads(Path("results.json").read_text())["images"]
    ] == [*("a.png", "b.png")]


def test_onnx_runtime(folder: Path) -> None:
    """docs/onnx-runtime.md: the export that it begins with."""
    mean = np.full((1, 3, 36, 36), 100, np.float32)
    Path("mean.binaryproto").write_bytes(blob_from_array(mean).SerializeToString())
    lines = commands_to_run("docs/onnx-runtime.md")
    (printed,) = run_lines(lines).values()
    assert "minus a mean image (about 100 100 100), cropped to 32x32 from the centre" in printed
    assert "```python" in Path("net.md").read_text()


def test_html_page(folder: Path) -> None:
    """docs/html-page.md: the export, without the package for browsers; the page of a model that is there."""
    (printed,) = run_lines(commands_to_run("docs/html-page.md")).values()
    assert "net.html" in printed
    (code,) = [block.text for block in blocks(page("docs/html-page.md")) if block.language == "python"]
    Path("net.onnx").rename("int8.onnx")
    exec(compile(code, "the page", "exec"), {})
    for name in ("net.html", "int8.html"):
        assert "<!doctype html>" in Path(name).read_text().lower()
