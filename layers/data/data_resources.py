"""What the data layers of a run share: memory for decoded records, and the threads that decode.

One object is made where a run begins and handed down with the random numbers (run.py): by the command to the
Solver, from there to the nets and their layers. So all of them together keep to one budget.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from imae.files.limits import total_memory

Result = TypeVar("Result")


class Each(Protocol):
    """A way to do some work for each of the numbers 0 to count - 1."""

    def __call__(self, work: Callable[[int], Result], count: int) -> list[Result]:
        """[work(0), .., work(count - 1)]."""


SHARE = 0.25  # of the memory, unless another budget is given
PARTS = 4  # of the work, for each thread: so many that none waits long for another


class KeptRecords:
    """The decoded records of one database, filled as they are asked for.

    images   (N, C, H, W) uint8
    labels   (N,)
    have     (N,): which of them are there; set after the two others
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.images: NDArray[np.uint8] = np.empty(shape, np.uint8)
        self.labels = np.zeros(shape[0], np.int64)
        self.have = np.zeros(shape[0], np.bool_)


class DataResources:
    """Memory and threads.

    budget    bytes that all kept records together may take, 0 to keep none; by default a quarter of the
              memory of the machine, or of the control group
    threads   that decode, at most; by default as many as there are cores for this process
    ranks     processes like this one on the machine, among which both are divided

    A layer takes what it needs when it is built, in the order of the net, the train net before the test nets;
    one that finds too little left streams its records. Layers that read the same database and decode it alike
    share what is kept, and need it once. What no layer keeps any more is free again.
    """

    def __init__(self, budget: int | None = None, threads: int | None = None, ranks: int = 1) -> None:
        self.budget = (budget if budget is not None else int(total_memory() * SHARE)) // ranks
        self.threads = max(1, (threads if threads is not None else usable_cores()) // ranks)
        self._kept: WeakValueDictionary[Hashable, KeptRecords] = WeakValueDictionary()
        self._pool = ThreadPoolExecutor(self.threads, "decode")  # starts its threads when there is work

    @property
    def free(self) -> int:
        """Bytes of the budget that are not taken."""
        return self.budget - sum(kept.images.nbytes for kept in self._kept.values())

    def kept(self, key: Hashable) -> KeptRecords | None:
        """What is kept already under this key."""
        return self._kept.get(key)

    def keep(self, key: Hashable, shape: tuple[int, ...]) -> KeptRecords | None:
        """Memory for records (N, C, H, W) of one byte a value; None where the budget has too little left.

        It is taken for as long as somebody refers to the result.
        """
        if math.prod(shape) > self.free:
            return None
        kept = self._kept[key] = KeptRecords(shape)
        return kept

    def each(self, work: Callable[[int], Result], count: int) -> list[Result]:
        """[work(0), .., work(count - 1)], by several threads.

        Of several errors that of the least number is raised. Worth it where most of the work is done in C.
        """
        if self.threads == 1 or count < 2:
            return in_turn(work, count)
        step = -(-count // (PARTS * self.threads))
        parts = [range(begin, min(begin + step, count)) for begin in range(0, count, step)]
        done = self._pool.map(lambda part: [work(i) for i in part], parts)
        return [result for part in done for result in part]


def in_turn(work: Callable[[int], Result], count: int) -> list[Result]:
    """[work(0), .., work(count - 1)], by this thread."""
    return [work(i) for i in range(count)]


def most_threads() -> int:
    """How many threads may compute: more are no faster, and thousands end libraries, and the process too."""
    return 4 * (os.cpu_count() or 1)


def usable_cores() -> int:
    """The cores that this process may use, as the system and the control group say."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    limit = Path("/sys/fs/cgroup/cpu.max")  # microseconds of all cores, in how many microseconds
    quota, _, period = limit.read_text().partition(" ") if limit.exists() else ("max", "", "")
    if quota.isdigit() and period.strip().isdigit():
        cores = min(cores, max(1, -(-int(quota) // int(period))))
    return cores
