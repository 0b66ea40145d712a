"""How long from `python train/solve.py` to the first iteration of ResNet-20 on the CPU?

    python -m benchmarks startup [--rounds 3]

The time ends with the line `Iteration 0` in the log, after the forward and backward pass of the first batch.
For comparison: the time to start Python, and to import torch; with the end of that process, and without: a
tenth of it and more goes into taking torch's modules down again. The bytecode of the modules is kept, as an
installation has it, also where the environment says PYTHONDONTWRITEBYTECODE.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import in_turns, machine, table
from benchmarks.training import write_images
from imae.prototxt.models.resnet import paper_solver, resnet, with_cifar10_data
from imae.prototxt.text import to_text


def main(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = str(write_images(folder / "lmdb"))
        net = with_cifar10_data(resnet(20), source, source)
        (folder / "net.prototxt").write_text(to_text(net), encoding="utf-8")
        param = paper_solver("resnet20")
        param.net = str(folder / "net.prototxt")
        param.snapshot_prefix = str(folder / "x")
        (folder / "solver.prototxt").write_text(to_text(param), encoding="utf-8")
        ways: dict[str, Callable[[], object]] = {
            "python train/solve.py": lambda: _until(
                b"] Iteration 0 ", "train/solve.py", str(folder / "solver.prototxt")
            ),
            "import torch": lambda: _until(b"", "-c", "import torch"),
            "import torch, without its end": lambda: _until(b"", "-c", "import os, torch; os._exit(0)"),
            "python": lambda: _until(b"", "-c", ""),
        }
        timings = in_turns(ways, arguments.rounds, warm_up=1)
    print(machine() + "\n")
    print(table("Start of a training, warm disk", timings, "import torch", 1, "s"))


def _until(wanted: bytes, *arguments: str) -> None:
    """Run Python until it writes `wanted` to stderr; to its end if `wanted` is empty."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    seen = not wanted
    for line in process.stderr:
        if wanted and wanted in line:
            seen = True
            process.kill()
            break
    process.stderr.close()
    process.wait()
    if not seen:
        raise RuntimeError(f"{arguments[0]} ended without a line {wanted!r}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
