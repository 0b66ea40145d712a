"""Trainings as processes of their own, several at a time, with a progress bar."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from tqdm import tqdm

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
