"""The fuzz harness: a short run of every target, and that it finds what is planted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from waiting import FOR_EVER

FUZZ = Path(__file__).parent / "fuzz"

# One target for each rule; `fine` keeps them all.
PLANTED = """
import mmap, os, runpy, signal, sys, time, warnings
import cv2, numpy
sys.path.insert(0, {fuzz!r})
import targets
from imae.files.errors import DataError

targets.TARGETS.clear()

def plant(check):
    targets.target(lambda: lambda draw: draw.data(0, 9))(check)

@plant
def fine(data):
    open("x", "wb").write(data)
    if len(data) % 2:
        raise DataError("odd")

@plant
def traceback(data):
    if len(data) > 3:
        raise KeyError("planted")

@plant
def warning(data):
    warnings.warn("planted")

@plant
def lines(data):
    class Lines(DataError):
        def __str__(self):
            return "one\\ntwo"
    raise Lines

@plant
def hang(data):
    while len(data) > 3:
        pass

@plant
def stuck(data):
    time.sleep(1000)

@plant
def memory(data):
    bytearray(3 << 30)

@plant
def touched(data):
    signal.setitimer(signal.ITIMER_PROF, 0)  # the planted fault is the memory, not the time
    piece = os.memfd_create("piece")  # mapped many times it counts each time; new memory can take seconds
    os.truncate(piece, 64 << 20)
    maps = [mmap.mmap(piece, 64 << 20, mmap.MAP_SHARED | mmap.MAP_POPULATE) for _ in range(18)]

@plant
def crash(data):
    os.abort()

@plant
def written(data):
    open("../../written", "wb")

@plant
def written_in_c(data):
    cv2.imwrite("../../written.png", numpy.zeros((2, 2), numpy.uint8))

@plant
def removed(data):
    os.remove("../../nothing")

runpy.run_path({main!r}, run_name="__main__")
"""


def fuzz(*command: str) -> tuple[int, str]:
    """The exit status and the output of a run."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=FOR_EVER)
    return done.returncode, done.stdout + done.stderr


def test_every_target_finds_nothing() -> None:
    status, output = fuzz(str(FUZZ), "--examples", "40")
    table = dict(re.findall(r"(?m)^(\w+) +40 +(\d+ +\d+) .* 0$", output))
    targets = re.findall(r"(?m)^@target\(.*\n(?:.*\n)*?def (\w+)", (FUZZ / "targets.py").read_text())
    assert status == 0 and len(targets) >= 20 and set(table) == set(targets), output
    for name, counts in table.items():
        accepted, refused = map(int, counts.split())
        assert accepted + refused == 40 and refused, f"{name}: {output}"


def test_planted_bugs_are_found(tmp_path: Path) -> None:
    script = tmp_path / "planted.py"
    script.write_text(PLANTED.format(fuzz=str(FUZZ), main=str(FUZZ / "__main__.py")))
    status, output = fuzz(
        str(script), "--examples", "20", "--seconds", "0.2", "--keep", str(tmp_path / "found")
    )
    assert status == 1, output
    found = re.findall(r"(?m)^(\w+): (.+)$", output)
    expected = {
        "traceback": "KeyError",
        "warning": "UserWarning",
        "lines": "not one line",
        "hang": "Slow",
        "stuck": "too slow, and cannot be stopped",
        "memory": "MemoryError",
        "touched": "memory",
        "crash": "ended with status -6",
        "written": "outside: open",
        "written_in_c": "outside, once",
        "removed": "outside: os.remove",
    }
    for name, what in expected.items():
        assert any(n == name and text.startswith(what) for n, text in found), f"{name}: {output}"
    assert "fine" not in dict(found), output
    for name in ("traceback", "hang"):
        (kept,) = (tmp_path / "found").glob(f"{name}-*")
        assert 3 < len(kept.read_bytes()) <= 9, output


# Prints what kinds of files there are among some of a target: the harness is blind to what it does not make.
MADE = """
import io, os, re, sys, tarfile, tempfile
from random import Random
sys.path.insert(0, {fuzz!r})
os.chdir(tempfile.mkdtemp())
import h5py
from choices import Draw
from imae.files.file_tree import BROKEN
from imae.files.hdf5_file import HDF5_ERRORS
from targets import SNAPSHOTS, TARGETS, cache

def files(name, count):
    make, random = TARGETS[name].prepare(), Random(3)
    return [make(Draw(random)) for _ in range(count)]

def look(links, file):
    kind = links.get_info(b"data").type
    if kind == h5py.h5l.TYPE_EXTERNAL:
        print("link to", links.get_val(b"data")[0].decode())
    elif kind == h5py.h5l.TYPE_SOFT:
        print("soft link")
    elif isinstance(file["data"], h5py.Dataset):
        data_set = file["data"]
        for place in data_set.external or ():
            print("values in", place[0])
        for source in data_set.virtual_sources() if data_set.is_virtual else ():
            print("virtual", source.file_name)

for data in files("hdf5_data", 2500):
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            look(file.id.links, file)
    except HDF5_ERRORS:
        continue
for data in files("cifar", 200) + files("folder", 200):
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            print("sparse", any(member.issparse() for member in tar))
    except BROKEN:
        continue
for text in files("net", 600):
    runs = [len(run[0]) for run in re.finditer(rb"(.)\\1{{99,}}", text)]
    print("a run", bool(runs), max(runs, default=0) >= 10**4)
for data in files("resume_auto", 60):
    name = SNAPSHOTS[data[0]]
    whole = cache["whole"][name]
    if len(data) == len(whole) + 1:
        print("bits", name, sum((a ^ b).bit_count() for a, b in zip(data[1:], whole)))
"""


def test_the_kinds_of_files_that_were_missed_before_are_made(tmp_path: Path) -> None:
    script = tmp_path / "made.py"
    script.write_text(MADE.format(fuzz=str(FUZZ)))
    status, output = fuzz(str(script))
    assert status == 0, output
    made = set(output.splitlines())
    others = ("pipe", ".", "in.h5", "other.h5", "/dev/zero", "/etc/passwd")
    for kind in ("link to", "virtual", "values in"):
        assert {f"{kind} {path}" for path in others} <= made, output
    assert {"soft link", "sparse True"} <= made, output
    assert {"a run True False", "a run True True"} <= made, output
    kinds = ("caffemodel", "solverstate", "caffemodel.h5", "solverstate.h5")
    assert {f"bits s_iter_2.{kind} 1" for kind in kinds} <= made, output
