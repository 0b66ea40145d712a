"""Is training ResNet-20 on the CPU as fast as plain PyTorch, and how far is the machine's limit?

    python -m benchmarks training [--rounds 10] [--batch 128] [--depth 20]

imae runs its whole path: records from an LMDB, crop, mirror, mean, forward, backward, update. PyTorch gets
a batch that lies ready in memory.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import copy_rate, in_turns, machine, matrix_product_rate, peak_memory, table
from benchmarks.peers import operations, training_step
from imae.converters.lmdb_writer import write_lmdb
from imae.layers.data.datum import datum_from_array
from imae.prototxt import SolverParameter
from imae.prototxt.resnet import paper_solver, resnet, with_cifar10_data
from imae.train.device import keep_freed_memory
from imae.train.solver import Solver

CAFFE = 0.81  # seconds an iteration: Caffe's CPU build on 2 cores of AMD Zen 4


def write_images(path: Path, count: int = 2000, side: int = 40) -> Path:
    """An LMDB of random raw images, as CIFAR's with a padding of 4."""
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
    """The paper's solver on random images, without tests, logs and snapshots; `arguments` are Solver's."""
    source = folder / f"train_lmdb_{count}"
    if not source.exists():
        write_images(source, count)
    param = paper_solver(f"resnet{depth}")
    param.ClearField("net")
    param.net_param.CopyFrom(with_cifar10_data(resnet(depth, loss=loss), str(source), str(source), batch))
    for name in ("test_iter", "test_interval", "snapshot", "display"):
        param.ClearField(name)
    param.snapshot_after_train = False
    param.solver_mode = SolverParameter.CPU
    return Solver(param, **arguments)


def main(arguments: argparse.Namespace) -> None:
    keep_freed_memory()
    batch, depth = arguments.batch, arguments.depth
    with tempfile.TemporaryDirectory() as folder:
        solver = make_solver(Path(folder), batch, depth)
        ways = {
            "imae": lambda: solver.step(1),
            "PyTorch eager": training_step(batch, depth),
            "PyTorch channels-last": training_step(batch, depth, channels_last=True),
            "PyTorch compiled": training_step(batch, depth, compiled=True),
            "PyTorch compiled, channels-last": training_step(batch, depth, channels_last=True, compiled=True),
        }
        timings = in_turns(ways, arguments.rounds)
    best = min((name for name in timings if name != "imae"), key=lambda name: timings[name].least)
    print(machine() + "\n")
    print(table(f"ResNet-{depth}, batch {batch}, one training iteration", timings, best))
    work, rate = operations(depth, batch), matrix_product_rate()
    least = timings["imae"].least
    print(f"- an iteration is {work / 1e9:.1f} GFLOP; matrix products reach {rate / 1e9:.0f} GFLOP/s")
    print(f"- imae reaches {work / least / 1e9:.0f} GFLOP/s, {work / least / rate:.2f} of that")
    print(
        f"- a copy in memory: {copy_rate() / 1e9:.1f} GB/s; peak memory of all ways {peak_memory():.0f} MiB"
    )
    if (batch, depth) == (128, 20):
        print(
            f"- Caffe's CPU build (2 cores of AMD Zen 4): {CAFFE} s = {CAFFE / least:.2f} of imae's time here"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--depth", type=int, default=20)


__all__ = ["add_arguments", "main", "make_solver", "torch", "write_images"]
