"""The zoo table: the list, files found by their digests, what is compared; no public file is needed."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import pytest

from benchmarks import zoo
from imae.net.net import Net
from imae.net.weights import save_caffemodel
from imae.prototxt import TEST, filter_net, read_net

NET = """
input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
"""
# In place of OpenCV 4, which is no dependency.
OPENCV = """
import numpy as np
class dnn:
    class readNetFromCaffe:
        def __init__(self, proto, weights):
            self.text, self.feeds = open(proto).read(), {}
            assert open(weights, "rb").read() and "NoSuchLayer" not in self.text
        def setInput(self, value, name):
            self.feeds[name] = value
        def forward(self, names):
            assert {name: array.shape for name, array in self.feeds.items()} == {"data": (1, 3, 8, 8)}
            return [np.zeros((1, 5), np.float32) for name in names]
"""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def arguments(folder: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    zoo.add_arguments(parser)
    return parser.parse_args([str(folder), *more])


@pytest.fixture
def listed(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a net and its weights; a list with these, one that is not there and one that fails."""
    place = here / "files" / "owner+name" / "models"
    place.mkdir(parents=True)
    (place / "net.prototxt").write_text(NET)
    net = Net(filter_net(read_net(place / "net.prototxt"), TEST))
    zoo.fill(net)
    save_caffemodel(net, place / "w.caffemodel")
    (here / "files" / "elsewhere.prototxt").write_text(NET.replace("BatchNorm", "NoSuchLayer"))
    entries = [
        ("whole", "models/net.prototxt", digest(place / "net.prototxt"), "models/w.caffemodel",
         digest(place / "w.caffemodel")),
        ("changed", "models/net.prototxt", "0" * 64, "", ""),
        ("broken", "a.prototxt", digest(here / "files" / "elsewhere.prototxt"), "", ""),
    ]  # fmt: skip
    lines = ["name\trepository\tpath\tsha256\tweights\tweights_sha256"]
    lines += ["\t".join((name, "owner/name", *rest)) for name, *rest in entries]
    (here / "nets.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(zoo, "NETS", here / "nets.tsv")
    return here / "files"


def test_the_table(listed: Path) -> None:
    zoo.main(arguments(listed, "--output", "zoo.md"))
    page = Path("zoo.md").read_text()
    assert "3 nets of 1 repositories, 2 of them in the folder: 2 read, 1 build, 1 export" in page
    assert "and 1 exported models compute the same" in page
    rows = {
        line.split(" | ")[0][2:]: line.split(" | ") for line in page.splitlines() if line.startswith("| ")
    }
    assert rows["whole"][3:8] == ["yes", "yes", "3", "846", "public"]
    assert 0 <= float(rows["whole"][8]) < 1e-5 and rows["whole"][9] == "-"
    assert rows["changed"][3:5] == ["-", "-"] and rows["broken"][3:5] == ["yes", "no"]
    assert "- changed (owner/name): not in the folder" in page
    assert "- broken (owner/name): Unknown layer type: NoSuchLayer" in page
    assert str(listed) not in page


def test_times_and_opencv(listed: Path) -> None:
    python = listed.parent / "python"
    (listed.parent / "fake").mkdir()
    (listed.parent / "fake" / "cv2.py").write_text(OPENCV)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={listed.parent}/fake exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    place = listed / "owner+name" / "models"
    request = {
        "file": str(place / "net.prototxt"),
        "weights": str(place / "w.caffemodel"),
        "rounds": 1,
        "opencv": str(python),
    }
    result = json.loads(json.dumps(zoo.examine(request)))
    assert "stops" not in result and result["compared"] and result["weights"]
    assert result["ms"] > 0 and result["ort_ms"] > 0 and result["ratio"] > 0
    assert result["opencv"] == 1  # the outputs themselves, as OpenCV's are 0
    (listed.parent / "fake" / "cv2.py").write_text(OPENCV.replace("(1, 5)", "(1, 4)"))
    assert zoo.examine(request)["opencv"] == "cannot: fc has 4 values, not 5"
    (listed.parent / "fake" / "cv2.py").write_text(OPENCV.replace("(1, 5)", "(1, 9)"))
    assert zoo.examine(request)["opencv"] == 1  # zeros after a detector's rows do not count
    python.write_text("#!/bin/sh\necho no such module >&2\nexit 1\n")
    assert zoo.examine(request)["opencv"] == "cannot: no such module"


@pytest.mark.parametrize("parameter", ["slope_filler { value: 1 } frozen: true", "var_eps: 1e-5"])
def test_random_statistics_of_a_forks_bn_are_positive(here: Path, parameter: str) -> None:
    layer = f'type: "BN" bn_param {{ {parameter} }}'
    (here / "net.prototxt").write_text(NET.replace('type: "BatchNorm"', layer))
    net = Net(filter_net(read_net(here / "net.prototxt"), TEST))
    zoo.fill(net)
    variance = next(layer for layer in net.layers if layer.type == "BN").blob(3).detach()
    assert float(variance.min()) >= 0.5 and float(variance.max()) <= 1.5


def test_without_files_it_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    zoo.add_arguments(parser)
    zoo.main(parser.parse_args([]))
    assert "nothing is tried" in capsys.readouterr().out


def test_the_list() -> None:
    entries = zoo.entries()
    assert len(entries) >= 60 and len({entry.repository for entry in entries}) >= 40
    assert len({entry.sha256 for entry in entries}) == len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        assert len(entry.sha256) == 64 and int(entry.sha256, 16)
        assert entry.repository.count("/") == 1 and bool(entry.weights) == (len(entry.weights_sha256) == 64)
    assert sum(bool(entry.weights) for entry in entries) >= 15
