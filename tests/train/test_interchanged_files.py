"""`--snapshot` with weights and `--weights` with a solver state: the error names the other option."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_solver import TINY_SOLVER, write_solver

from imae.cli.main import main

WEIGHTS, STATE = "to start from these weights: --weights {}", "to go on from this state: --snapshot {}"


@pytest.mark.parametrize("suffix", ["", ".h5"])
def test_the_error_names_the_other_option(
    suffix: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_solver(f"{TINY_SOLVER} max_iter: 2 {'snapshot_format: HDF5' if suffix else ''}")
    assert main(["train", "solver.prototxt"]) == 0
    Path("my runs").mkdir()
    weights, state = Path(f"s_iter_2.caffemodel{suffix}"), Path(f"my runs/renamed.solverstate{suffix}")
    Path(f"s_iter_2.solverstate{suffix}").rename(state)
    for option, path, remedy in (
        ("--snapshot", weights, WEIGHTS.format(weights)),
        ("--weights", state, STATE.format(f"'{state}'")),
        ("--weights", f"{weights},{state}", STATE.format(f"'{state}'")),
    ):
        assert main(["train", "solver.prototxt", option, str(path)]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("imae: ") and last.endswith(f"; {remedy}")
    Path("none.caffemodel").write_bytes(b"\0\1\2")
    assert main(["train", "solver.prototxt", "--weights", "none.caffemodel"]) == 2
    assert "--snapshot" not in capsys.readouterr().err.splitlines()[-1]


def test_elsewhere_a_solver_state_says_where_the_weights_are(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_solver(f"{TINY_SOLVER} max_iter: 2")
    assert main(["train", "solver.prototxt"]) == 0
    assert main(["test", "--model", "net.prototxt", "--weights", "s_iter_2.solverstate"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("a solver state in binary form: the weights are in the .caffemodel beside it")
