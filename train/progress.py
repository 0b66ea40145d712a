"""The log on stderr, and below it, where stderr is a terminal, one line that shows how far a training is.

    120/4000 [3 %] 12.5 it/s, loss = 1.83, test in 0:06, end in 5:10

A log that is a file or a pipe has no such line. tqdm is imported only for a terminal.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from imae.files.caffe_log import number

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
                from tqdm import tqdm

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
def training_bar(solver: Solver, shown: bool = True) -> Iterator[None]:
    """Show the progress of `solver` towards max_iter while the block runs, if stderr is a terminal.

    shown   False: on a terminal neither
    """
    if not shown or not sys.stderr.isatty():
        yield
        return
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]  # nothing is iterated over
        """A line of the facts below. tqdm asks for them when it writes, some times a second."""

        @property
        def format_dict(self) -> dict[str, Any]:
            facts = super().format_dict
            average_rate = (self.n - self.initial) / max(facts["elapsed"], 1e-9)
            return {**facts, "facts": progress_text(solver, int(self.n), facts["rate"] or 0, average_rate)}

    total = solver.param.max_iter
    first = min(solver.iteration, total)
    with Bar(total=total, initial=first, leave=False, bar_format="{facts}", dynamic_ncols=True) as bar:

        def show() -> None:
            bar.update(solver.iteration + 1 - bar.n)

        solver.on_gradients_ready.append(show)
        try:
            yield
        finally:
            solver.on_gradients_ready.remove(show)


def progress_text(solver: Solver, iteration: int, rate: float, average_rate: float) -> str:
    """How far a training is, in one line: iterations, speed, loss, time until the next test and the end.

    iteration      iterations that are done
    rate           iterations per second now, average_rate: of the run, with its tests; 0: not known yet

    The loss is the one that was read last, for a line of the log: nothing waits for the device here.
    """
    param = solver.param
    parts = [f"{iteration}/{param.max_iter} [{100 * iteration // max(param.max_iter, 1)} %]"]
    if rate:
        parts[0] += f" {number(float(f'{rate:.3g}'))} it/s"
    if (loss := solver.last_read_loss) is not None:
        parts.append(f"loss = {number(loss)}")
    if param.test_interval and solver.test_nets:
        left = -(iteration - param.test_offset) % param.test_interval
        if rate and iteration < param.max_iter and iteration + left <= param.max_iter:
            parts.append(f"test in {clock(left / rate)}")
    if average_rate:
        parts.append(f"end in {clock(max(param.max_iter - iteration, 0) / average_rate)}")
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 3:02:01."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
