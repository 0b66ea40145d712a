"""How do time and memory grow with the batch, the depth, the number of images and the threads?

    python -m benchmarks scaling [--rounds 3]

Each line runs in its own process, to measure imae's peak memory before PyTorch's net starts. For comparison,
the same net in plain PyTorch, channels-last, with a batch that is already in memory; both are timed in turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import in_turns, machine, peak_memory
from benchmarks.peers import operations, training_step
from benchmarks.training import make_solver
from imae.net.device import keep_freed_memory

BATCHES = (32, 128, 512, 1024)
DEPTHS = (20, 56, 110)
IMAGES = (5000, 50000)
LARGEST_PEER = 512 * 20  # batch times depth


def main(arguments: argparse.Namespace) -> None:
    if arguments.one:
        print(json.dumps(_measure(**json.loads(arguments.one), rounds=arguments.rounds)))
        return
    base = {"batch": 128, "depth": 20, "images": 5000, "threads": torch.get_num_threads()}
    cases = [{**base, "batch": batch} for batch in BATCHES]
    cases += [{**base, "depth": depth} for depth in DEPTHS[1:]]
    cases += [{**base, "images": images} for images in IMAGES[1:]]
    cases += [{**base, "threads": 1}] if base["threads"] > 1 else []
    print(machine() + "\n")
    print(
        "| batch | depth | images | threads | iteration, ms | an image, ms | GFLOP/s "
        "| PyTorch channels-last, ms | imae / PyTorch | peak memory, MiB |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for case in cases:
        command = [sys.executable, "-m", "benchmarks", "scaling", "--rounds", str(arguments.rounds)]
        done = subprocess.run(
            [*command, "--one", json.dumps(case)], capture_output=True, text=True, check=True
        )
        figures = json.loads(done.stdout.splitlines()[-1])
        seconds, peer = figures["seconds"], figures["peer"]
        rate = operations(case["depth"], case["batch"]) / seconds / 1e9
        cells = [
            *case.values(),
            f"{1e3 * seconds:.0f}",
            f"{1e3 * seconds / case['batch']:.2f}",
            f"{rate:.0f}",
        ]
        cells += [f"{1e3 * peer:.0f}", f"{seconds / peer:.2f}"] if peer else ["", ""]
        print("| " + " | ".join(map(str, [*cells, f"{figures['memory']:.0f}"])) + " |", flush=True)


def _measure(batch: int, depth: int, images: int, threads: int, rounds: int) -> dict[str, float]:
    """Seconds of an iteration by imae and by PyTorch (0: not measured, too slow), and imae's peak memory."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    cheap = batch * depth <= LARGEST_PEER
    with tempfile.TemporaryDirectory() as folder:
        solver = make_solver(Path(folder), batch, depth, count=images)
        solver.step(2)
        memory = peak_memory()
        ways: dict[str, Callable[[], object]] = {"imae": lambda: solver.step(1)}
        if cheap:
            ways["PyTorch"] = training_step(batch, depth, channels_last=True)
        timings = in_turns(ways, rounds if cheap else min(rounds, 2), warm_up=1)
    peer = timings["PyTorch"].least if cheap else 0.0
    return {"seconds": timings["imae"].least, "peer": peer, "memory": memory}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
