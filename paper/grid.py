"""Train many runs, several at a time. Each is a process of its own, with its log in its folder.

A grid that was stopped continues where it stopped: finished runs are skipped, unfinished runs resume.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from imae.files.errors import DataError, ImaeError
from imae.files.program import imae_program
from imae.paper.data import Sources, make_folder
from imae.paper.experiments import Run
from imae.paper.processes import run_all
from imae.paper.record import read_record


def train_all(
    runs: Sequence[Run], images: Sources, records: Path, jobs: int, options: Sequence[str] = ()
) -> None:
    """Train the runs that have no record yet. When all have ended, ImaeError names those that failed.

    jobs      processes at a time
    options   options of each process's command line: --gpu, --threads and the like
    """
    make_folder(records)
    waiting = [run for run in runs if not is_done(run, records)]
    for run in waiting:
        images.images(run)  # here, so that no two processes make the same LMDB
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them with a record", flush=True)
    ended = run_all(
        waiting,
        jobs,
        lambda run: _start(run, images, records, options),
        lambda run, status: _report_end(run, status, images.work, records),
        lambda run: _iteration(run, images.work, records),
        sum(run.iterations for run in waiting),
    )
    failed = [run.name for run in ended]
    if failed:
        raise ImaeError(
            f"{len(failed)} of {len(runs)} runs have not ended: {', '.join(failed)}; their logs are in "
            f"{run_folder(images.work, failed[0])} and the like; the same command goes on with them"
        )


def is_done(run: Run, records: Path) -> bool:
    """Whether the run has a complete record; DataError if the record of this name is of another run."""
    path = records / f"{run.name}.json"
    if not path.exists():
        return False
    record = read_record(path)
    if record.run != run:
        raise DataError(f"'{path}' is of another run, {record.run}; move it away, or choose another --scale")
    return record.complete


def run_folder(work: Path, name: str) -> Path:
    """Where a run keeps its prototxts, snapshots and log."""
    return work / "runs" / name


def _start(run: Run, images: Sources, records: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
    folder = run_folder(images.work, run.name)
    folder.mkdir(parents=True, exist_ok=True)
    command = [*imae_program(), "paper", "run", "--run", json.dumps(asdict(run))]
    command += ["--work", str(images.work), "--records", str(records), *options]
    with open(folder / "log", "ab") as log:
        # A session of its own, so that Ctrl-C reaches it only once, through `train_all`.
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def _report_end(run: Run, status: int, work: Path, records: Path) -> bool:
    """Print how a run has ended. Return whether it is complete."""
    if status == 0 and is_done(run, records):
        record = read_record(records / f"{run.name}.json")
        tqdm.write(
            f"{run.name}: test best {record.best.test:.4f}, final {record.final.test:.4f}; "
            f"{record.seconds:.0f} s on {record.device}"
        )
        return True
    lines = (run_folder(work, run.name) / "log").read_text(encoding="utf-8", errors="replace").splitlines()
    tqdm.write(f"{run.name}: exit status {status}: {''.join(lines[-1:])}")
    return False


def _iteration(run: Run, work: Path, records: Path) -> int:
    """The iteration of a run's last test."""
    for path in (records / f"{run.name}.json", run_folder(work, run.name) / "record.json"):
        if path.exists():
            points = read_record(path).points
            return points[-1].iteration if points else 0
    return 0
