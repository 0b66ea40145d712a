"""The timing of several ways in turns."""

from __future__ import annotations

import pytest

from benchmarks import measure


def test_before_each_turn_threads_of_the_last_one_come_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[object] = []
    monkeypatch.setattr(measure.time, "sleep", events.append)
    ways = {"a": lambda: events.append("a"), "b": lambda: events.append("b")}
    timings = measure.in_turns(ways, rounds=2, warm_up=0, rest=0.25)
    assert [event for event in events if event == 0.25] == [0.25] * 4
    turns = [events[place : place + 3] for place in range(0, len(events), 3)]
    assert sorted(map(str, turns)) == ["[0.25, 'a', 'a']"] * 2 + ["[0.25, 'b', 'b']"] * 2
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 2, "b": 2}
    events.clear()
    measure.in_turns(ways, rounds=1, warm_up=0)
    assert sorted(map(str, events)) == ["a", "b"]
