"""Prepare the recorded runs of Caffe's command line to run them again: solver, net, databases of digits."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from reference import CASES

from imae.cli.main import main

RUNS = CASES / "runs"
# Lines of Caffe that depend on timing, or are about the layers that Caffe makes inside other layers.
TIMING = re.compile(r"Restarting data prefetching|Waiting for data|Creating layer ")
# Lines that Caffe lacks: the kernels in use, the kept records, the time spent waiting for data, what to type
# next.
OURS = re.compile(
    r"\.py:\d+\] (Kernels in C: |The kernels in C |layer '.*' \(Data\): \d+ records, |Waited for data: "
    r"|the weights are in |to (test|export) them: |to go on)"
)
PREFIX = re.compile(r"^([IWEF])\d{4} [\d:.]+ +\d+ ")
SPEED = re.compile(r"\(\S+ iter/s, \S+s/")
NUMBER = re.compile(r"(?<![\w.])-?(?:\d+\.?\d*(?:e[+-]?\d+)?|nan|inf)(?![\w.])")


def prepared(run: str, folder: Path) -> Path:
    """Copy a run's inputs into `folder` and make the databases that its nets read. Return the copy."""
    assert main(["convert-digits", str(folder / "_db")]) == 0
    shutil.copytree(RUNS / run, folder / run)
    return folder / run


def lines(log: str) -> list[str]:
    """The lines of a log that Caffe logs, too, without times; their prefixes have only severity and place."""
    return [
        SPEED.sub("(", PREFIX.sub(r"\1 ", line)).rstrip()
        for line in log.splitlines()
        if not TIMING.search(line) and not OURS.search(line)
    ]


def worded(log: str) -> list[str]:
    """The same lines with # in place of each number."""
    return [NUMBER.sub("#", line) for line in lines(log)]


def numbers(log: str) -> list[float]:
    """All numbers in these lines, in order."""
    return [
        float(number) for line in lines(log) for number in NUMBER.findall(line.partition("] ")[2] or line)
    ]
