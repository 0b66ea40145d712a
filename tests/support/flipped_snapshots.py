"""Flip one bit of a snapshot and continue the training with `--resume auto`.

    python tests/support/flipped_snapshots.py FOLDER [--flips 500] [--seed 1]

A training on shuffled, cropped, mirrored records with Dropout and tests writes snapshots after 4, 8 and 12
iterations, binary in one run and HDF5 in another. The model of the second snapshot, and then its solver
state, is divided into as many parts as there are flips. In each part one bit of one byte is flipped, and the
training is resumed. It must skip that snapshot and log this, continue from the first one, log the same lines
from there on as the undisturbed run, and end with the same bits.

An AssertionError shows what failed; otherwise the last line is a count of what was done, in JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

from killed_runs import FORMATS, NET, ORDERS, SOLVER, after_start, fork, same

ENDS = {"BINARYPROTO": "", "HDF5": ".h5"}
KINDS_OF_FILES = ("caffemodel", "solverstate")
SHORT = SOLVER.replace("max_iter: 150", "max_iter: 12").replace("test_interval: 10", "test_interval: 5")


def flip_and_resume(folder: Path, flips: int, seed: int, stretches: int | None = None) -> dict[str, int]:
    """Make `flips` flips for each format and kind of file. Return counts by file and outcome.

    stretches   the number of parts that a file is divided into, of which `flips` are chosen at random; None:
                as many parts as flips
    """
    chance, counts = random.Random(seed), Counter[str]()
    run(folder, "convert.log", ["convert-digits", "_db"])
    for form in FORMATS:
        whole = folder / form
        whole.mkdir()
        (whole / "net.prototxt").write_text(NET.replace("ORDER", ORDERS[form]))
        (whole / "solver.prototxt").write_text(f"{SHORT} snapshot_format: {form}")
        run(whole, "log", ["train", "solver.prototxt"])
        for kind in KINDS_OF_FILES:
            name = f"s_iter_8.{kind}{ENDS[form]}"
            size = (whole / name).stat().st_size
            count = stretches or min(flips, size)
            chosen = range(count) if flips >= count else sorted(chance.sample(range(count), flips))
            for part in chosen:
                place = chance.randrange(part * size // count, (part + 1) * size // count)
                flipped = resume(folder / "flipped", whole, name, place, chance.randrange(8))
                counts[f"{form} {kind}: {flipped}"] += 1
    return dict(counts)


def run(folder: Path, log: str, arguments: list[str]) -> str:
    """Run a command, which must succeed, in a process of its own. Return its log."""
    path = folder / log
    _, status = os.waitpid(fork(folder, path, arguments, lambda: None), 0)
    text = path.read_text()
    assert status == 0, (folder, arguments, status, text)
    return text


def resume(folder: Path, whole: Path, name: str, place: int, bit: int) -> str:
    """Flip a bit in a file of the second snapshot and resume the training. Return the outcome."""
    folder.mkdir()
    for path in whole.iterdir():
        if path.suffix == ".prototxt" or "_iter_4." in path.name or "_iter_8." in path.name:
            shutil.copy(path, folder)
    data = bytearray((folder / name).read_bytes())
    data[place] ^= 1 << bit
    (folder / name).write_bytes(data)
    log = run(folder, "log", ["train", "solver.prototxt", "--resume", "auto"])
    where = f"byte {place} of {len(data)} of {name}, bit {bit}"
    assert "Passing over a snapshot: s_iter_8." in log and "Resuming from s_iter_4." in log, (where, log)
    logged, all_logged = after_start(log), after_start((whole / "log").read_text())
    first = next(i for i, line in enumerate(all_logged) if "s_iter_4.solverstate" in line) + 1
    assert logged == all_logged[first:], (where, logged, all_logged[first:])
    for path in whole.glob("s_iter_*"):
        assert same(folder / path.name, path), (where, path.name)
    shutil.rmtree(folder)
    return "passed over, exact"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(json.dumps(flip_and_resume(args.folder, args.flips, args.seed)))
