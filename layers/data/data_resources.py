"""What the data layers of a run share: memory for decoded records, and decoding threads.

One object is made when a run begins, and is passed on with the random numbers (run.py): from the command to
the Solver, then to the nets and their layers. So all layers together keep to one budget.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from imae.files.errors import ImaeError
from imae.files.limits import total_memory

Result = TypeVar("Result")


class MapIndices(Protocol):
    """A function that applies `work` to the numbers 0 to count - 1, perhaps in several threads."""

    def __call__(self, work: Callable[[int], Result], count: int) -> list[Result]:
        """[work(0), .., work(count - 1)]."""


class Started(Generic[Result]):
    """Work that threads have begun: [work(0), .., work(count - 1)] in parts."""

    def __init__(self, parts: Sequence[Future[list[Result]]]) -> None:
        self._parts = parts

    def results(self) -> list[Result]:
        """Wait for the results. Of several errors, that of the smallest index is raised."""
        try:
            return [result for part in self._parts for result in part.result()]
        finally:
            for part in self._parts:  # after an error, what has not begun is in vain
                part.cancel()

    def failed(self) -> bool:
        """Wait until all of it is done; whether there was an error."""
        self.settle()
        return any(part.exception() is not None for part in self._parts)

    def settle(self) -> None:
        """Wait until no thread works on it any more; errors stay for `results`."""
        wait(self._parts)

    def abandon(self) -> None:
        """Let no further part begin, and wait for those that have."""
        for part in self._parts:
            part.cancel()
        self.settle()


class StartIndices(Protocol):
    """A function that begins to apply `work` to the numbers 0 to count - 1, and does not wait for it."""

    def __call__(self, work: Callable[[int], Result], count: int) -> Started[Result]:
        """The work that was begun."""


SHARE = 0.25  # of the memory, unless another budget is given
PARTS = 4  # parts of the work per thread: enough that no thread waits long for another


class KeptRecords:
    """The decoded records of one database, filled as they are requested.

    images      (N, C, H, W) uint8; in memory N, H, W, C if they are interleaved
    labels      (N,)
    is_filled   (N,): which records are in the arrays; set after the two others
    """

    def __init__(self, shape: tuple[int, ...], interleaved: bool = False) -> None:
        self.images: NDArray[np.uint8] = np.empty(shape, np.uint8)
        if interleaved:
            count, channels, *size = shape
            self.images = np.empty((count, *size, channels), np.uint8).transpose(0, 3, 1, 2)
        self.labels = np.zeros(shape[0], np.int64)
        self.is_filled = np.zeros(shape[0], np.bool_)


class DataResources:
    """Memory and threads.

    budget    most bytes of all kept records together, 0 to keep none; by default a quarter of the memory of
              the machine, or of the control group
    threads   most decoding threads; by default one per core that this process may use
    ranks     ranks on this machine, among which both are divided

    A layer takes its memory when it is built, in the order of the net, the train net before the test nets. If
    too little is left, the layer streams its records. Layers that read and decode the same database in the
    same way share the kept records, which then count once. Memory that no layer uses is free again.
    """

    def __init__(self, budget: int | None = None, threads: int | None = None, ranks: int = 1) -> None:
        self.budget = (budget if budget is not None else int(total_memory() * SHARE)) // ranks
        self.threads = max(1, (threads if threads is not None else usable_cores()) // ranks)
        self._kept: WeakValueDictionary[Hashable, KeptRecords] = WeakValueDictionary()
        self._pool = ThreadPoolExecutor(self.threads, "decode")  # starts its threads when there is work

    def __deepcopy__(self, memo: dict[int, object]) -> DataResources:
        """Itself: the copy of a net shares them as well."""
        return self

    def __reduce__(self) -> tuple[type[DataResources], tuple[int, int]]:
        """Pickled, it is as large, and empty: threads cannot be."""
        return DataResources, (self.budget, self.threads)

    @property
    def free(self) -> int:
        """Bytes of the budget that are not in use."""
        return self.budget - sum(kept.images.nbytes for kept in self._kept.values())

    def kept(self, key: Hashable) -> KeptRecords | None:
        """The records that are already kept under this key."""
        return self._kept.get(key)

    def keep(self, key: Hashable, shape: tuple[int, ...], interleaved: bool = False) -> KeptRecords | None:
        """Memory for records (N, C, H, W) of one byte a value; None where the budget has too little left.

        The memory stays in use as long as the result is referenced.
        """
        if math.prod(shape) > self.free:
            return None
        kept = self._kept[key] = KeptRecords(shape, interleaved)
        return kept

    def map_indices(self, work: Callable[[int], Result], count: int) -> list[Result]:
        """[work(0), .., work(count - 1)], in several threads.

        Of several errors, that of the smallest index is raised. It pays if most of the work is done in C.
        """
        if self.threads == 1 or count < 2:
            return map_in_order(work, count)
        return self.start_indices(work, count).results()

    def start_indices(self, work: Callable[[int], Result], count: int) -> Started[Result]:
        """Begin the same in the threads, after what was begun before. One thread does it at once."""
        if self.threads == 1:
            done: Future[list[Result]] = Future()
            try:
                done.set_result(map_in_order(work, count))
            except ImaeError as error:
                done.set_exception(error)
            return Started([done])
        step = max(1, -(-count // (PARTS * self.threads)))
        parts = [range(begin, min(begin + step, count)) for begin in range(0, count, step)]
        return Started([self._pool.submit(_work_on, work, part) for part in parts])


def _work_on(work: Callable[[int], Result], part: range) -> list[Result]:
    return [work(i) for i in part]


def map_in_order(work: Callable[[int], Result], count: int) -> list[Result]:
    """[work(0), .., work(count - 1)], in this thread."""
    return [work(i) for i in range(count)]


def most_threads() -> int:
    """Limit on computing threads: more are no faster, and thousands crash libraries and the process."""
    return 4 * (os.cpu_count() or 1)


def usable_cores() -> int:
    """Number of cores that this process may use, by the system and by its control group."""
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    limit = Path("/sys/fs/cgroup/cpu.max")  # microseconds of all cores, per period of so many microseconds
    quota, _, period = limit.read_text().partition(" ") if limit.exists() else ("max", "", "")
    if quota.isdigit() and period.strip().isdigit():
        cores = min(cores, max(1, -(-int(quota) // int(period))))
    return cores
