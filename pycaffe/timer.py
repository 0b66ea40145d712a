"""Timer: how long something took.  Caffe: benchmark.cpp."""

from __future__ import annotations

import time


class Timer:
    """A stop-watch: `start()`, `stop()`, then `ms`, the milliseconds between the two (0 before)."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._elapsed = 0.0

    def start(self) -> None:
        """Start, unless it runs already."""
        if self._started is None:
            self._started = time.perf_counter()

    def stop(self) -> None:
        """Stop, if it runs."""
        if self._started is not None:
            self._elapsed, self._started = time.perf_counter() - self._started, None

    @property
    def ms(self) -> float:
        """Milliseconds of the last run; ends it if it still goes on."""
        self.stop()
        return self._elapsed * 1000
