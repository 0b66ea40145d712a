"""A damaged snapshot is passed over, wherever the damage is; what earlier versions wrote is still read."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from tiny_solver import TINY_NET as NET

from imae.cli.main import main
from imae.files.caffe_log import log_line
from imae.files.errors import SnapshotError
from imae.layers.blob import single_or_double
from imae.prototxt import SolverState
from imae.prototxt.text import parse_solver
from imae.train import snapshots
from imae.train.solver import Solver
from imae.train.solverstate import SEAL_SIZE, read_state

SOLVER = f"""
net_param {{ {NET} }} base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 random_seed: 1 snapshot_prefix: "s"
average_loss: 3 max_iter: 8
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="trainings are forks of one process")
def test_a_flipped_bit_anywhere_is_passed_over(tmp_path: Path) -> None:
    """A few of each kind; `python tests/support/flipped_snapshots.py` by hand does as many as wanted."""
    script = (
        "import json, sys; from pathlib import Path; from flipped_snapshots import flip_and_resume; "
        "print(json.dumps(flip_and_resume(Path(sys.argv[1]), 5, 7, 500)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True, text=True, cwd=Path(__file__).parents[1] / "support",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        f"{form} {kind}: passed over, exact": 5
        for form in ("BINARYPROTO", "HDF5")
        for kind in ("caffemodel", "solverstate")
    }


def two_snapshots(end: str) -> bytes:
    """s_iter_2 and s_iter_4 here, and a solver file; the bytes of the second state."""
    text = SOLVER + (" snapshot_format: HDF5" if end else "")
    Path("solver.prototxt").write_text(text)
    solver = Solver(parse_solver(text))
    for _ in range(2):
        solver.step(2)
        path = solver.snapshot()
    return Path(path).read_bytes()


def at(word: bytes, offset: int = 0) -> Callable[[bytes], int]:
    return lambda data: data.index(word) + offset


PLACES = {
    "a random stream": at(b'"random"', 40),
    "a name": at(b'"random"', 1),
    "that there is a checksum": at(b'"sealed"', 1),
    "the checksum of the model": at(b'"model"', 9),
    "that there is a checksum of the model": at(b'"model"', 1),
    "the window of the loss": at(b'"window"', 14),
    "the checksum itself": lambda data: len(data) - 1,
    "the mark of the checksum": lambda data: len(data) - SEAL_SIZE,
    "the words of the checksum": lambda data: len(data) - SEAL_SIZE + 5,
    "the first byte": lambda data: 0,
    "the second byte": lambda data: 1,
}


@pytest.mark.parametrize("end", ["", ".h5"])
@pytest.mark.parametrize("place", PLACES)
def test_one_bit(here: Path, capsys: pytest.CaptureFixture[str], place: str, end: str) -> None:
    data = bytearray(two_snapshots(end))
    data[PLACES[place](bytes(data))] ^= 1
    Path(f"s_iter_4.solverstate{end}").write_bytes(data)
    capsys.readouterr()
    assert main(["train", "solver.prototxt", "--resume", "auto"]) == 0
    log = capsys.readouterr().err
    assert f"Passing over a snapshot: s_iter_4.solverstate{end}: " in log
    assert f"Resuming from s_iter_2.solverstate{end}\n" in log


@pytest.mark.parametrize("end", ["", ".h5"])
def test_a_state_without_its_checksum(here: Path, end: str) -> None:
    data = two_snapshots(end)
    Path(f"s_iter_4.solverstate{end}").write_bytes(data[:-SEAL_SIZE])
    with pytest.raises(SnapshotError, match="its checksum is gone: it was cut, or another program wrote it"):
        read_state(f"s_iter_4.solverstate{end}")


