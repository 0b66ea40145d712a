"""Caffe's log: its lines written, parsed and compared.

    I1121 02:13:11.119556  3203 solver.cpp:239] Iteration 0 (0 iter/s, 0.005s/20 iters), loss = 2.33961

A line begins with severity, month and day, time, thread and the place in Caffe's sources that writes it, so
that the tools made for Caffe's logs read ours.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, TextIO

from imae.files.errors import DataError, printable
from imae.files.read import file_size, open_to_read

if TYPE_CHECKING:
    import numpy as np

SEVERITIES = {
    logging.DEBUG: "I",
    logging.INFO: "I",
    logging.WARNING: "W",
    logging.ERROR: "E",
    logging.CRITICAL: "F",
}


logger = logging.getLogger("imae.caffe")
debug_logger = logging.getLogger("imae.caffe.debug_info")  # of the lines that a net's debug_info asks for


def log_line(
    place: str,
    message: str,
    level: int = logging.INFO,
    lines: bool = False,
    logger: logging.Logger = logger,
) -> None:
    """Log a line of Caffe's, or several if `lines`, as from a place in Caffe's sources, "solver.cpp:239"."""
    if logger.isEnabledFor(level):  # `Logger.log` would look for its caller, which no line shows
        extra = {"caffe": place, "lines": lines}
        logger.handle(logger.makeRecord(logger.name, level, "", 0, "%s", (message,), None, extra=extra))


class GlogFormatter(logging.Formatter):
    """Log records as glog 0.3 writes them; `extra={"caffe": "solver.cpp:239"}` names the place.

    A name in a message may come from an untrusted file. Unprintable characters are escaped, so that they
    cannot control a terminal or forge log lines. `extra={"lines": True}` marks a message of several lines.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created)
        place = getattr(record, "caffe", f"{record.filename}:{record.lineno}")
        severity = SEVERITIES.get(record.levelno, "I")
        message = record.getMessage()
        if getattr(record, "lines", False):
            message = "\n".join(map(_escaped, message.split("\n")))
        else:
            message = _escaped(message)
        return f"{severity}{time:%m%d %H:%M:%S.%f} {threading.get_native_id():5d} {place}] {message}"


def _escaped(line: str) -> str:
    if line.isprintable():
        return line
    return "\t".join(map(printable, line.split("\t")))  # Caffe's own lines have tabs


def number(value: float | np.float32) -> str:
    """A number as a C++ stream prints it: 6 significant digits; NaN with its sign."""
    if math.isnan(value):
        return "-nan" if math.copysign(1, value) < 0 else "nan"
    return f"{float(value):.6g}"


def output_text(name: str, value: np.float32, weight: np.float32) -> str:
    """An element of an output blob, with its weighted loss where it has a loss_weight."""
    loss = f" (* {number(weight)} = {number(weight * value)} loss)" if weight else ""
    return f"{name} = {number(value)}{loss}"


class LogNumber(NamedTuple):
    """One number of a log.

    what       loss (smoothed), lr, train or test (an output of the net), test_loss
    net        index of the test net
    place      of the output, as in `Test net output #1`
    seconds    since the line `Solving ...`
    """

    what: str
    iteration: int
    net: int
    place: int
    name: str
    value: float
    seconds: float


PREFIX = re.compile(r"[IWEF](\d{4})?(\d\d)(\d\d) (\d\d):(\d\d):(\d\d)\.(\d+) +\d+ \S+:\d+\] ")
VALUE = r"(-?(?:\d+\.?\d*(?:e[+-]?\d+)?|nan|inf))(?!\S)"
ITERATION = re.compile(r"Iteration (\d{1,18})(?:, Testing net \(#(\d{1,9})\))?(?!\d)")
LOSS = re.compile(r"Iteration \d{1,18}(?: \(.*\))?, loss = " + VALUE)
# NVIDIA Caffe: ", m = ..., lrm = ..." in the same line.
RATE = re.compile(r"Iteration \d{1,18}, lr = " + VALUE.replace(r"(?!\S)", r"(?:, m = |(?!\S))"))
TEST_LOSS = re.compile(r"Test loss: " + VALUE)
LONGEST_LINE = 1 << 16  # characters; Caffe's lines are shorter
OUTPUT = re.compile(r"(Train|Test) net output #(\d{1,9}): (\S+) = " + VALUE)


