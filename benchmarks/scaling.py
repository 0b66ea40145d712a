"""How do time and memory grow with the batch, the depth, the number of images and the threads?

    python -m benchmarks scaling [--rounds 3]

Each line is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.measure import in_turns, machine, peak_memory
from benchmarks.peers import operations
from benchmarks.training import make_solver
from imae.train.device import keep_freed_memory

BATCHES = (32, 128, 512, 1024)
DEPTHS = (20, 56, 110)
IMAGES = (5000, 50000)


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
    print("| batch | depth | images | threads | iteration, ms | GFLOP/s | peak memory, MiB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for case in cases:
        command = [sys.executable, "-m", "benchmarks", "scaling", "--rounds", str(arguments.rounds)]
        done = subprocess.run(
            [*command, "--one", json.dumps(case)], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        rate = operations(case["depth"], case["batch"]) / found["seconds"] / 1e9
        cells = [*case.values(), f"{1e3 * found['seconds']:.0f}", f"{rate:.0f}", f"{found['memory']:.0f}"]
        print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def _measure(batch: int, depth: int, images: int, threads: int, rounds: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        solver = make_solver(Path(folder), batch, depth, count=images)
        timing = in_turns({"imae": lambda: solver.step(1)}, rounds, warm_up=1)["imae"]
    return {"seconds": timing.least, "memory": peak_memory()}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
