"""The line below the log of a training on a terminal; nothing of it in a file."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from tiny_solver import TINY_SOLVER, write_solver

from imae.cli.main import main
from imae.prototxt.dialects import read_solver_dialect
from imae.train.progress import clock, progress_text
from imae.train.solver import Solver

# What ends and begins a line of the terminal: a line that is rewritten ends with a carriage return.
LINE = re.compile(r"[\r\n]+")


class Terminal(io.StringIO):
    """What a program writes to a terminal."""

    def isatty(self) -> bool:
        return True


def written(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *options: str) -> list[str]:
    """The lines that a training writes to `stream` as its stderr."""
    write_solver(TINY_SOLVER + "max_iter: 40 test_iter: 1 test_interval: 25")
    monkeypatch.setattr(sys, "stderr", stream)
    assert main(["train", "solver.prototxt", *options]) == 0
    return [line for line in LINE.split(stream.getvalue()) if line.strip()]


def without_log(lines: list[str]) -> list[str]:
    """The lines that are not of a log in glog's form, nor of the net's prototxt in it."""
    return [line for line in lines if re.match(r"\d+/\d+ \[", line)]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_terminal_shows_iterations_loss_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = without_log(written(Terminal(), monkeypatch))
    assert lines[0].startswith("0/40 [0 %]")
    last = lines[-1]
    assert re.match(r"40/40 \[100 %\]( [\d.e+]+ it/s)?, loss = [\d.]+, end in 0:00", last), last


def test_a_file_has_the_log_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = written(io.StringIO(), monkeypatch)
    assert not without_log(lines)
    assert any("] Iteration 39 " in line for line in lines)


def test_no_progress_leaves_the_line_out_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = written(Terminal(), monkeypatch, "--no-progress")
    assert not without_log(lines)
    assert any("] Iteration 39 " in line for line in lines)


def test_the_line_counts_to_the_next_test_and_to_the_end() -> None:
    write_solver(TINY_SOLVER + "max_iter: 400 test_iter: 1 test_interval: 100")
    solver = Solver(read_solver_dialect("solver.prototxt", None))
    assert progress_text(solver, 0, 0, 0) == "0/400 [0 %]"
    assert progress_text(solver, 130, 10, 5) == "130/400 [32 %] 10 it/s, test in 0:07, end in 0:54"
    # A test is due now.
    assert progress_text(solver, 200, 10, 5) == "200/400 [50 %] 10 it/s, test in 0:00, end in 0:40"
    solver.step(2)
    assert progress_text(solver, 2, 0, 0) == f"2/400 [0 %], loss = {solver.smoothed_loss:.6g}"
    solver.param.test_offset = 20
    assert "test in 0:09," in progress_text(solver, 130, 10, 5)
    solver.param.max_iter = 150
    assert "test in" not in progress_text(solver, 130, 1, 1)


def test_nothing_reads_the_loss_but_a_display() -> None:
    write_solver(TINY_SOLVER.replace("display: 1 snapshot: 2", "display: 3") + "max_iter: 10")
    solver = Solver(read_solver_dialect("solver.prototxt", None))
    assert solver.last_read_loss is None
    read: list[float | None] = []
    solver.on_gradients_ready.append(lambda: read.append(solver.last_read_loss))
    solver.step(5)
    assert read[0] is not None
    assert read[0] == read[1] == read[2] != read[3] == read[4]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (9999, "2:46:39")]
)
def test_times(seconds: float, text: str) -> None:
    assert clock(seconds) == text
