"""What `python -m benchmarks` runs, and when it ends."""

from __future__ import annotations

import importlib
from functools import partial

import pytest

from benchmarks import __main__ as program
from benchmarks.measure import in_turns


@pytest.mark.parametrize("asked", ["", *program.NAMES])
def test_all_are_those_of_speed(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    for name in program.NAMES:
        module = importlib.import_module(f"benchmarks.{name}")
        monkeypatch.setattr(module, "main", lambda arguments, name=name: begun.append(name))
    monkeypatch.setattr("sys.argv", ["benchmarks", *filter(None, [asked])])
    program.main()
    assert begun == ([asked] if asked else [name for name in program.NAMES if name not in program.BY_NAME])
    assert {"training", "scaling", "data", "nets"} <= set(begun) or asked


def test_a_table_ends_when_its_seconds_are_over() -> None:
    calls: list[str] = []
    ways = {"one": partial(calls.append, "one"), "other": partial(calls.append, "other")}
    for seconds, rounds in ((0.0, 2), (1000.0, 5)):
        calls.clear()
        timings = in_turns(ways, 5, warm_up=1, seconds=seconds)
        assert [len(timing.seconds) for timing in timings.values()] == [rounds, rounds]
        assert len(calls) == 2 * (rounds + 1)
