"""Time several ways to do the same thing, in turns in one run, and print them as ratios."""

from __future__ import annotations

import math
import os
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

# Seconds. The threads of a library wait for the next call in a busy loop, ONNX Runtime's for 60 ms after each
# run. They take a core from the way whose turn is next: a short pass took twice as long, and longer.
REST = 0.15


@dataclass(frozen=True)
class Timing:
    """The seconds of each round's call."""

    seconds: tuple[float, ...]

    @property
    def least(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def ratio(self, other: Timing) -> float:
        """The median over the rounds of this way's time / the other's: slow minutes affect both."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def in_turns(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    after: Mapping[str, Callable[[], object]] | None = None,
    rest: float | None = None,
    seconds: float = math.inf,
) -> dict[str, Timing]:
    """Call each way once per round, in a new order, so that slow moments and caches affect all equally.

    after     by name, a function to call after each turn; it is not timed
    rest      before each turn, wait for so many seconds and then call the way once, untimed: see REST. 0
              where a way follows itself in use, as iterations do: the caches hold what its last call left
    seconds   after which no further round is begun, but for the second
    """
    after = after or {}
    for _ in range(warm_up):
        for name, way in ways.items():
            way()
            after.get(name, lambda: None)()
    times: dict[str, list[float]] = {name: [] for name in ways}
    order, shuffle = list(ways), random.Random(0).shuffle
    begun_at = time.perf_counter()
    for number in range(rounds):
        if number >= 2 and time.perf_counter() - begun_at > seconds:
            break
        shuffle(order)
        for name in order:
            way = ways[name]
            if rest is not None:
                time.sleep(rest)
                way()
            begun = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - begun)
            after.get(name, lambda: None)()
    return {name: Timing(tuple(values)) for name, values in times.items()}


def table(
    title: str, timings: Mapping[str, Timing], base: str, per_second: float = 1e3, unit: str = "ms"
) -> str:
    """A Markdown table: the times, and their ratios to `base`'s: of the least, the medians, in each round.

    unit   the unit of the times, of which a second has `per_second`
    """
    lines = [
        f"### {title}",
        "",
        f"| | least, {unit} | median, {unit} | least / {base} | median / {base} | in each round, median |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, timing in timings.items():
        other = timings[base]
        ratios = timing.least / other.least, timing.median / other.median, timing.ratio(other)
        cells = [f"{seconds * per_second:.3g}" for seconds in (timing.least, timing.median)]
        cells += [f"{ratio:.2f}" for ratio in ratios]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Date, versions, device: a line to print above the figures."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next(
            (x.partition(":")[2].strip() for x in info.read_text().splitlines() if "model name" in x), name
        )
    parts = [f"{datetime.now(UTC):%Y-%m-%d}", f"Python {platform.python_version()}"]
    for package in ("torch", "onnxruntime-gpu", "onnxruntime", "numpy", "lmdb"):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    parts.append(f"{torch.get_num_threads()} threads on {os.cpu_count()} cores of {name}")
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def peak_memory() -> float:
    """The peak resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, where getrusage would include the parent's memory at the start
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform != "darwin" else peak / 2**20


def matrix_product(size: int = 2048) -> Callable[[], object]:
    """A product of float32 matrices, 2 size^3 operations: its rate is the upper limit of convolutions."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return lambda: torch.mm(a, b)


def matrix_product_rate(size: int = 2048, rounds: int = 5) -> float:
    """The rate of such products here, in operations per second."""
    return 2 * size**3 / in_turns({"mm": matrix_product(size)}, rounds)["mm"].least


def copy_rate(megabytes: int = 256, rounds: int = 5) -> float:
    """The rate of a copy in memory here, in bytes read and written per second."""
    source = torch.ones(megabytes << 18)
    target = torch.empty_like(source)
    timing = in_turns({"copy": lambda: target.copy_(source)}, rounds)["copy"]
    return 2 * (megabytes << 20) / timing.least
