"""Curves of several training logs, Caffe's and ours, in one image.

A chart is chosen by a number, as in Caffe's plot_training_log.py, or by a name: see `imae plot-log --help`.

Caffe: tools/extra/plot_training_log.py.example.
"""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from imae.files.atomic import write_atomically
from imae.files.caffe_log import LogNumber, read_log
from imae.files.errors import DataError, ImaeError
from imae.files.read import AnyPath

STYLES = ("-", "--", ":", "-.")  # of the first log, the second, ...: to see curves that coincide
KINDS = ("loss", "lr", "test_loss", "train", "test")


class Chart(NamedTuple):
    """What is drawn: a kind of numbers; of the outputs, those with this name, or this word in their name."""

    kind: str
    name: str = ""
    word: str = ""

    def __str__(self) -> str:
        return {"loss": "smoothed loss", "lr": "learning rate", "test_loss": "test loss"}.get(
            self.kind, f"{self.kind} {self.name or self.word or 'outputs'}"
        )

    def shows(self, number: LogNumber) -> bool:
        """Whether this number belongs to the chart."""
        return number.what == self.kind and self.name in ("", number.name) and self.word in number.name


# The charts 0 and 1 (over seconds), 2 and 3, ...
NUMBERED = (Chart("test", word="accuracy"), Chart("test", word="loss"), Chart("lr"), Chart("loss"))


class Curve(NamedTuple):
    """A line of a chart."""

    label: str
    iterations: list[int]
    seconds: list[float]
    values: list[float]


def curves(numbers: Iterable[LogNumber], chart: Chart) -> list[Curve]:
    """The curves of a chart in one log, by the outputs' names; each element of a vector has its own."""
    by_output: dict[tuple[int, str, int], Curve] = {}
    for number in filter(chart.shows, numbers):
        curve = by_output.setdefault((number.net, number.name, number.place), Curve("", [], [], []))
        curve.iterations.append(number.iteration)
        curve.seconds.append(number.seconds)
        curve.values.append(number.value)
    outputs = [key[:2] for key in by_output]
    labelled = []
    for index, (curve, (net, name)) in enumerate(zip(by_output.values(), outputs, strict=True)):
        element = f"[{outputs[:index].count((net, name))}]" if outputs.count((net, name)) > 1 else ""
        labelled.append(curve._replace(label=name + element + (f" (test net #{net})" if net else "")))
    return labelled


def draw_curves(axes: Any, logs: Sequence[tuple[str, list[LogNumber]]], chart: Chart, seconds: bool) -> None:
    """Draw the chart of several (name, log) pairs into one pair of axes."""
    for index, (name, numbers) in enumerate(logs):
        for curve in curves(numbers, chart):
            label = f"{name}: {curve.label}" if chart.kind in ("train", "test") else name
            x = curve.seconds if seconds else curve.iterations
            axes.plot(x, curve.values, STYLES[index % len(STYLES)], label=label, linewidth=1)
    finish_axes(axes, str(chart), "seconds" if seconds else "iterations")


def finish_axes(axes: Any, title: str, x: str) -> None:
    """Title, name of the x axis, grid, and a legend if there is something to explain."""
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure, sizes in inches; ImaeError without matplotlib."""
    try:
        figure_module = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError:
        raise ImaeError("a picture needs the package matplotlib: pip install matplotlib") from None
    return figure_module.Figure(figsize=(width, height), dpi=120, layout="constrained")


def write_picture(path: AnyPath, draw: Callable[[Any], None], height: float = 5) -> None:
    """Write the Figure that `draw` fills, `height` inches high, to a file; ImaeError without matplotlib."""
    figure = new_figure(8, height)
    draw(figure)
    ending = os.path.splitext(path)[1].removeprefix(".").lower()
    formats = figure.canvas.get_supported_filetypes()
    if ending not in formats:
        raise ImaeError(
            f"'{os.fspath(path)}': the ending must be that of a picture: {', '.join(sorted(formats))}"
        )
    picture = io.BytesIO()
    figure.savefig(picture, format=ending)
    write_atomically(path, picture.getvalue())


def log_names(paths: Sequence[str]) -> list[str]:
    """The names of the logs in a legend: their file names, or their paths if two file names are equal."""
    names = [os.path.basename(path) for path in paths]
    return names if len(set(names)) == len(names) else list(paths)


def chart_of(text: str) -> tuple[Chart, bool]:
    """The chart that an argument names, and whether its x axis is seconds."""
    if text.isdecimal() and int(text[:9]) < 2 * len(NUMBERED):
        return NUMBERED[int(text) // 2], int(text) % 2 == 1
    kind, colon, name = text.partition(":")
    if kind not in KINDS or (colon and (not name or kind not in ("train", "test"))):
        raise ImaeError(f"cannot draw '{text}'; expected 0 to 7, {', '.join(KINDS)}, train:NAME or test:NAME")
    return Chart(kind, name), False


def plot_logs(chart_text: str, output: AnyPath, paths: Sequence[str], seconds: bool = False) -> None:
    """Draw the curves of some logs into the image `output`, whose suffix chooses the format.

    chart_text   the chart, as `imae plot-log --help` lists them: 0 to 7, loss, test:accuracy ...
    seconds      whether the x axis is seconds since the training began, not iterations

    ImaeError for an unknown chart or suffix; DataError if the logs have no numbers for the chart.
    """
    chart, over_seconds = chart_of(chart_text)
    logs = list(zip(log_names(paths), map(read_log, paths), strict=True))
    if not any(chart.shows(number) for _, numbers in logs for number in numbers):
        known = {
            n.what if n.what not in ("train", "test") else f"{n.what}:{n.name}"
            for _, log in logs
            for n in log
        }
        raise DataError(f"there is no {chart} in these logs; there is {', '.join(sorted(known))}")
    write_picture(output, lambda figure: draw_curves(figure.subplots(), logs, chart, over_seconds or seconds))
