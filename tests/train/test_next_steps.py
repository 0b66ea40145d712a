"""The last lines of a training's log: commands that can be typed as they are."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import pytest
from tiny_solver import TINY_SOLVER, write_solver

from imae.cli.main import main
from imae.train.solver import Solver

# With a name that a shell would take apart.
SOLVER = TINY_SOLVER.replace('"s"', '"my runs/s"') + "max_iter: 3 test_iter: 2 test_interval: 2 "


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("my runs").mkdir()
    return tmp_path


def steps(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """The lines between Caffe's two last ones, of a training that ends with exit status 0."""
    assert main(["train", "solver.prototxt", *options]) == 0
    lines = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    ends = [i for i, line in enumerate(lines) if line.startswith("Optimization ")]
    assert lines[-1] == "Optimization Done." and len(ends) == 2
    return lines[ends[0] + 1 : ends[1]]


def commands(lines: list[str]) -> list[list[str]]:
    """The arguments of the commands that the lines name."""
    return [shlex.split(line.partition(": imae ")[2]) for line in lines if ": imae " in line]


def interrupt_at(iteration: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after an iteration."""
    step = Solver.apply_update

    def interrupted(solver: Solver) -> None:
        step(solver)
        if solver.iteration == iteration:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Solver, "apply_update", interrupted)


def test_the_end_names_the_weights_and_how_to_test_and_export_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_solver(SOLVER)
    lines = steps(capsys)
    assert lines[0] == "the weights are in my runs/s_iter_3.caffemodel"
    test, export = commands(lines)
    assert test[0] == "test" and test[-2:] == ["--iterations", "2"]
    assert export[0] == "export"
    for command in (test, export):
        assert main(command) == 0
    assert Path("my runs/s_iter_3.onnx").is_file()


def test_without_a_test_net_none_is_tested(capsys: pytest.CaptureFixture[str]) -> None:
    write_solver(TINY_SOLVER + "max_iter: 1")
    assert [command[0] for command in commands(steps(capsys))] == ["export"]


def test_a_training_that_writes_no_weights_names_none(capsys: pytest.CaptureFixture[str]) -> None:
    write_solver(TINY_SOLVER + "max_iter: 1 snapshot_after_train: false")
    assert steps(capsys) == []


@pytest.mark.parametrize(("iteration", "where"), [(3, " from iteration 2"), (4, "")])
def test_a_stopped_training_goes_on_from_its_newest_snapshot(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, iteration: int, where: str
) -> None:
    write_solver(SOLVER.replace("max_iter: 3", "max_iter: 6 snapshot_after_train: false"))
    with monkeypatch.context() as patch:
        interrupt_at(iteration, patch)
        (line,) = steps(capsys)
    assert line.startswith(f"to go on{where}: imae train solver.prototxt --snapshot ")
    assert line.endswith(", or --resume auto")
    assert main(shlex.split(line.partition(": imae ")[2].partition(",")[0])) == 0


def test_a_training_that_is_stopped_before_a_snapshot_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_solver(SOLVER + "snapshot_after_train: false")
    interrupt_at(1, monkeypatch)
    assert steps(capsys) == ["no snapshot was written, so the next start is from the beginning"]
