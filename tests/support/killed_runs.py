"""Kill and resume trainings again and again, and compare them with an undisturbed training.

    python tests/support/killed_runs.py FOLDER [--kills 100] [--seed 1]

The libraries are loaded once; each training is a fork of this process, which itself computes nothing. A
training is killed, up to DEATHS times, and resumed with --resume auto until it ends; then the next one
begins. It is killed, in turn,

    when a snapshot's file reaches a certain length while it is being written, by whatever means
    at one of the calls that sync, rename or remove a snapshot's files
    at some time

Snapshots are binary and the data shuffled in one training, HDF5 and class-balanced in the next. After each
kill these are checked:

    all files of snapshots on the disk equal those of the undisturbed training, and the newest whole snapshot
    was the one resumed from
    from there on the log has the same lines as that of the undisturbed training
    at the end weights, history and all that a resume needs are equal bit for bit

Finally the writer of the model or of the state is replaced by one that writes in place: the checks must fail.

An AssertionError shows what failed; otherwise the last line is a count of what was done, in JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import h5py
import numpy as np
from digits_runs import lines

from imae.cli.main import main
from imae.net import weights
from imae.train import snapshots, solverstate
from imae.train.snapshots import find_snapshots
from imae.train.solverstate import file_checksum, read_state

NET = """
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
        data_order_param { ORDER }
        transform_param { scale: 0.00390625 crop_size: 6 mirror: true }
        data_param { source: "../_db/digits_train_lmdb" batch_size: 16 backend: LMDB prefetch: 3 } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
        transform_param { scale: 0.00390625 crop_size: 6 mirror: true }
        data_param { source: "../_db/digits_test_lmdb" batch_size: 10 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "drop" type: "Dropout" bottom: "pool" top: "pool" }
layer { name: "ip" type: "InnerProduct" bottom: "pool" top: "ip"
        inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy"
        include { phase: TEST stage: "accuracy" } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
SOLVER = """
net: "net.prototxt" base_lr: 0.05 lr_policy: "multistep" gamma: 0.5 stepvalue: 70 stepvalue: 110 momentum: 0.9
weight_decay: 0.001 average_loss: 7 display: 1 max_iter: 150 snapshot: 4 snapshot_prefix: "s" random_seed: 3
test_iter: 2 test_iter: 3 test_interval: 10 test_state { stage: "accuracy" } test_state { }
"""
ORDERS = {
    "BINARYPROTO": "order: SHUFFLED",
    "HDF5": "order: CLASS_BALANCED classes_per_batch: 4 images_per_class: 4",
}
FORMATS = tuple(ORDERS)
DEATHS = 10
KINDS = ("killed at a byte", "killed at a call", "killed at some time")
WRITERS = {"caffemodel": "save_caffemodel", "solverstate": "write_state"}  # functions that snapshots.py calls
ENDED = "solver.cpp:332] Optimization Done."

Plan = Callable[[], object]


def fork(folder: Path, log: Path, arguments: list[str], plan: Plan) -> int:
    """Start `imae ...` in a process of its own that first calls `plan()`. Return its process id."""
    number = os.fork()
    if number == 0:
        _run(folder, log, arguments, plan)
    return number


def _run(folder: Path, log: Path, arguments: list[str], plan: Plan) -> NoReturn:
    status = 70
    try:
        os.chdir(folder)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
        plan()
        status = main(arguments)
    finally:
        sys.stderr.flush()
        os._exit(status)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_a_byte(chance: random.Random, kind: str, size: int) -> None:
    """Make this process die while it writes one of its next files of this kind, which have `size` bytes."""
    name, count, length = WRITERS[kind], chance.randint(1, 3), chance.randrange(size)
    write = getattr(snapshots, name)

    def deadly(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count -= 1
        if count == 0:  # the system ends the process, by whatever means the file is written
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (length, resource.RLIM_INFINITY))
        return write(*arguments, **options)

    setattr(snapshots, name, deadly)


def die_at_a_call(chance: random.Random) -> None:
    """Make this process die at one of the calls that sync, rename or remove files."""
    count, moment = chance.randint(1, 40), chance.choice(["before", "half", "after"])

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> None:
            nonlocal count
            count -= 1
            if count == 0 and moment == "half" and call is fsync:
                halve(arguments[0])
            if count == 0 and moment != "after":
                die()
            call(*arguments)
            if count == 0:
                die()

        return wrapped

    fsync = os.fsync
    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, deadly(getattr(os, name)))


