"""Stop converters half-way and start them again.

    python tests/support/stopped_converters.py FOLDER

Each command is a fork of this process. It is ended by SIGKILL before each of the calls that sync or rename
its output, by the system when an output file reaches a certain length, and by Ctrl-C. Checked each time:

    the output is missing or whole
    all other files are unchanged; only hidden files NAME.tmp may be left, after Ctrl-C not even those
    when started again, the command gives the same output as undisturbed. If it has two outputs, the first may
    exist already: then the command names it in an error, and succeeds once it is removed

An AssertionError shows what failed; otherwise the last line is a count of what was done, in JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import tarfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
from killed_runs import Plan, die, fork

from imae.net.net import Net
from imae.net.weights import save_caffemodel
from imae.prototxt import TEST
from imae.prototxt.text import parse_net

NET = """
layer { name: "data" type: "Data" top: "data" top: "label"
        data_param { source: "lmdb" batch_size: 5 backend: LMDB } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 3 } }
"""
# The commands and their outputs.
COMMANDS = {
    "convert-cifar cifar.tar.xz cifar": ["cifar/cifar10_train_lmdb", "cifar/cifar10_test_lmdb"],
    "convert-imageset pictures/ list out": ["out"],
    "convert-annoset pictures/ list out": ["out"],
    "convert-folder pictures out --labels labels.txt": ["out", "out.clean_labels.npz"],
    "split-lmdb lmdb out rest --share 0.5": ["out", "rest"],
    "correct-labels lmdb out rest --issues issues.npy": ["out", "rest"],
    "compute-image-mean lmdb out": ["out"],
    "extract-features w.caffemodel net.prototxt data,ip out,out2 2 lmdb": ["out", "out2"],
}  # fmt: skip
CALLS = ("fsync", "replace", "rename", "mkdir")
LENGTHS = (0, 1000, 8192, 9000)  # bytes; LMDB's first two pages have 8192
ENDS = {
    "killed at a call": -signal.SIGKILL,
    "killed at a byte": -signal.SIGXFSZ,
    "without space": 2,
    "interrupted": 130,
}


def prepare() -> None:
    """Make the commands' inputs in the working directory."""
    random = np.random.default_rng(1)
    for label, kind in enumerate("abc"):
        Path("pictures", kind).mkdir(parents=True)
        for i in range(10):
            cv2.imwrite(f"pictures/{kind}/{i}.png", random.integers(0, 256, (12, 12, 3), np.uint8))
            with open("list", "a", encoding="ascii") as file:
                file.write(f"{kind}/{i}.png {label}\n")
    np.save("issues.npy", np.array([3, 17]))
    Path("labels.txt").write_text("0\n1\n2\n" * 10)
    with tarfile.open("cifar.tar.xz", "w:xz") as tar:
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            Path("part").write_bytes(b"\1" + random.bytes(3072) + b"\2" + random.bytes(3072))
            tar.add("part", f"{name}.bin")
    Path("part").unlink()
    Path("net.prototxt").write_text(NET)


def content(path: str) -> Any:
    """The content of an output; None if it does not exist."""
    if not os.path.exists(path):
        return None
    if not os.path.isdir(path):
        return Path(path).read_bytes()
    with lmdb.open(path, readonly=True, lock=False) as environment, environment.begin() as transaction:
        return list(transaction.cursor())


def files(ours: list[str]) -> dict[str, bytes]:
    """All files of the working directory except `ours`, the log, and leftovers of a killed process."""
    hidden = re.compile(r"(.*/)?\.[^/]*\.tmp(/.*)?")
    skipped = ("log", *ours)
    paths = [str(path) for path in Path().rglob("*") if path.is_file()]
    return {
        path: Path(path).read_bytes()
        for path in paths
        if not path.startswith(skipped) and not hidden.fullmatch(path)
    }


def run(command: str, plan: Plan = lambda: None) -> tuple[int, str]:
    """Run a command in a process of its own. Return its exit status and its output."""
    _, status = os.waitpid(fork(Path(), Path("log"), command.split(), plan), 0)
    return os.waitstatus_to_exitcode(status), Path("log").read_text()


def count_calls() -> None:
    """Count the calls in the file `calls`, one letter per call."""
    handle = os.open("calls", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    watch(lambda: os.write(handle, b"x"))


def watch(before: Callable[[], object]) -> None:
    """Call `before` before each of CALLS."""

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            before()
            return call(*arguments, **options)

        return wrapped

    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))


def stop_at(number: int, end: Callable[[], object]) -> None:
    """Call `end`, which ends this process, before call number `number`."""
    left = number

    def before() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            end()

    watch(before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)  # in this thread; os.kill may reach another thread, and later


def stop_at_length(length: int) -> None:
    """Let the system end this process when a file other than its log gets longer than `length`."""
    os.dup2(os.pipe()[1], 2)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, resource.RLIM_INFINITY))


def remove(outputs: list[str]) -> None:
    for path in outputs:
        shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else Path(path).unlink(missing_ok=True)
    for path in Path().rglob(".*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check(command: str, outputs: list[str], counts: Counter[str]) -> None:
    """Stop a command at each of these points, and start it again each time."""
    before = files(outputs)
    status, log = run(command, count_calls)
    assert status == 0, log
    calls = Path("calls").stat().st_size
    Path("calls").unlink()
    wanted = {path: content(path) for path in outputs}
    assert None not in wanted.values(), wanted.keys()
    assert files(outputs) == before
    plans: list[tuple[str, Plan]] = []
    plans += [("killed at a call", partial(stop_at, number, die)) for number in range(1, calls + 1)]
    plans += [("killed at a byte", partial(stop_at_length, length)) for length in LENGTHS]
    plans += [("interrupted", partial(stop_at, number, interrupt)) for number in (1, calls // 2)]
    for kind, plan in plans:
        remove(outputs)
        status, log = run(command, plan)
        if kind == "killed at a byte" and status == 0:
            continue  # none of its files is that long
        if kind == "killed at a byte" and status == 2:
            kind = "without space"  # LMDB could write only a part of a page, and gave up
        assert status == ENDS[kind], (command, kind, status, log)
        counts[kind] += 1
        assert files(outputs) == before, command
        there = [path for path in outputs if content(path) is not None]
        for path in there:
            assert content(path) == wanted[path], (command, kind, path)
        if status > 0:
            assert not there and not list(Path().rglob(".*.tmp")), command
        if there == outputs:
            counts["done already"] += 1
            continue
        status, log = run(command)
        if status == 2:
            last = log.splitlines()[-1]
            named = re.fullmatch(
                r"imae: cannot write '(.*)': it exists already; remove it or choose another name", last
            )
            assert named and named[1] in there and len(outputs) > 1, (command, kind, last)
            counts["of a pair one was there"] += 1
            remove([named[1]])
            status, log = run(command)
        assert status == 0, (command, kind, log)
        assert {path: content(path) for path in outputs} == wanted, (command, kind)
        counts["started again"] += 1
    remove(outputs)


def main(folder: Path) -> None:
    # Processes that a shell starts in the background ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    prepare()
    status, log = run("convert-imageset pictures/ list lmdb --gray")
    assert status == 0, log
    param = parse_net(NET)
    param.state.phase = TEST
    save_caffemodel(Net(param), "w.caffemodel")
    counts: Counter[str] = Counter()
    for command, outputs in COMMANDS.items():
        check(command, outputs, counts)
    print(json.dumps(counts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    main(parser.parse_args().folder)
