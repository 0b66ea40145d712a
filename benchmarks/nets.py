"""Are the nets that people have trained and tested as fast as by plain PyTorch, ONNX Runtime and OpenCV?

    python -m benchmarks nets [--full] [--nets CaffeNet ...] [--compiled all] [--opencv-python PYTHON]

CaffeNet, GoogLeNet, VGG-16, ResNet-50, MobileNet and a small SSD (architectures.py), of random weights, with
one image and with a usual batch. Images are in memory; no way reads data. PyTorch has the same layers as a
user of PyTorch writes them (plain_modules.py). All ways of a net are timed in turns in one process, OpenCV in
one of its own; memory is measured in a process of its own for each way. That takes half an hour, most of it
torch.compile's: --full is for it. By default VGG-16, torch.compile and memory are left out, and a net has
seconds alone in each table, so that all takes three to four minutes; --nets, --compiled, --memory and
--seconds choose otherwise.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.architectures import NETS, Architecture
from benchmarks.measure import REST, Timing, in_turns, machine, matrix_product, peak_memory
from benchmarks.plain_modules import PlainNet
from benchmarks.zoo import fill
from imae.layers.layer import DataLayer, Shape
from imae.layers.registry import register_layer
from imae.net.device import keep_freed_memory
from imae.net.inference import plan_inference
from imae.net.net import Net
from imae.prototxt import TEST, TRAIN, SolverParameter
from imae.train.options import Options
from imae.train.solver import Solver

SLOW = ("VGG-16",)  # left out by default
Ways = dict[str, Callable[[], object]]
PRODUCT, SIZE = "matrix product", 1024
IMAE, EAGER, LAST, COMPILED = "imae", "eager", "channels-last", "compiled"
RUNTIME, OPENCV = "ONNX Runtime", "OpenCV"
RATE, MOMENTUM, DECAY = 1e-6, 0.9, 5e-4
OPENCV_PROCESS = """
import sys, cv2, numpy as np
net = cv2.dnn.readNetFromCaffe(sys.argv[1], sys.argv[2])
images = np.load(sys.argv[3])
for line in sys.stdin:
    net.setInput(images)
    outputs = net.forward(sys.argv[4:])
    if line.strip():
        np.savez(line.strip(), *outputs)
    print("done", flush=True)
