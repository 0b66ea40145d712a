"""A progress bar below the log lines if stderr is a terminal; none if it is a file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from imae.train.solver import Solver


class StderrHandler(logging.Handler):
    """Writes log lines to stderr, above a progress bar.

    After it is closed it writes nothing, even if a thread still logs. A line that does not fit (a full disk,
    a quota) is lost, and the training continues, as with glog.
    """

    closed = False

    def emit(self, record: logging.LogRecord) -> None:
        if self.closed:
            return
        try:
            if sys.stderr.isatty():
                tqdm.write(self.format(record), file=sys.stderr)
            else:  # there is no bar, and a net has thousands of lines
                sys.stderr.write(self.format(record) + "\n")
        except BrokenPipeError:  # see main
            raise
        except OSError:
            return

    def close(self) -> None:
        self.acquire()
        self.closed = True
        self.release()
        super().close()


@contextmanager
def training_bar(solver: Solver) -> Iterator[None]:
    """Show the progress of `solver` towards max_iter while the block runs."""
    total = solver.param.max_iter
    with tqdm(
        total=total, initial=min(solver.iteration, total), unit="iter", disable=None, leave=False
    ) as bar:

        def show() -> None:
            bar.update(solver.iteration + 1 - bar.n)

        solver.on_gradients_ready.append(show)
        try:
            yield
        finally:
            solver.on_gradients_ready.remove(show)
