"""docs/pytorch.md: its blocks run, in their order, in one folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import imae
from imae.cli.main import main
from imae.net.weights import save_caffemodel

PAGE = Path(__file__).parents[2] / "docs" / "pytorch.md"
NET = """
name: "page"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } }
        transform_param { scale: 0.0078125 mean_value: 128 } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 bias_term: false
                            weight_filler { type: "msra" } } }
layer { name: "bn1" type: "BatchNorm" bottom: "conv1" top: "conv1" }
layer { name: "scale1" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool1" top: "fc"
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
"""


def test_the_page(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("deploy.prototxt").write_text(NET)
    net = imae.load("deploy.prototxt", random_seed=1)
    with torch.no_grad():
        for blob, value in zip(net.bn1.parameters(), (0.1, 2, 1), strict=True):
            blob.fill_(value)
    save_caffemodel(net.caffe_net, "w.caffemodel")
    cv2.imwrite("cat.png", np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    blocks = re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"))
    assert [language for language, _ in blocks] == ["python"] * 5 + [
        "sh",
        "sh",
        "python",
        "sh",
        *["python"] * 2,
    ]
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for language, text in blocks:
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), names)
        else:
            for line in text.splitlines():
                assert main(shlex.split(line)[1:]) == 0, line
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "{'data': (1, 3, 32, 32)} {'fc': (1, 3)}",
        "torch.Size([4, 3]) torch.Size([4, 8, 16, 16])",
        "conv1.weight (8, 3, 3, 3) True",
    ]
    assert "bn1.mean (8,) False" in lines and "conv1 gives (4, 8, 32, 32)" in lines
    assert "BGR 0..255, minus 128, times 0.0078125" in lines
    for name in ("w.safetensors", "net.pt2", "tuned.caffemodel", "model.caffemodel"):
        assert any(line.startswith(f"wrote {name}: ") for line in lines)
    assert float(lines[-1]) < 1e-5
