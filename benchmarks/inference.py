"""Is the exported ONNX model faster than a plain export, than PyTorch, and than OpenCV's reader of its files?

    python -m benchmarks inference [--opencv] [--weights resnet20.caffemodel --lmdb test_lmdb]

ResNet-20, latency of one image and throughput of 128, on the CPU and, if PyTorch finds a GPU, on the GPU.
Each way runs in its own process, in turns with the others. Images start and probabilities end in host memory.
OpenCV 5 does not read Caffe's files: --opencv installs opencv-python-headless<5 into an environment in a
temporary folder; --opencv-python names a Python that has it. Without --weights the net has random weights and
the statistics of random images; the effect of int8 is better measured with a trained net.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.forward import WAYS, load_plain
from benchmarks.measure import machine, matrix_product_rate
from benchmarks.peers import operations
from benchmarks.peers import resnet as plain_resnet
from imae.converters.export_onnx import ExportOptions, export_net
from imae.converters.preprocessing import Preprocessing
from imae.converters.quantize_onnx import to_fp16, to_int8
from imae.converters.run_onnx import lmdb_batches
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net.net import Net
from imae.net.weights import load_caffemodel, save_caffemodel
from imae.prototxt import TEST, TRAIN, NetParameter, Phase, TransformationParameter
from imae.prototxt.models.net_parts import add, deploy
from imae.prototxt.models.resnet import CIFAR10_MEAN_BGR, resnet
from imae.prototxt.text import to_text

TOP = Path(__file__).parent.parent
BATCHES = {1: (8, 40), 128: (5, 2)}  # rounds, and calls of each way in a round


def main(arguments: argparse.Namespace) -> None:
    print(machine() + "\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder, arguments.weights, arguments.lmdb)
        pythons = {way: sys.executable for way in WAYS if way in ("plain", *arguments.ways)}
        pythons.pop("opencv", None)
        if arguments.opencv or arguments.opencv_python:
            pythons["opencv"] = arguments.opencv_python or _opencv_environment(folder)
        _compare(folder, pythons, "cpu", arguments.rounds)
        rate, work = matrix_product_rate(), operations(20, 1) // 3
        print(f"- a forward pass is {work / 1e6:.1f} MFLOP an image; matrix products reach here", end=" ")
        print(f"{rate / 1e9:.0f} GFLOP/s, which would be {1e3 * 128 * work / rate:.1f} ms for 128 images")
        if torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pythons.pop("opencv", None)
            _compare(folder, pythons, "cuda", arguments.rounds)


def _compare(folder: Path, pythons: Mapping[str, str], device: str, repeats: int) -> None:
    """Start all ways, measure them in turns, print a table."""
    children = {way: _Child(way, python, folder, device) for way, python in pythons.items()}
    try:
        for child in children.values():  # to compile, and to warm up
            for batch in BATCHES:
                child.ask(batch, 1)
        seconds = {
            batch: _in_turns(children, batch, rounds * repeats, calls)
            for batch, (rounds, calls) in BATCHES.items()
        }
    finally:
        for child in children.values():
            child.end()
    columns = [f"{column}, batch {batch}" for batch in BATCHES for column in ("ms", "median, ms", "/ plain")]
    print(f"### ResNet-20, forward, {device}: least time, median, least time / that of `imae export`\n")
    print("| | " + " | ".join([*columns, "difference", "same class", "peak memory, MiB"]) + " |")
    print("| --- |" + " ---: |" * (len(columns) + 3))
    want = np.load(folder / "probabilities.npy")
    for way, child in children.items():
        cells = []
        for times in seconds.values():
            least = min(times[way])
            cells += [f"{1e3 * least:.3g}", f"{1e3 * statistics.median(times[way]):.3g}"]
            cells += [f"{least / min(times['plain']):.2f}"]
        got = np.load(folder / f"{way}_{device}.npy").reshape(want.shape)
        cells += [f"{np.abs(got - want).max():.1g}", f"{(got.argmax(1) == want.argmax(1)).mean():.3f}"]
        print(f"| {WAYS[way][0]} | " + " | ".join([*cells, f"{child.memory:.0f}"]) + " |")
    print("\n- difference: the largest one of the 128 images' probabilities to imae's plain net on the CPU")
    print("- peak memory: of the process, including Python and libraries, not of a GPU")


def _in_turns(children: Mapping[str, _Child], batch: int, rounds: int, calls: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {way: [] for way in children}
    for _ in range(rounds):
        for way, child in children.items():
            seconds[way] += child.ask(batch, calls)
    return seconds


class _Child:
    """A process of benchmarks/forward.py."""

    def __init__(self, way: str, python: str, folder: Path, device: str) -> None:
        self.memory = 0.0
        self._log = (folder / f"{way}_{device}.log").open("w+")
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.forward", way, str(folder), device],
            cwd=TOP,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, batch: int, calls: int) -> list[float]:
        """The seconds of `calls` calls. RuntimeError, with the log's end, if the process has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(f"{batch} {calls}\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"{self._process.args!r} ended: {self._log.read()[-2000:]}")
        answer = json.loads(line)
        self.memory = answer["memory"]
        seconds: list[float] = answer["seconds"]
        return seconds

    def end(self) -> None:
        self._process.communicate()
        self._log.close()


