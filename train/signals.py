"""Signals as in `caffe train`: a request that the solver acts on after the current iteration.

SIGINT stops (with a snapshot, if snapshot_after_train), SIGHUP snapshots and continues; both can be changed.
SIGTERM does the same as SIGINT, so that a cancelled job keeps its work; Caffe does not catch it.
A SIGINT after a requested stop interrupts the program at once. A second SIGTERM does not, since schedulers
may send it twice.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from imae.files.errors import ImaeError


class Action(enum.Enum):
    """What a signal requests."""

    NONE = "none"
    STOP = "stop"
    SNAPSHOT = "snapshot"


def action(effect: str) -> Action:
    """The action that a flag's value names."""
    try:
        return Action(effect)
    except ValueError:
        raise ImaeError(
            f'Invalid signal effect "{effect}" was specified; expected stop, snapshot or none'
        ) from None


class SignalRequests:
    """Catches the signals while its `with` block runs; a call returns what was requested since the last."""

    def __init__(self, sigint: Action = Action.STOP, sighup: Action = Action.SNAPSHOT) -> None:
        self._actions = {signal.SIGINT: sigint, signal.SIGTERM: sigint}
        if hasattr(signal, "SIGHUP"):  # not on Windows
            # First, as Caffe checks it first.
            self._actions = {signal.SIGHUP: sighup, **self._actions}
        self._seen: set[int] = set()
        self._stopping = False
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> Action:
        for number, requested in self._actions.items():
            if number in self._seen:
                self._seen.discard(number)
                return requested
        return Action.NONE

    def __enter__(self) -> SignalRequests:
        for number in self._actions:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._stopping |= self._actions[signal.Signals(number)] is Action.STOP
        self._seen.add(number)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP (a closed terminal) as Ctrl-C while the block runs.

    Otherwise the processes that the block has started would go on alone.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    names = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    before = {
        number: signal.signal(number, interrupt)
        for number in (getattr(signal, name, None) for name in names)
        if number is not None
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
