"""`imae paper --help` explains each name: what it makes, how many runs, what it needs, how long it takes."""

from __future__ import annotations

import pytest

from imae.cli.command_paper import MAKES, WITHOUT_TRAINING
from imae.cli.main import main
from imae.paper.experiments import GRIDS


def test_each_name_is_explained(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAKES.keys() == {*GRIDS, *WITHOUT_TRAINING, "all", "run", "net"}
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["paper", "--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, text in MAKES.items():
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert line.endswith(f"  {text}") and len(line) <= 110
        assert (f" {len(GRIDS[name]()) if name in GRIDS else ''} runs  " in line) == (name in GRIDS)
    words = " ".join(lines)
    assert "64,000 iterations" in words and "--cifar10 PATH" in words and "minutes on one core" in words


def test_a_misspelt_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "tabel2"]) == 2
    assert capsys.readouterr().err.endswith("; did you mean 'table2'?\n")