def write_models(folder: Path, weights: str, lmdb: str) -> None:
    """Write the net as prototxt and caffemodel, as ONNX in all forms, as arrays for PyTorch; 128 images."""
    param = deploy(resnet(20), 3, 32, 32)
    images = _images(lmdb)
    np.save(folder / "images.npy", images)
    (folder / "deploy.prototxt").write_text(to_text(param), encoding="utf-8")
    net = _with_phase(param, TEST)
    if weights:
        load_caffemodel(net, weights)
    else:
        trained = _with_phase(param, TRAIN)  # a TRAIN pass gives BatchNorm the statistics of the images
        with torch.no_grad():
            trained({"data": torch.from_numpy(images)})
        net.load_state_dict(trained.state_dict())
    with torch.no_grad():
        np.save(folder / "probabilities.npy", net({"data": torch.from_numpy(images)})["prob"].numpy())
    save_caffemodel(net, folder / "weights.caffemodel")
    _for_opencv(folder, param)
    plain, folded = (export_net(net, ExportOptions(fold=fold)).model for fold in (False, True))
    int8 = to_int8(folded, iter([(images, None)]))
    for name, model in (("plain", plain), ("folded", folded), ("int8", int8), ("fp16", to_fp16(folded))):
        onnx.save(model, folder / f"{name}.onnx")
    np.savez(folder / "plain.npz", **_arrays(net))  # type: ignore[arg-type]  # NumPy's stubs demand allow_pickle
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the newer exporter, which needs onnxscript
        torch.onnx.export(
            load_plain(folder),
            (torch.from_numpy(images[:2]),),
            folder / "torch.onnx",
            input_names=["data"],
            output_names=["prob"],
            dynamic_axes={"data": {0: "batch"}, "prob": {0: "batch"}},
            dynamo=False,
        )


def _for_opencv(folder: Path, param: NetParameter) -> None:
    """Write the net with its shortcuts as convolutions: OpenCV has no Pooling with round_mode FLOOR."""
    result = NetParameter(name=param.name)
    sources = {layer.top[0]: layer.bottom[0] for layer in param.layer if layer.type == "Pooling"}
    for layer in param.layer:
        if layer.type == "Concat":
            width = {"res2_1_pad": 32, "res3_1_pad": 64}[layer.name]
            convolution = {"num_output": width, "kernel_size": [1], "stride": [2], "bias_term": False}
            source = sources[layer.bottom[0]]
            add(
                result,
                "Convolution",
                "as_" + layer.name,
                source,
                top=layer.top[0],
                convolution_param=convolution,
            )
        elif not layer.name.endswith(("_half", "_zero")):
            result.layer.append(layer)
    (folder / "opencv.prototxt").write_text(to_text(result), encoding="utf-8")
    net = _with_phase(result, TEST)
    load_caffemodel(net, folder / "weights.caffemodel")
    for name, blobs in net.params.items():
        if name.startswith("as_"):
            nn.init.eye_(blobs[0].data[:, :, 0, 0])
    save_caffemodel(net, folder / "opencv.caffemodel")


def _images(lmdb: str) -> NDArray[np.float32]:
    if lmdb:
        transform = TransformationParameter(mean_value=CIFAR10_MEAN_BGR)
        return next(lmdb_batches(lmdb, Preprocessing(transform), 128))[0]
    pixels = np.random.default_rng(1).integers(0, 256, (128, 3, 32, 32)).astype(np.float32)
    return pixels - np.float32(120)


def _with_phase(param: NetParameter, phase: Phase) -> Net:
    result = NetParameter()
    result.CopyFrom(param)
    result.state.phase = phase
    return Net(result, Run(CaffeRandom(1)))


def _arrays(net: Net) -> dict[str, NDArray[np.float32]]:
    """The state of benchmarks.peers.resnet followed by a softmax. Its modules have the net's order."""
    layers = {
        kind: iter([layer for layer in net.layers if layer.type in types])
        for kind, types in (
            (nn.Conv2d, ("Convolution",)),
            (nn.BatchNorm2d, ("BatchNorm",)),
            (nn.Linear, ("InnerProduct",)),
        )
    }
    scales = iter([layer for layer in net.layers if layer.type == "Scale"])
    plain = nn.Sequential(plain_resnet(20), nn.Softmax(1))
    with torch.no_grad():
        for module in plain.modules():
            if type(module) not in layers:
                continue
            layer = next(layers[type(module)])
            if isinstance(module, nn.BatchNorm2d):
                mean, variance = layer.statistics()
                scale = next(scales)
                module.running_mean, module.running_var = mean.clone(), variance.clone()
                values = (scale.blob(0), scale.blob(1))
            else:
                values = tuple(layer.blobs)
            for parameter, value in zip(module.parameters(), values, strict=True):
                parameter.copy_(value)
    return {name: value.numpy() for name, value in plain.state_dict().items()}


def _opencv_environment(folder: Path) -> str:
    """The interpreter of a new environment with OpenCV 4."""
    venv.create(folder / "opencv", with_pip=True)
    python = str(folder / "opencv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*install, "opencv-python-headless<5"], check=True)
    return python


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=1, help="multiple of the usual rounds (1)")
    parser.add_argument("--opencv", action="store_true", help="compare with OpenCV 4; installs it")
    parser.add_argument("--opencv-python", default="", metavar="PYTHON", help="a Python with OpenCV 4")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS], help="only these, and plain")
    parser.add_argument("--weights", default="", metavar="CAFFEMODEL", help="for the paper's ResNet-20")
    parser.add_argument("--lmdb", default="", help="CIFAR-10 images of 32x32, instead of random ones")
