"""Is the exported ONNX model faster than PyTorch and than OpenCV's reader of the same prototxt?

    python -m benchmarks inference [--opencv-python PYTHON]

ResNet-20, batch 1 and 128. OpenCV 5 no longer reads Caffe: PYTHON is an interpreter with opencv-python-
headless<5 and numpy (python -m venv x && x/bin/pip install 'opencv-python-headless<5').
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.measure import Timing, in_turns, machine, table
from benchmarks.peers import resnet as plain_resnet
from imae.converters.caffemodel import save_caffemodel
from imae.converters.run_onnx import open_session
from imae.layers.net import Net
from imae.prototxt import TEST, NetParameter
from imae.prototxt.resnet import resnet
from imae.prototxt.text import to_text
from imae.train.main import main as imae

BATCHES = (1, 128)
OPENCV = """
import json, sys, time
import cv2, numpy
net = cv2.dnn.readNetFromCaffe(sys.argv[1], sys.argv[2])
found = {}
for batch, rounds in ((1, 200), (128, 8)):
    images = numpy.random.rand(batch, 3, 32, 32).astype(numpy.float32)
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        net.setInput(images)
        net.forward()
        times.append(time.perf_counter() - begun)
    found[batch] = sorted(times)
print(json.dumps({"version": cv2.__version__, **found}))
"""


def main(arguments: argparse.Namespace) -> None:
    print(machine() + "\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, weights = _write_model(folder)
        command = ["export", "--model", str(model), "--weights", str(weights)]
        for path, flags in ((folder / "plain.onnx", []), (folder / "folded.onnx", ["--fold"])):
            if imae([*command, "--output", str(path), *flags]):
                raise RuntimeError("the export failed")
        opencv = _opencv(arguments.opencv_python, model, weights) if arguments.opencv_python else {}
        for batch in BATCHES:
            images = np.random.default_rng(1).random((batch, 3, 32, 32), np.float32)
            ways = _ways(folder, images)
            timings = in_turns(ways, 200 if batch == 1 else 12)
            if str(batch) in opencv:
                times = opencv[str(batch)]
                timings[f"OpenCV {opencv['version']}, prototxt and caffemodel (its own run)"] = Timing(
                    times[0], times[len(times) // 2]
                )
            print(table(f"ResNet-20, forward, batch {batch}", timings, "ONNX Runtime, imae export --fold"))


def _write_model(folder: Path) -> tuple[Path, Path]:
    """deploy.prototxt and its weights, with statistics in the BatchNorms so that they do something."""
    param = NetParameter(name="ResNet20")
    data = param.layer.add(name="data", type="Input", top=["data"])
    data.input_param.shape.add(dim=[1, 3, 32, 32])
    param.layer.extend(
        layer for layer in resnet(20).layer if layer.type not in ("SoftmaxWithLoss", "Accuracy")
    )
    param.layer.add(name="prob", type="Softmax", bottom=["fc"], top=["prob"])
    model, weights = folder / "deploy.prototxt", folder / "weights.caffemodel"
    model.write_text(to_text(param), encoding="utf-8")
    param.state.phase = TEST
    net = Net(param)
    with torch.no_grad():
        for step in net.steps:
            if step.layer.param.type == "BatchNorm":
                mean, variance, factor = step.layer.blobs
                mean.normal_(0, 0.1)
                variance.uniform_(0.5, 2)
                factor.fill_(1)
    save_caffemodel(net, weights)
    return model, weights


def _ways(folder: Path, images: np.ndarray) -> dict[str, Callable[[], object]]:
    eager = plain_resnet(20).eval()
    last = plain_resnet(20).eval().to(memory_format=torch.channels_last)
    compiled = torch.compile(last)
    batch = torch.from_numpy(images)
    batch_last = batch.contiguous(memory_format=torch.channels_last)

    def torch_way(net: nn.Module, x: torch.Tensor) -> Callable[[], object]:
        def way() -> object:
            with torch.inference_mode():
                return net(x)

        return way

    def onnx_way(path: Path) -> Callable[[], object]:
        session = open_session(path)
        name = session.get_inputs()[0].name
        return lambda: session.run(None, {name: images})

    return {
        "ONNX Runtime, imae export --fold": onnx_way(folder / "folded.onnx"),
        "ONNX Runtime, imae export": onnx_way(folder / "plain.onnx"),
        "PyTorch eager": torch_way(eager, batch),
        "PyTorch eager, channels-last": torch_way(last, batch_last),
        "PyTorch compiled, channels-last": torch_way(compiled, batch_last),
    }


def _opencv(python: str, model: Path, weights: Path) -> dict[str, list[float]]:
    done = subprocess.run(
        [python, "-c", OPENCV, str(model), str(weights)], capture_output=True, text=True, check=True
    )
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--opencv-python", default="", metavar="PYTHON")
