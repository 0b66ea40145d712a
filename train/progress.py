"""A progress bar below the log lines where stderr is a terminal; nothing where it is a file."""

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
    """Writes log lines to stderr; a bar that is shown there steps aside for them.

    Once it is closed it writes no more, whatever a thread that still runs has to say. A line for which there
    is no room (a full disk, a quota) is lost: a training goes on without it, as under glog.
    """

    closed = False

    def emit(self, record: logging.LogRecord) -> None:
        if self.closed:
            return
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except BrokenPipeError:  # nobody reads: see main
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
    """Show how far `solver` has got towards max_iter while the block runs."""
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
