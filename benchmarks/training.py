"""Is training ResNet-20 on the CPU as fast as plain PyTorch, and how near to the machine's limit?

    python -m benchmarks training [--rounds 10] [--batch 128] [--depth 20]

imae runs its whole path: records from an LMDB, crop, mirror, mean, forward, backward, update. PyTorch gets
a batch that is already in memory. Peak memory is measured in a separate process for each way.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import copy_rate, in_turns, machine, matrix_product, peak_memory, table
from benchmarks.peers import operations, training_step
from imae.converters.lmdb_writer import write_lmdb
from imae.layers.data.datum import datum_from_array
from imae.net.device import keep_freed_memory
from imae.prototxt import SolverParameter
from imae.prototxt.models.resnet import paper_solver, resnet, with_cifar10_data
from imae.train.options import Options
from imae.train.solver import Solver

# Caffe's CPU build on 2 cores of AMD Zen 4: seconds an iteration, and operations/s of matrix products there.
CAFFE, CAFFE_RATE = 0.81, 180e9
PEERS = {
    "PyTorch eager": {},
    "PyTorch channels-last": {"channels_last": True},
    "PyTorch compiled": {"compiled": True},
    "PyTorch compiled, channels-last": {"channels_last": True, "compiled": True},
}
PRODUCT, SIZE = "matrix product", 2048
LOSSES = {"imae": "IMAELoss", "imae, SoftmaxWithLoss": "SoftmaxWithLoss"}


def write_images(path: Path, count: int = 2000, side: int = 40) -> Path:
    """Write an LMDB of random raw images with the size of CIFAR's after a padding of 4."""
    random = np.random.default_rng(1)
    write_lmdb(
        path,
        (
            (b"%08d" % i, datum_from_array(random.integers(0, 256, (3, side, side), np.uint8), i % 10))
            for i in range(count)
        ),
    )
    return path


def make_solver(
    folder: Path, batch: int, depth: int, loss: str = "IMAELoss", count: int = 2000, **arguments: Any
) -> Solver:
    """The paper's solver on random images, without tests, logs and snapshots; `arguments` go to Options."""
    source = folder / f"train_lmdb_{count}"
    if not source.exists():
        write_images(source, count)
    param = paper_solver(f"resnet{depth}")
    param.ClearField("net")
    param.net_param.CopyFrom(with_cifar10_data(resnet(depth, loss=loss), str(source), str(source), batch))
    for name in ("test_iter", "test_interval", "test_initialization", "snapshot", "display", "average_loss"):
        param.ClearField(name)
    param.snapshot_after_train = False
    param.solver_mode = SolverParameter.CPU
    return Solver(param, Options(**arguments))


def main(arguments: argparse.Namespace) -> None:
    keep_freed_memory()
    batch, depth = arguments.batch, arguments.depth
    if arguments.alone:
        print(json.dumps(_alone(arguments.alone, batch, depth)))
        return
    with tempfile.TemporaryDirectory() as folder:
        ways = {name: _way(name, Path(folder), batch, depth) for name in (*LOSSES, *PEERS)}
        timings = in_turns({**ways, PRODUCT: matrix_product(SIZE)}, arguments.rounds, warm_up=3, rest=0)
    product, ours = timings.pop(PRODUCT), timings["imae"]
    best = max(PEERS, key=lambda name: ours.ratio(timings[name]))
    print(machine() + "\n")
    print(table(f"ResNet-{depth}, batch {batch}, one training iteration", timings, best))
    work, unit, rate = operations(depth, batch), 2 * SIZE**3, 2 * SIZE**3 / product.least
    least = min(timings[name].least for name in PEERS)
    print(
        f"- imae's time / the best plain PyTorch's ({best}): {ours.ratio(timings[best]):.2f}, the median "
        f"over the rounds; {ours.least / least:.2f} by the least times"
    )
    print(f"- an iteration is {work / 1e9:.1f} GFLOP; matrix products reach {rate / 1e9:.0f} GFLOP/s at best")
    print(
        f"- imae reaches {work / ours.least / 1e9:.0f} GFLOP/s at best; its rate / a matrix product's in the "
        f"same round: {work / unit / ours.ratio(product):.2f}, the median"
    )
    print(f"- a copy in memory: {copy_rate() / 1e9:.1f} GB/s")
    if (batch, depth) == (128, 20):
        scaled = CAFFE * CAFFE_RATE / unit / ours.ratio(product)
        print(
            f"- Caffe's CPU build (2 cores of AMD Zen 4, matrix products {CAFFE_RATE / 1e9:.0f} GFLOP/s): "
            f"{CAFFE} s = {CAFFE / ours.least:.2f} times imae's least time here; scaled by the two machines' "
            f"rates of matrix products: {scaled:.2f} times, the median over the rounds"
        )
    print("\n| trained alone | peak memory, MiB | without the libraries |\n| --- | ---: | ---: |")
    for name in ways:
        command = [sys.executable, "-m", "benchmarks", "training", "--alone", name]
        command += ["--batch", str(batch), "--depth", str(depth)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        before, peak = json.loads(done.stdout.splitlines()[-1])
        print(f"| {name} | {peak:.0f} | {peak - before:.0f} |", flush=True)


def _way(name: str, folder: Path, batch: int, depth: int) -> Callable[[], object]:
    """A function that runs one iteration."""
    if name in PEERS:
        return training_step(batch, depth, **PEERS[name])
    return partial(make_solver(folder, batch, depth, LOSSES[name]).step, 1)


def _alone(name: str, batch: int, depth: int) -> tuple[float, float]:
    """Peak memory of this process, in MiB, before and after it trains this way."""
    before = peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        way = _way(name, Path(folder), batch, depth)
        for _ in range(3):
            way()
    return before, peak_memory()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--alone", default="", help=argparse.SUPPRESS)


__all__ = ["add_arguments", "main", "make_solver", "torch", "write_images"]
