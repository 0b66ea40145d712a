"""The recorded runs of Caffe's command line, to be run again: solver, net and the digits' databases."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from reference import CASES

from imae.cli.main import main

RUNS = CASES / "runs"
# Some lines are a matter of timing in Caffe; layers that it makes inside of others have a line, too.
TIMING = re.compile(r"Restarting data prefetching|Waiting for data|Creating layer ")
# Lines that Caffe lacks: which kernels are used, whether records are kept, how long data was waited for.
OURS = re.compile(
    r"\.py:\d+\] (Kernels in C: |The kernels in C |layer '.*' \(Data\): \d+ records, |Waited for data: )"
)
PREFIX = re.compile(r"^([IWEF])\d{4} [\d:.]+ +\d+ ")
SPEED = re.compile(r"\(\S+ iter/s, \S+s/")
NUMBER = re.compile(r"(?<![\w.])-?(?:\d+\.?\d*(?:e[+-]?\d+)?|nan|inf)(?![\w.])")


def prepared(run: str, folder: Path) -> Path:
    """A copy of a run's inputs in `folder`, with the databases beside it where its nets look for them."""
    assert main(["convert-digits", str(folder / "_db")]) == 0
    shutil.copytree(RUNS / run, folder / run)
    return folder / run


def lines(log: str) -> list[str]:
    """Caffe's lines of a log without what depends on time, and of prefixes only severity and place."""
    return [
        SPEED.sub("(", PREFIX.sub(r"\1 ", line)).rstrip()
        for line in log.splitlines()
        if not TIMING.search(line) and not OURS.search(line)
    ]


def worded(log: str) -> list[str]:
    """The same with # for each number."""
    return [NUMBER.sub("#", line) for line in lines(log)]


def numbers(log: str) -> list[float]:
    """All numbers of a log, in order."""
    return [
        float(number) for line in lines(log) for number in NUMBER.findall(line.partition("] ")[2] or line)
    ]