"""


@register_layer("Given")
class Given(DataLayer):
    """Tops that are in memory already: `tensors`, of the shapes in dummy_data_param."""

    num_bottoms = 0
    reads = ("dummy_data_param",)
    tensors: tuple[Tensor, ...] = ()

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [tuple(shape.dim) for shape in self.param.dummy_data_param.shape]

    def next_batch(self) -> tuple[Tensor, ...]:
        return self.tensors


def make_solver(architecture: Architecture, count: int) -> Solver:
    """The solver as `imae train` makes it, on `count` images."""
    param = SolverParameter(net_param=architecture.net(count, TRAIN), base_lr=RATE, lr_policy="fixed")
    param.MergeFrom(SolverParameter(momentum=MOMENTUM, weight_decay=DECAY, random_seed=1, solver_mode="CPU"))
    param.snapshot_after_train = False
    solver = Solver(param, Options())
    fill(solver.net)
    (data,) = (layer for layer in solver.net.layers if isinstance(layer, Given))
    data.tensors = tuple(architecture.batch(count).values())
    return solver


def plain_step(
    architecture: Architecture, count: int, channels_last: bool = False, compiled: bool = False
) -> Callable[[], Tensor]:
    """A function that runs one iteration in plain PyTorch and returns the loss."""
    net, batch = _filled(architecture, count, TRAIN), architecture.batch(count)
    plain = PlainNet(net)
    del net
    gc.collect()
    if channels_last:
        plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        batch["data"] = batch["data"].contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(plain.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY)
    run = torch.compile(plain) if compiled else plain

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss: Tensor = run(**batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
        return loss.detach()

    return step


def _filled(architecture: Architecture, count: int, phase: int) -> Net:
    net = Net(architecture.net(count, phase))
    fill(net)
    return net


def training_ways(architecture: Architecture, count: int, compiled: bool) -> Ways:
    """The ways to run one iteration."""
    ways: Ways = {IMAE: partial(make_solver(architecture, count).step, 1)}
    ways[EAGER] = plain_step(architecture, count)
    ways[LAST] = plain_step(architecture, count, channels_last=True)
    if compiled:
        ways[COMPILED] = plain_step(architecture, count, channels_last=True, compiled=True)
    return ways


def test_ways(architecture: Architecture, count: int, compiled: bool, folder: Path, opencv: str) -> Ways:
    """The ways to compute the outputs of `count` images, each a function that returns them."""
    net, images = _filled(architecture, count, TEST), architecture.batch(count)["data"]
    outputs = architecture.outputs
    ways: Ways = {IMAE: imae_pass(net, images, outputs)}
    for name, channels_last in ((EAGER, False), (LAST, True)):
        ways[name] = plain_pass(net, images, outputs, channels_last)
    if compiled:
        ways[COMPILED] = plain_pass(net, images, outputs, channels_last=True, compiled=True)
    ways[RUNTIME] = runtime_pass(net, images, outputs)
    if opencv:
        ways[OPENCV] = OpenCV(net, images, outputs, folder, opencv)
    return ways


def imae_pass(net: Net, images: Tensor, outputs: Sequence[str]) -> Callable[[], list[Tensor]]:
    """As `imae test` computes."""
    plan = plan_inference(net, outputs)

    def forward() -> list[Tensor]:
        blobs = plan.run({"data": images})
        return [blobs[name] for name in outputs]

    return forward


def plain_pass(
    net: Net, images: Tensor, outputs: Sequence[str], channels_last: bool, compiled: bool = False
) -> Callable[[], list[Tensor]]:
    plain = PlainNet(net, outputs)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    plain.to(memory_format=memory_format)  # type: ignore[call-overload]  # not in torch's stubs
    run = torch.compile(plain) if compiled else plain

    def forward() -> list[Tensor]:
        with torch.inference_mode():
            return list(run(data=images.contiguous(memory_format=memory_format)))

    return forward


def runtime_pass(net: Net, images: Tensor, outputs: Sequence[str]) -> Callable[[], list[Any]]:
    """ONNX Runtime on what `imae export` writes, with as many threads as torch."""
    import onnxruntime

    from imae.converters.export_onnx import ExportOptions, export_net

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its threads are not alone here
    model = export_net(net, ExportOptions(dynamic_batch=False)).model.SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {"data": images.numpy()}
    return lambda: session.run(list(outputs), feeds)


class OpenCV:
    """OpenCV 4 in a process of its own, which reads prototxt and caffemodel; a call is a pass there.

    Nothing but a line goes through the pipes, so that a call takes as long as the pass.
    """

    def __init__(self, net: Net, images: Tensor, outputs: Sequence[str], folder: Path, python: str) -> None:
        from imae.net.weights import save_caffemodel
        from imae.prototxt.text import to_text

        (folder / "net.prototxt").write_text(to_text(net.param), encoding="utf-8")
        save_caffemodel(net, folder / "net.caffemodel")
        np.save(folder / "images.npy", images.numpy())
        self.outputs, self.folder = list(outputs), folder
        files = [str(folder / name) for name in ("net.prototxt", "net.caffemodel", "images.npy")]
        self.process = subprocess.Popen(
            [python, "-c", OPENCV_PROCESS, *files, *outputs],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self) -> None:
        self._ask("")

    def results(self) -> list[Tensor]:
        """The outputs of a pass, which the process writes to a file."""
        self._ask(str(self.folder / "outputs.npz"))
        with np.load(self.folder / "outputs.npz", allow_pickle=False) as arrays:
            return [torch.from_numpy(arrays[name]) for name in arrays.files]

    def _ask(self, line: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        if not self.process.stdout.readline():
            raise RuntimeError("OpenCV's process has ended; what it said is above")

    def end(self) -> None:
        self.process.communicate()


def work(architecture: Architecture, count: int, phase: int) -> int:
    """Multiplications and additions of a forward pass in TEST, or of an iteration in TRAIN.

    Backward takes twice as many, except for layers that read the images: these get no gradient.
    """
    net = Net(architecture.net(count, phase))
    total = 0
    for step in net.steps:
        bottoms, tops = ([net.blob_shapes[name] for name in names] for names in (step.bottoms, step.tops))
        passes = 1 if phase == TEST else 3 if any(step.bottom_need_backward) else 2
        total += 2 * passes * step.layer.multiply_adds(bottoms, tops)
    return total


def main(arguments: argparse.Namespace) -> None:
    if arguments.measure_memory:
        print(json.dumps(_all_memory(arguments.measure_memory)))
        return
    keep_freed_memory()
    print(machine() + "\n")
    full = arguments.full
    names = arguments.nets or [name for name in NETS if full or name not in SLOW]
    compiled = names if full or arguments.compiled == ["all"] else arguments.compiled
    memory = _memory(names) if full or arguments.memory else {}
    for phase, question in ((TRAIN, "one training iteration"), (TEST, "one forward pass in TEST")):
        if arguments.phase not in ("", "train" if phase == TRAIN else "test"):
            continue
        for usual in (False, True):
            rows = []
            for name in names:
                architecture = NETS[name]
                count = 1 if not usual else architecture.train if phase == TRAIN else architecture.test
                timings = _timings(architecture, count, phase, name in compiled, arguments)
                rows.append((f"{name}, {count}", work(architecture, count, phase), timings))
            print(_table(question + (", a usual batch" if usual else ", one image"), rows), flush=True)
    if memory:
        print("### Peak memory of a training, MiB, without the libraries: each way in a process of its own\n")
        print(
            f"| net, batch | {' | '.join(MEASURED)} | imae / {EAGER} |\n| --- | ---: | ---: | ---: | ---: |"
        )
        for name in names:
            peaks = [memory[f"{name} {way}"] for way in MEASURED]
            cells = [*(f"{peak:.0f}" for peak in peaks), f"{peaks[0] / peaks[1]:.2f}"]
            print(f"| {name}, {NETS[name].train} | {' | '.join(cells)} |")
        print()


def _timings(
    architecture: Architecture, count: int, phase: int, compiled: bool, arguments: argparse.Namespace
) -> Mapping[str, Timing]:
    gc.collect()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.compile's, about its own modules
        if phase == TRAIN:
            ways = training_ways(architecture, count, compiled)
        else:
            ways = test_ways(architecture, count, compiled, Path(folder), arguments.opencv_python)
        rounds = arguments.rounds if count > 1 else 2 * arguments.rounds
        try:
            ways_and_product = {**ways, PRODUCT: matrix_product(SIZE)}
            rest = None if phase == TRAIN else REST
            seconds = math.inf if arguments.full else arguments.seconds
            return in_turns(ways_and_product, rounds, warm_up=1, rest=rest, seconds=seconds)
        finally:
            for way in ways.values():
                if isinstance(way, OpenCV):
                    way.end()


def _table(title: str, rows: Iterable[tuple[str, int, Mapping[str, Timing]]]) -> str:
    """Least times; ratios are medians over the rounds."""
    rows = list(rows)
    others = list(dict.fromkeys(way for *_, timings in rows for way in timings if way not in (IMAE, PRODUCT)))
    heads = ["imae, ms", *(f"imae / {way}" for way in others), "imae / best PyTorch", "GFLOP", "of the rate"]
    lines = [f"### {title}", "", f"| net, batch | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for name, operations, timings in rows:
        ours = timings[IMAE]
        ratios = {way: ours.ratio(timings[way]) for way in others if way in timings}
        best = max(ratio for way, ratio in ratios.items() if way not in (RUNTIME, OPENCV))
        share = operations / (2 * SIZE**3) / ours.ratio(timings[PRODUCT])
        cells = [
            f"{1e3 * ours.least:.4g}",
            *(f"{ratios[way]:.2f}" if way in ratios else "" for way in others),
        ]
        cells += [f"{best:.2f}", f"{operations / 1e9:.1f}", f"{share:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "- imae, ms: the least; ratios: medians of those in each round"]
    lines += [f"- of the rate: of GFLOP per second in a product of matrices of {SIZE} in the same round", ""]
    return "\n".join(lines)


# -- memory --------------------------------------------------------------------------------------------------

MEASURED = (IMAE, EAGER, LAST)


def _memory(names: Sequence[str]) -> dict[str, float]:
    """MiB by net and way, from a process that forks one for each."""
    command = [sys.executable, "-m", "benchmarks", "nets", "--measure-memory", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _all_memory(names: Sequence[str]) -> dict[str, float]:
    # Forked before torch has started threads: importing the libraries for each of them takes longer.
    context = multiprocessing.get_context("fork")
    peaks = {}
    for name in names:
        for way in MEASURED:
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(target=_one_memory, args=(name, way, sending))
            process.start()
            sending.close()
            peaks[f"{name} {way}"] = receiving.recv()
            process.join()
    return peaks


def _one_memory(name: str, way: str, sending: Any) -> None:
    """Send the MiB by which two iterations raise this process's peak; the second has all that is kept."""
    before = peak_memory()
    architecture = NETS[name]
    if way == IMAE:
        keep_freed_memory()
        step: Callable[[], object] = partial(make_solver(architecture, architecture.train).step, 1)
    else:
        step = plain_step(architecture, architecture.train, channels_last=way == LAST)
    for _ in range(2):
        step()
    sending.send(peak_memory() - before)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--full", action="store_true", help="all nets, all rounds, torch.compile, memory")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=[], help="only these")
    parser.add_argument(
        "--rounds", type=int, default=5, help="with a usual batch; twice as many with one image"
    )
    parser.add_argument("--seconds", type=float, default=3, help="for a net in a table; two rounds at least")
    parser.add_argument(
        "--compiled", nargs="*", choices=[*NETS, "all"], default=[], help="by torch.compile, too"
    )
    parser.add_argument("--opencv-python", default="", metavar="PYTHON", help="a Python with OpenCV 4")
    parser.add_argument("--phase", choices=("train", "test"), default="", help="only this one")
    parser.add_argument("--memory", action="store_true", help="measure the peak memory of a training")
    parser.add_argument("--measure-memory", nargs="+", default=[], help=argparse.SUPPRESS)