def halve(handle: int) -> None:
    """Cut an open file to half its length, as if it were still being written."""
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode):
        os.ftruncate(handle, status.st_size // 2)


def train_undisturbed(folder: Path) -> float:
    """Train in `folder` to the end. Return the time in seconds."""
    begun = time.monotonic()
    (folder / "log").unlink(missing_ok=True)
    number = fork(folder, folder / "log", ["train", "solver.prototxt"], lambda: None)
    assert os.waitpid(number, 0)[1] == 0, (folder / "log").read_text()
    return time.monotonic() - begun


class Training:
    """One training that is killed again and again.

    counts   what was done
    """

    def __init__(self, folder: Path, undisturbed: Path, chance: random.Random, seconds: float) -> None:
        self.folder, self.chance, self.seconds = folder, chance, seconds
        self.undisturbed = undisturbed
        self.expected_lines = after_start((undisturbed / "log").read_text())
        self.counts: Counter[str] = Counter()

    def live(self, death: str, plan: Plan = lambda: None, kinds: Sequence[str] = tuple(WRITERS)) -> bool:
        """Start or resume the training and kill it as `death` says. Return whether it ended before that.

        death   one of KINDS, or "" to let it end
        plan    called first in the process
        kinds   the kinds of files at whose bytes it may be killed
        """
        before = self.newest_whole()
        path = self.folder / "log"
        path.unlink(missing_ok=True)  # a process that is killed at once would leave the previous log there
        chance = random.Random(self.chance.random())
        written = chance.choice(kinds)
        plans = {
            "killed at a byte": lambda: die_at_a_byte(chance, written, self.size(written)),
            "killed at a call": lambda: die_at_a_call(chance),
        }
        number = fork(
            self.folder,
            path,
            ["train", "solver.prototxt", "--resume", "auto", "--keep", "2"],
            lambda: (plan(), plans.get(death, lambda: None)()),
        )
        if death == "killed at some time":
            time.sleep(self.chance.uniform(0, 0.4 * self.seconds))
            os.kill(number, signal.SIGKILL)
        _, status = os.waitpid(number, 0)
        log = path.read_text() if path.exists() else ""
        if os.WIFSIGNALED(status):
            expected = signal.SIGXFSZ if death == "killed at a byte" else signal.SIGKILL
            assert os.WTERMSIG(status) == expected, log
            self.counts[death] += 1
        else:
            assert os.WEXITSTATUS(status) == 0 and ENDED in log, log
            self.counts["ended"] += 1
        self.check_log(log, before)
        self.check_files()
        return not os.WIFSIGNALED(status)

    def size(self, kind: str) -> int:
        """The size in bytes of the undisturbed training's smallest file of this kind."""
        return min(path.stat().st_size for path in self.undisturbed.glob(f"s_iter_*.{kind}*"))

    def newest_whole(self) -> int:
        """The iteration of the newest whole snapshot, 0 for none."""
        snapshots = find_snapshots(f"{self.folder}/s")
        return next((pair.iteration for pair in snapshots if pair.model and pair.state), 0)

    def check_log(self, log: str, before: int) -> None:
        """From the snapshot on the log has the same lines as that of the undisturbed training."""
        resumed = re.search(r"Resuming from s_iter_(\d+)\.", log)
        logged = after_start(log)
        if not logged:
            return  # it died before the training began
        assert int(resumed[1] if resumed else 0) == before, log
        snapshot = f"s_iter_{before}.solverstate"
        first = next((i for i, line in enumerate(self.expected_lines) if snapshot in line), -1) + 1
        expected = self.expected_lines[first : first + len(logged)]
        assert logged == expected, (logged, expected)
        self.counts["lines compared"] += len(logged)

    def check_files(self) -> None:
        """Each file equals that of the undisturbed training; there are few snapshots beyond the kept two."""
        snapshots = find_snapshots(f"{self.folder}/s")
        for pair in snapshots:
            for path in filter(None, (pair.model, pair.state)):
                assert same(path, self.undisturbed / Path(path).name), path
            if pair.state:
                assert pair.model and read_state(pair.state).run["model"] == file_checksum(pair.model), pair
                self.counts["snapshots read"] += 1
        assert len(snapshots) <= 4, snapshots
        for path in self.folder.iterdir():
            if path.suffix == ".tmp":
                self.counts["files left half-written"] += 1
                path.unlink()

    def check_end(self) -> None:
        """The last snapshot equals that of the undisturbed training."""
        ours, theirs = (find_snapshots(f"{folder}/s")[0] for folder in (self.folder, self.undisturbed))
        assert ours.iteration == theirs.iteration == 150
        for mine, other in ((ours.model, theirs.model), (ours.state, theirs.state)):
            assert same(mine, other), mine


def after_start(log: str) -> list[str]:
    """The complete lines that a training logs once it has begun."""
    whole = lines(log[: log.rfind("\n") + 1])
    begin = next((i + 1 for i, line in enumerate(whole) if "Learning Rate Policy:" in line), len(whole))
    return whole[begin:]


def same(path: str | Path, other: str | Path) -> bool:
    """Whether two files of snapshots have the same content."""
    try:
        return bool(content(path) == content(other))
    except OSError:  # h5py raises this for half a file
        return False


def content(path: str | Path) -> Any:
    """The content of a snapshot's file. (HDF5 files of the same content may differ in unused bytes.)"""
    if not str(path).endswith(".h5"):
        return Path(path).read_bytes()
    held: dict[str, bytes] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, node: (
                held.update({name: np.asarray(node[()]).tobytes()})
                if isinstance(node, h5py.Dataset)
                else None
            )
        )
    return held


