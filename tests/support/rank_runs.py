"""Run `imae train` in several ranks on the CPU, each forked from a process that has loaded the libraries."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is made in C++

from imae.cli.main import main
from imae.files.errors import ImaeError
from imae.train.launched_ranks import join_ranks

PATIENCE = 120  # seconds after which a rank counts as hung


class Job:
    """The ranks of one training.

    processes   one started process per rank
    """

    def __init__(self, folder: Path, count: int, work: Callable[..., int], *arguments: list[str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["imae.cli.command_train", "rank_runs"])
        # The ranks meet here, as under torchrun.
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.logs = [folder / f"rank_{rank}.log" for rank in range(count)]
        self.processes = [
            context.Process(
                target=be_rank, args=(rank, count, self.store.port, folder, log, work, *arguments)
            )
            for rank, log in enumerate(self.logs)
        ]
        for process in self.processes:
            process.start()

    def ended(self) -> list[int | None]:
        """Wait for the ranks. Return the exit statuses; None for a rank that hangs."""
        for process in self.processes:
            process.join(PATIENCE)
        return [process.exitcode for process in self.processes]

    def log(self, rank: int) -> str:
        """A rank's output on stderr so far."""
        return self.logs[rank].read_text() if self.logs[rank].exists() else ""


@contextmanager
def job(folder: Path, count: int, *arguments: str) -> Iterator[Job]:
    """Run `imae train ARGUMENTS` in `folder`; at the end of the block, kill the ranks that still run."""
    with ending(Job(folder, count, main, ["train", *arguments])) as started:
        yield started


@contextmanager
def ending(started: Job) -> Iterator[Job]:
    """At the end of the block, kill the ranks that still run."""
    try:
        yield started
    finally:
        for process in started.processes:
            process.kill()
            process.join()


def train(folder: Path, count: int, *arguments: str) -> str:
    """Run a training that must succeed. Return the log of rank 0; the other ranks must log nothing."""
    with job(folder, count, *arguments) as started:
        statuses = started.ended()
        logs = [started.log(rank) for rank in range(count)]
    assert statuses == [0] * count, logs
    assert logs[1:] == [""] * (count - 1), logs
    return logs[0]


def be_rank(
    rank: int, count: int, port: int, folder: Path, log: Path, work: Callable[..., int], *arguments: list[str]
) -> None:
    """The body of a rank's process."""
    os.chdir(folder)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ.update({name: str(value) for name, value in (numbers | where).items()})
    torch.set_num_threads(1)
    sys.exit(work(*arguments))


def fail_beside_one_that_waits() -> int:
    """Rank 1 fails while rank 0 sleeps and does not notice."""
    with join_ranks() as ranks:
        if ranks.rank == 1:
            raise ImaeError("it is broken")
        time.sleep(PATIENCE)
    return 0
