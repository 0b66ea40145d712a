"""Snapshots in which one bit is flipped, and a training that goes on with `--resume auto`.

    python tests/support/flipped_snapshots.py FOLDER [--flips 500] [--seed 1]

A training of shuffled, cropped, mirrored records with Dropout, which tests in between, writes snapshots after
4, 8 and 12 iterations, binary in one run and HDF5 in another. Of the second snapshot the model, then the
solver state, is taken apart into as many stretches as flips are wanted; in each, one bit of one byte is
flipped, and the training resumed. It must pass over that snapshot and say so, go on from the first one, say
the same from there on as the run that was left alone, and end with the same bits.

An AssertionError says what was not so; otherwise the last line is a count of what was done, in JSON.
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
    """Do so many flips for each format and kind of file; the counts by file and outcome.

    stretches   into which a file is taken apart, all of them if None, else that many chosen at random
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
    """Run a command in a process of its own to a good end; its log."""
    path = folder / log
    _, status = os.waitpid(fork(folder, path, arguments, lambda: None), 0)
    text = path.read_text()
    assert status == 0, (folder, arguments, status, text)
    return text


def resume(folder: Path, whole: Path, name: str, place: int, bit: int) -> str:
    """Flip a bit in a file of the second snapshot and go on; what came of it."""
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
    said, all_said = after_start(log), after_start((whole / "log").read_text())
    first = next(i for i, line in enumerate(all_said) if "s_iter_4.solverstate" in line) + 1
    assert said == all_said[first:], (where, said, all_said[first:])
    for path in whole.glob("s_iter_*"):
        assert same(folder / path.name, path), (where, path.name)
    shutil.rmtree(folder)
    return "passed over, exact"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    print(json.dumps(flip_and_resume(given.folder, given.flips, given.seed)))
