"""Trainings as processes of their own, several at a time, with a progress bar."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from imae.files.program import imae_program
from imae.train.signals import terminated_as_interrupted

POLL_INTERVAL = 1.0  # seconds between two checks of the processes

Job = TypeVar("Job")


def run_all(
    waiting: Sequence[Job],
    jobs: int,
    start: Callable[[Job], subprocess.Popen[bytes]],
    report_end: Callable[[Job, int], bool],
    iteration: Callable[[Job], int],
    iterations: int,
) -> list[Job]:
    """Run a process for each of `waiting`, `jobs` at a time; returns those that failed.

    start       starts a process
    report_end  prints how it has ended, by its exit status; returns whether it has done all
    iteration   how far it is; `iterations`: of all of them at the end

    Where the caller is interrupted, the processes are interrupted and waited for.
    """
    running: list[tuple[Job, subprocess.Popen[bytes]]] = []
    failed: list[Job] = []
    with terminated_as_interrupted(), tqdm(total=iterations, unit="iter", disable=None) as bar:
        try:
            todo = list(waiting)
            while todo or running:
                while todo and len(running) < jobs:
                    running.append((todo[0], start(todo.pop(0))))
                time.sleep(POLL_INTERVAL)
                for job, process in list(running):
                    if process.poll() is not None:
                        running.remove((job, process))
                        if not report_end(job, process.returncode):
                            failed.append(job)
                bar.update(sum(map(iteration, waiting)) - bar.n)
        except BaseException:
            for _, process in running:
                process.send_signal(signal.SIGINT)
            for _, process in running:
                process.wait()
            raise
    return failed


def start_training(folder: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start, or go on with, the training of solver.prototxt in a folder; its log is added to `log` there."""
    command = [*imae_program(), "train", str(folder / "solver.prototxt"), "--resume", "auto", "--keep", "1"]
    with open(folder / "log", "ab") as log:
        # A session of its own, so that Ctrl-C reaches it only once, through `run_all`.
        return subprocess.Popen([*command, *options], stdout=log, stderr=log, start_new_session=True)


def last_snapshot(folder: Path) -> int:
    """The iteration of the last snapshot run_iter_N of a training in a folder; 0 where there is none."""
    names = folder.glob("run_iter_*.solverstate*")
    numbers = [int(match[1]) for path in names if (match := re.search(r"_iter_(\d+)\.", path.name))]
    return max(numbers, default=0)
