"""Timer: measure elapsed time. Caffe: benchmark.cpp."""

from __future__ import annotations

import time


class Timer:
    """A stopwatch: `start()`, `stop()`, then `ms`, the milliseconds between the two (0 at first)."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._elapsed = 0.0

    def start(self) -> None:
        """Start, unless the timer is running."""
        if self._started is None:
            self._started = time.perf_counter()

    def stop(self) -> None:
        """Stop, if the timer is running."""
        if self._started is not None:
            self._elapsed, self._started = time.perf_counter() - self._started, None

    @property
    def ms(self) -> float:
        """Milliseconds of the last measurement; stops the timer if it is running."""
        self.stop()
        return self._elapsed * 1000