def read_log(path: str | os.PathLike[str]) -> list[LogNumber]:
    """The numbers of a log file, in its order; DataError where it cannot be read or has none."""
    try:
        with open_to_read(path) as opened:
            size = file_size(opened)
            with io.TextIOWrapper(opened, encoding="utf-8", errors="replace") as file:
                numbers = list(parse_log(_lines(file, size)))
    except OSError as error:
        raise DataError(f"cannot read the log '{os.fspath(path)}': {error.strerror}") from None
    if not numbers:
        raise DataError(f"'{os.fspath(path)}': no loss, rate or output in it; expected the log of a training")
    return numbers


def _lines(file: TextIO, left: int) -> Iterator[str]:
    """The lines in the first `left` bytes of a file, its size when it was opened: it may grow for ever.

    A line longer than LONGEST_LINE comes in pieces.
    """
    while left > 0 and (line := file.readline(LONGEST_LINE)):
        left -= len(line)  # characters: bytes or fewer
        yield line


def parse_log(lines: Iterable[str], year: int | None = None) -> Iterator[LogNumber]:
    """The numbers of a log, in its order; lines that are not Caffe's are skipped.

    year   of the first line, where the log has none; default: this year (leap years matter)
    """
    iteration, net = -1, 0
    start = now = datetime(year or datetime.now().year, 1, 1)
    for line in lines:
        prefix = PREFIX.match(line)
        if prefix is None:
            continue
        now = _time(prefix, now)
        message = line[prefix.end() :].rstrip("\n")
        if message.startswith("Solving "):
            start = now
        if match := ITERATION.match(message):
            iteration, net = int(match[1]), int(match[2] or 0)
        if iteration < 0:
            continue
        seconds = (now - start).total_seconds()
        if match := LOSS.match(message):
            yield LogNumber("loss", iteration, 0, 0, "loss", float(match[1]), seconds)
        elif match := RATE.match(message):
            yield LogNumber("lr", iteration, 0, 0, "lr", float(match[1]), seconds)
        elif match := TEST_LOSS.match(message):
            yield LogNumber("test_loss", iteration, net, 0, "loss", float(match[1]), seconds)
        elif match := OUTPUT.match(message.lstrip()):
            of_net = net if match[1] == "Test" else 0
            yield LogNumber(
                match[1].lower(), iteration, of_net, int(match[2]), match[3], float(match[4]), seconds
            )


def _time(prefix: re.Match[str], before: datetime) -> datetime:
    """The time of a line. Without a year in it, a month smaller than that of `before` starts a new year."""
    year, month, day, hour, minute, second, fraction = prefix.groups()
    years = int(year) if year else before.year + (int(month) < before.month)
    clock = timedelta(hours=int(hour), minutes=int(minute), seconds=float(f"{second}.{fraction}"))
    try:
        return datetime(years, int(month), int(day)) + clock
    except (ValueError, OverflowError):  # 29 February in another year, or no date at all
        return before