def test_the_name_of_the_run_in_hdf5(here: Path) -> None:
    """Without it the file would be one of Caffe's, and the data begin anew."""
    data = bytearray(two_snapshots(".h5"))
    data[data.index(b"imae_run")] ^= 1
    Path("s_iter_4.solverstate.h5").write_bytes(data)
    with h5py.File("s_iter_4.solverstate.h5") as file:
        assert "imae_run" not in file
    with pytest.raises(SnapshotError, match="damaged"):
        read_state("s_iter_4.solverstate.h5")


def make_old(path: Path) -> None:
    """Make a solver state one of an earlier version: its checksum stands in the run, and is of the rest."""
    state = read_state(path)
    checksum = zlib.crc32(f"{state.iteration} {state.current_step} {state.learned_net}".encode())
    for values in state.history:
        checksum = zlib.crc32(single_or_double(values).tobytes(), checksum)
    data = path.read_bytes()[:-SEAL_SIZE]
    path.write_bytes(data)
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            run = file["imae_run"][()].tobytes()
            del file["imae_run"]
            file["imae_run"] = np.frombuffer(old_run(run, checksum), np.uint8)
    else:
        message = SolverState.FromString(data)
        message.imae_run = old_run(message.imae_run, checksum)
        path.write_bytes(message.SerializeToString())


def old_run(run: bytes, checksum: int) -> bytes:
    tree = json.loads(run)
    del tree["sealed"]
    return json.dumps({**tree, "checksum": checksum}).encode()


@pytest.mark.parametrize("end", ["", ".h5"])
def test_a_state_of_an_earlier_version_is_gone_on_with_exactly(
    here: Path, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    two_snapshots(end)
    param = parse_solver(Path("solver.prototxt").read_text())
    whole, old = Solver(param), Solver(param)
    whole.restore(f"s_iter_4.solverstate{end}")
    make_old(Path(f"s_iter_4.solverstate{end}"))
    with caplog.at_level(logging.WARNING):
        old.restore_newest()
    assert "is of an earlier version, whose checksum leaves out how the run stood" in caplog.text
    whole.step(3)
    old.step(3)
    for one, other in zip(whole.net.learnable, old.net.learnable, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("end", ["", ".h5"])
def test_a_damaged_state_of_an_earlier_version_is_refused(here: Path, end: str) -> None:
    two_snapshots(end)
    path = Path(f"s_iter_4.solverstate{end}")
    values = read_state(path).history[0].tobytes()
    make_old(path)
    whole = path.read_bytes()
    for place in (whole.rindex(values), whole.index(b'"checksum"') + 1):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(SnapshotError, match="damaged: its checksum is not that of its content"):
            read_state(path)


@pytest.mark.parametrize("end", ["", ".h5"])
def test_a_run_of_an_earlier_version_that_cannot_be_set(
    here: Path, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was the end of the training, although there was an older snapshot that is whole."""
    two_snapshots(end)
    path = Path(f"s_iter_4.solverstate{end}")
    make_old(path)
    data = bytearray(path.read_bytes())
    data[data.rindex(b'"random"') + 1] ^= 1  # not what h5py has left of the one before
    path.write_bytes(data)
    assert main(["train", "solver.prototxt", "--resume", "auto"]) == 0
    log = capsys.readouterr().err
    assert "Passing over a snapshot: " in log and "the run cannot go on exactly: 'random'" in log
    assert log.rindex("Resuming from s_iter_2.") > log.index("Passing over")
    for other in Path().glob("s_iter_[28].*"):
        other.unlink()
    assert main(["train", "solver.prototxt", "--resume", "auto"]) == 2
    assert "the run cannot go on exactly: 'random'" in capsys.readouterr().err


def test_a_model_that_goes_away_while_the_snapshot_is_written(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checksum is of what was written; another training, or a clean-up, may have removed the file."""
    solver = Solver(parse_solver(SOLVER))
    solver.step(1)

    def remove(place: str, message: str) -> None:
        log_line(place, message)
        if "Snapshotting solver state" in message:
            os.unlink("s_iter_1.caffemodel")

    monkeypatch.setattr(snapshots, "log_line", remove)
    path = solver.snapshot()
    assert read_state(path).iteration == 1
