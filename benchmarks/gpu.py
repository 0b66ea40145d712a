"""How fast does a GPU train, compared to a PyTorch loop and to its rate of matrix products?

    python -m benchmarks gpu [--depths 20,56] [--rounds 5] [--together 1,2,4]

imae runs its whole path: draws on the host, records on the device, crop, mirror, mean, both passes, update.
PyTorch gets a batch that is already on the device. `--together` measures the total rate of several trainings
at once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch

from benchmarks.measure import in_turns, machine
from benchmarks.peers import operations, training_step
from benchmarks.training import make_solver
from imae.net.cuda_graph import CudaRecorder
from imae.train.solver import Solver

BATCH, ITERATIONS = 128, 50
PRECISIONS = ("fp32", "tf32", "bf16")


def main(arguments: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        print("There is no GPU here.")
        return
    if arguments.alone:
        _train_alone(Path(arguments.alone))
        return
    print(machine() + "\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"- after one iteration in fp32 the weights are {_distance(folder):.1e} from the CPU's")
        for precision in PRECISIONS:
            print(f"- matrix products reach {_product_rate(precision) / 1e12:.1f} TFLOP/s in {precision}")
        for depth in map(int, arguments.depths.split(",")):
            _compare(folder, depth, arguments.rounds)
        _side_by_side(folder, [int(count) for count in arguments.together.split(",")])


def _allow_tf32(precision: str) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def _solver(
    folder: Path,
    depth: int,
    precision: str,
    recorded: bool,
    compiled: bool = False,
    channels_last: bool | None = None,
) -> Solver:
    device = torch.device("cuda", torch.cuda.current_device())
    return make_solver(
        folder,
        BATCH,
        depth,
        device=device,
        reduced=torch.bfloat16 if precision == "bf16" else None,
        compiled=compiled,
        channels_last=channels_last,
        recorder=(lambda: CudaRecorder(device)) if recorded else None,
    )


def _compare(folder: Path, depth: int, rounds: int) -> None:
    """Print a table: iterations per second of each way."""
    ways: dict[str, tuple[str, Callable[[], None]]] = {}
    solver = _solver(folder, depth, "fp32", recorded=False)
    ways["imae, fp32, each kernel launched"] = "fp32", lambda solver=solver: solver.step(ITERATIONS)
    for precision in PRECISIONS:
        for compiled, channels_last in ((False, False), (False, True), (True, False), (True, True)):
            solver = _solver(folder, depth, precision, True, compiled, channels_last)
            name = f"imae, {precision}, CUDA graphs" + (", compiled" if compiled else "")
            name += ", channels-last" if channels_last else ""
            ways[name] = precision, lambda solver=solver: solver.step(ITERATIONS)
    for precision in ("fp32", "tf32"):
        for channels_last, compiled in ((False, False), (True, False), (True, True)):
            step = training_step(BATCH, depth, channels_last, compiled, "cuda")
            name = f"PyTorch {'compiled' if compiled else 'eager'}, {precision}"
            name += ", channels-last" if channels_last else ""
            ways[name] = precision, lambda step=step: _repeat(step)

    def timed(precision: str, work: Callable[[], None]) -> Callable[[], None]:
        def way() -> None:
            _allow_tf32(precision)
            work()
            torch.cuda.synchronize()

        return way

    timings = in_turns({name: timed(*way) for name, way in ways.items()}, rounds)
    eager = timings["PyTorch eager, fp32"].least
    print(f"\n### ResNet-{depth}, batch {BATCH}\n")
    print("| | iterations per second, most | median | times PyTorch eager, fp32 | TFLOP/s |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, timing in timings.items():
        rates = ITERATIONS / timing.least, ITERATIONS / timing.median
        work = operations(depth, BATCH) * rates[0] / 1e12
        print(f"| {name} | {rates[0]:.0f} | {rates[1]:.0f} | {eager / timing.least:.2f} | {work:.1f} |")
    print(f"\n- peak memory of all ways together: {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")


def _repeat(step: Callable[[], None]) -> None:
    for _ in range(ITERATIONS):
        step()


def _distance(folder: Path) -> float:
    """Relative L2 distance of the weights on the GPU from those on the CPU, after one iteration."""
    _allow_tf32("fp32")
    solvers = _solver(folder, 20, "fp32", False), make_solver(folder, BATCH, 20, fast=False)
    weights = []
    for solver in solvers:
        solver.step(1)
        weights.append(torch.cat([p.detach().cpu().flatten() for p in solver.net.learnable]))
    return float((weights[0] - weights[1]).norm() / weights[1].norm())


def _product_rate(precision: str, size: int = 8192) -> float:
    """The rate of matrix products on the device, in operations per second."""
    _allow_tf32(precision)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))

    def multiply() -> None:
        torch.mm(a, b)
        torch.cuda.synchronize()

    return 2 * size**3 / in_turns({"mm": multiply}, 5)["mm"].least


def _side_by_side(folder: Path, counts: list[int]) -> None:
    """Print the total iterations per second of several trainings of ResNet-20 at once, each a process."""
    print("\n### ResNet-20 in fp32, CUDA graphs, several at once\n")
    print("| trainings | iterations per second, all together | times one |\n| ---: | ---: | ---: |")
    one = 0.0
    for count in counts:
        command = [sys.executable, "-m", "benchmarks", "gpu", "--alone", str(folder)]
        pipe = subprocess.PIPE
        started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()  # "ready"
        begun = time.perf_counter()
        for process in started:
            process.communicate("go\n")
        rate = count * 20 * ITERATIONS / (time.perf_counter() - begun)
        one = one or rate / count
        print(f"| {count} | {rate:.0f} | {rate / one:.2f} |", flush=True)


def _train_alone(folder: Path) -> None:
    """One of several trainings: prepare, print "ready", wait for a line on stdin, train."""
    with redirect_stderr(StringIO()):
        solver = _solver(folder, 20, "fp32", recorded=True)
        solver.step(10)
    torch.cuda.synchronize()
    print("ready", flush=True)
    sys.stdin.readline()
    solver.step(20 * ITERATIONS)
    torch.cuda.synchronize()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--depths", default="20,56")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--together", default="1,2,4")
    parser.add_argument("--alone", default="", help=argparse.SUPPRESS)