def rows(numbers: Iterable[LogNumber], what: str = "train", net: int = 0) -> list[dict[str, float]]:
    """A table of the train outputs, or of the outputs of one test net; a row each time they were printed.

    The columns are those of Caffe's parse_log.py: NumIters, Seconds, LearningRate and the outputs by name.
    Its faults are not repeated (`caffe_rows` does that): LearningRate is the rate of this iteration (NaN
    where it was not printed), no row is lost, test nets do not mix, and the elements of a vector output are
    name[0], name[1] ...
    """
    numbers = list(numbers)
    rates = {n.iteration: n.value for n in numbers if n.what == "lr"}
    table: list[list[LogNumber]] = []
    for entry in numbers:
        if (entry.what, entry.net) == (what, net):
            if entry.place == 0 or not table:  # a log may begin in the middle of a row
                table.append([])
            table[-1].append(entry)
    return [
        {
            "NumIters": entries[0].iteration,
            "Seconds": entries[0].seconds,
            "LearningRate": rates.get(entries[0].iteration, math.nan),
            **dict(zip(_columns([e.name for e in entries]), (e.value for e in entries), strict=True)),
        }
        for entries in table
    ]


def caffe_rows(numbers: Iterable[LogNumber], what: str = "train") -> list[dict[str, float]]:
    """The table of the train or test outputs that Caffe's parse_log.py makes of a log, faults included.

    A row begins with the first output of an iteration and is complete with as many columns as the first row:
    the outputs of several test nets mix, and a vector output has one column. LearningRate is the last one
    printed before the row, and in the first row that of the second. A row that is incomplete when the log
    ends is lost. Differs: NaN is read, and the only row of a log is kept.
    """
    table: list[dict[str, float]] = []
    row: dict[str, float] = {}
    rate = math.nan
    for entry in numbers:
        if entry.what == "lr":
            rate = entry.value
        elif entry.what == what:
            if row and row["NumIters"] != entry.iteration:
                table.append(row)
                row = {}
            if not row:
                row = {"NumIters": float(entry.iteration), "Seconds": entry.seconds, "LearningRate": rate}
            row[entry.name] = entry.value
            if table and len(row) == len(table[0]):
                table.append(row)
                row = {}
    if row and not table:
        table.append(row)
    if len(table) > 1:
        table[0]["LearningRate"] = table[1]["LearningRate"]
    return table


def _columns(names: list[str]) -> list[str]:
    """Names of outputs with the elements of vectors told apart."""
    return [
        f"{name}[{names[:i].count(name)}]" if names.count(name) > 1 else name for i, name in enumerate(names)
    ]


class LogDifference(NamedTuple):
    """How far the numbers of one kind differ between two logs.

    common           how many numbers both have; missing, extra: how many only the first, only the second has
    absolute         the largest difference; relative: the largest one relative to the first log's number
    iteration, name  where the absolute difference is largest
    parted           the first iteration where the relative difference is above the tolerance
    """

    what: str
    common: int
    missing: int
    extra: int
    absolute: float
    relative: float
    iteration: int
    name: str
    parted: int | None


def compare(first: Iterable[LogNumber], second: Iterable[LogNumber], rtol: float = 0) -> list[LogDifference]:
    """The differences between two logs, by kind; where a number occurs twice, the last one counts."""
    a, b = ({n[:5]: n.value for n in log} for log in (first, second))
    differences = []
    for what in dict.fromkeys(key[0] for key in [*a, *b]):
        ours, theirs = ({key for key in log if key[0] == what} for log in (a, b))
        worst, relative, where, parted = 0.0, 0.0, (what, -1, 0, 0, ""), None
        for key in sorted(ours & theirs):
            distance = _distance(a[key], b[key])
            relative = max(relative, relative_difference(a[key], b[key]))
            if relative > rtol and parted is None:
                parted = key[1]
            if distance > worst or where[1] < 0:
                worst, where = distance, key
        counts = len(ours & theirs), len(ours - theirs), len(theirs - ours)
        differences.append(LogDifference(what, *counts, worst, relative, where[1], where[4], parted))
    return differences


def relative_difference(a: float, b: float) -> float:
    """|a - b| / |a|; or |a - b| where a is 0."""
    distance = _distance(a, b)
    return distance / abs(a) if a and distance < math.inf else distance


def _distance(a: float, b: float) -> float:
    """|a - b|; NaNs are equal to each other and infinitely far from all other numbers."""
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    distance = abs(a - b)
    return distance if math.isfinite(distance) else math.inf