def kill_and_resume(folder: Path, kills: int, seed: int) -> dict[str, float]:
    """Run everything in `folder`. Return the counts."""
    begun, chance = time.monotonic(), random.Random(seed)
    number = fork(folder, folder / "convert.log", ["convert-digits", "_db"], lambda: None)
    assert os.waitpid(number, 0)[1] == 0, (folder / "convert.log").read_text()
    seconds = {}
    for form in FORMATS:
        write_inputs(folder / form, form)
        seconds[form] = train_undisturbed(folder / form)
    counts: Counter[str] = Counter()
    while (done := sum_of_kills(counts)) < kills:
        form = FORMATS[counts["ended"] % 2]
        write_inputs(folder / "killed", form)
        training = Training(folder / "killed", folder / form, chance, seconds[form])
        ended = False
        while not ended:
            further = sum_of_kills(training.counts)
            enough = further == DEATHS or done + further == kills
            ended = training.live("" if enough else KINDS[(done + further) % len(KINDS)])
        training.check_end()
        counts += training.counts
        shutil.rmtree(folder / "killed")
    for form in FORMATS:
        for kind, module in (("caffemodel", weights), ("solverstate", solverstate)):
            write_inputs(folder / "killed", form)
            training = Training(folder / "killed", folder / form, chance, seconds[form])
            counts["writers in place noticed"] += is_noticed(training, kind, module)
            shutil.rmtree(folder / "killed")
    return {**counts, "seconds": round(time.monotonic() - begun, 1)}


def is_noticed(training: Training, kind: str, module: ModuleType) -> bool:
    """Whether the checks fail if this module writes its files, of this kind, in place."""
    try:
        training.live(KINDS[0], lambda: setattr(module, "write_atomically", write_in_place), [kind])
    except AssertionError:
        return True
    return False


def write_in_place(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)


def sum_of_kills(counts: Counter[str]) -> int:
    return sum(counts[kind] for kind in KINDS)


def write_inputs(folder: Path, form: str) -> None:
    folder.mkdir()
    (folder / "net.prototxt").write_text(NET.replace("ORDER", ORDERS[form]))
    (folder / "solver.prototxt").write_text(f"{SOLVER} snapshot_format: {form}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(json.dumps(kill_and_resume(args.folder, args.kills, args.seed)))
