"""`imae demo`: the whole path on handwritten digits, each step as the command that a user would type.

Digits to LMDB, 40 % of the training labels made wrong, a net trained with CCE and one with IMAE, both tested,
exported to ONNX and run in ONNX Runtime. The net's accuracy and the ONNX model's must agree to four digits.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

from imae.prototxt.errors import ImaeError

COMMAND = "demo"
HELP = "the whole path on handwritten digits: data, label noise, training, test, ONNX"

MODELS = "prototxt/models/digits"
DATA = (
    "imae convert-digits data",
    "imae corrupt-labels data/digits_train_lmdb data/digits_train_noisy40_lmdb "
    "--noise symmetric-exclusive --rate 0.4 --seed 1",
)
TRAIN = "python train/solve.py {models}/{loss}_solver.prototxt"
TEST = "imae test --model {models}/{loss}_train_val.prototxt --weights {weights} --iterations 3"
EXPORT = (
    "imae export --model {models}/{loss}_train_val.prototxt --weights {weights} "
    "--output data/digits_{loss}.onnx --fold"
)
RUN = "imae run data/digits_{loss}.onnx --lmdb data/digits_test_lmdb"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none: it runs in the repository's top folder and writes into data/ and snapshots/."""


def run(args: argparse.Namespace) -> None:
    """Run all steps; ImaeError where one fails or the two accuracies disagree."""
    if not Path(MODELS).is_dir():
        raise ImaeError(f"there is no {MODELS} here; run `imae demo` in the repository's top folder")
    Path("snapshots").mkdir(exist_ok=True)
    for command, made in zip(DATA, ("data/digits_train_lmdb", "data/digits_train_noisy40_lmdb"), strict=True):
        if not Path(made).exists():
            _step(command)
    results = []
    for loss in ("cce", "imae"):
        names = {"models": MODELS, "loss": loss, "weights": f"snapshots/digits_{loss}_iter_1200.caffemodel"}
        log = _step(TRAIN.format(**names), show=r"Testing net|Test net output|Optimization Done")
        tests = [float(x) for x in re.findall(r"Test net output #0: accuracy = (\S+)", log)]
        net = _accuracy(_step(TEST.format(**names), show=r"\] accuracy = "))
        _step(EXPORT.format(**names), show=r"^(wrote|largest)")
        onnx = _accuracy(_step(RUN.format(**names)))
        if f"{net:.4f}" != f"{onnx:.4f}":
            raise ImaeError(
                f"{loss}: the net's accuracy is {net:.4f}, the ONNX model's {onnx:.4f}; they must be equal"
            )
        results.append((loss, max(tests), net, onnx))
    print("\nTest accuracy after training with 40 % wrong labels (297 clean test digits, one run each):\n")
    print(f"{'loss':6}{'best':>8}{'final':>8}{'ONNX':>8}")
    for loss, best, net, onnx in results:
        print(f"{loss.upper():6}{best:8.4f}{net:8.4f}{onnx:8.4f}")


def _step(command: str, show: str = "") -> str:
    """Print and run a command; show its output, or the lines that match `show`. Returns the output."""
    print(f"\n$ {command}", flush=True)
    words = shlex.split(command)
    program = [sys.executable, "-m", "imae.train.main"] if words[0] == "imae" else [sys.executable]
    process = subprocess.Popen(
        [*program, *words[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if not show or re.search(show, line):
            print(line, end="", flush=True)
    if process.wait():
        raise ImaeError(
            f"`{command}` failed with exit status {process.returncode}: {''.join(lines[-1:]).strip()}"
        )
    return "".join(lines)


def _accuracy(output: str) -> float:
    """The last accuracy that a command printed."""
    return float(re.findall(r"accuracy = (\S+)", output)[-1])
