"""One way to compute a forward pass, in its own process, so that memory and threads can be measured alone.

    python -m benchmarks.forward WAY FOLDER DEVICE

It answers lines `BATCH CALLS` on stdin with JSON: the seconds of CALLS calls, after one that is not counted,
and the peak resident memory so far in MiB. FOLDER holds images.npy, the models, and the weights of the plain
PyTorch net; the probabilities of all images are first written there. Except NumPy, only what the way needs is
imported, since OpenCV 4 has its own environment.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn

    from imae.net.step import Step

# From images to probabilities, both in host memory.
Forward = Callable[[Any], Any]


def onnx_runtime(path: Path, device: str) -> Forward:
    """ONNX Runtime with its default settings on the CPU; on CUDA as in `imae run`."""
    if device == "cuda":
        from imae.converters.run_onnx import open_session, run_bound

        bound = open_session(path, "CUDA")
        return lambda images: run_bound(bound, "data", images, "prob", "cuda")
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["prob"], {"data": images})[0]


def imae_net(folder: Path, device: str, fold: bool = False, fast: bool = False) -> Forward:
    """imae's own net: plain, with BatchNorm and shortcuts folded, or as `imae test` runs it."""
    import torch

    from imae.net.fold import fold_batch_norm, fold_shortcuts
    from imae.net.net import Net
    from imae.net.weights import load_caffemodel
    from imae.prototxt import TEST
    from imae.prototxt.text import read_net

    param = read_net(folder / "deploy.prototxt")
    param.state.phase = TEST
    net = Net(param)
    load_caffemodel(net, folder / "weights.caffemodel")
    net.to(device)
    if fast:
        from imae.net.inference import plan_inference

        run = plan_inference(net, ["prob"]).run
    else:
        steps: Sequence[Step] = fold_shortcuts(net, fold_batch_norm(net)) if fold else net.steps
        run = partial(net, plan=steps)

    def forward(images: Any) -> Any:
        with torch.inference_mode():
            return run({"data": torch.from_numpy(images).to(device)})["prob"].cpu().numpy()

    return forward


def plain_torch(folder: Path, device: str, channels_last: bool = False, compiled: bool = False) -> Forward:
    """The same net in plain PyTorch."""
    import torch

    net = load_plain(folder).to(device)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(memory_format=memory_format)  # type: ignore[call-overload]  # not in torch's stubs
    run = torch.compile(net) if compiled else net

    def forward(images: Any) -> Any:
        with torch.inference_mode():
            x = torch.from_numpy(images).to(device).contiguous(memory_format=memory_format)
            return run(x).cpu().numpy()

    return forward


def load_plain(folder: Path) -> nn.Module:
    """benchmarks.peers.resnet followed by a softmax, with the weights of plain.npz."""
    import torch
    from torch import nn

    from benchmarks.peers import resnet

    net = nn.Sequential(resnet(20), nn.Softmax(1)).eval()
    with np.load(folder / "plain.npz") as arrays:
        net.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    return net


def opencv(folder: Path, device: str) -> Forward:
    """OpenCV's reader of prototxt and caffemodel. Its Pooling always rounds up: see inference._for_opencv."""
    import cv2

    net = cv2.dnn.readNetFromCaffe(str(folder / "opencv.prototxt"), str(folder / "opencv.caffemodel"))

    def forward(images: Any) -> Any:
        net.setInput(images)
        return net.forward().copy()

    return forward


WAYS: dict[str, tuple[str, Callable[[Path, str], Forward]]] = {
    "plain": ("ONNX Runtime, imae export", lambda f, d: onnx_runtime(f / "plain.onnx", d)),
    "folded": ("ONNX Runtime, imae export --fold", lambda f, d: onnx_runtime(f / "folded.onnx", d)),
    "fp16": ("ONNX Runtime, --fold, fp16", lambda f, d: onnx_runtime(f / "fp16.onnx", d)),
    "int8": ("ONNX Runtime, --fold, int8", lambda f, d: onnx_runtime(f / "int8.onnx", d)),
    "torch_onnx": ("ONNX Runtime, torch.onnx.export", lambda f, d: onnx_runtime(f / "torch.onnx", d)),
    "imae": ("imae's net", imae_net),
    "imae_folded": ("imae's net, folded", lambda f, d: imae_net(f, d, fold=True)),
    "imae_fast": ("imae's net, as `imae test` runs it", lambda f, d: imae_net(f, d, fast=True)),
    "eager": ("PyTorch eager", lambda f, d: plain_torch(f, d)),
    "last": ("PyTorch eager, channels-last", lambda f, d: plain_torch(f, d, channels_last=True)),
    "compiled": (
        "PyTorch compiled, channels-last",
        lambda f, d: plain_torch(f, d, channels_last=True, compiled=True),
    ),
    "opencv": ("OpenCV, prototxt and caffemodel", opencv),
}


def main() -> None:
    way, folder, device = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    answers, sys.stdout = sys.stdout, sys.stderr  # keep the output of libraries out of the answers
    images = np.load(folder / "images.npy")
    forward = WAYS[way][1](folder, device)
    np.save(folder / f"{way}_{device}.npy", forward(images))
    for line in sys.stdin:
        batch, calls = map(int, line.split())
        batch_images = images[:batch]
        forward(batch_images)
        seconds = []
        for _ in range(calls):
            begun = time.perf_counter()
            forward(batch_images)
            seconds.append(time.perf_counter() - begun)
        print(json.dumps({"seconds": seconds, "memory": _peak_memory()}), file=answers, flush=True)


def _peak_memory() -> float:
    """Peak memory in MiB. Linux's getrusage would include the parent's memory before this program started."""
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
