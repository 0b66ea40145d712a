"""Curves of several training logs, Caffe's and ours, in one image.

A chart is chosen by a number, as in Caffe's plot_training_log.py, or by a name: see `imae plot-log --help`.

Caffe: tools/extra/plot_training_log.py.example.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from imae.files.caffe_log import LogNumber, read_log
from imae.files.errors import DataError, ImaeError
from imae.files.read import AnyPath
from imae.train.curve_style import add_legend, look, style_axes, write_picture

RATE = "learning rate"
MEASURES = ("accuracy", "loss")
KINDS = ("loss", "lr", "test_loss", "train", "test")


class Chart(NamedTuple):
    """What is drawn: a kind of numbers; of the outputs, those with this name, or this word in their name."""

    kind: str
    name: str = ""
    word: str = ""

    def __str__(self) -> str:
        return {"loss": "smoothed loss", "lr": RATE, "test_loss": "test loss"}.get(
            self.kind, f"{self.kind} {self.name or self.word or 'outputs'}"
        )

    @property
    def y(self) -> str:
        """The name of the y axis, of a chart that has one."""
        return {"loss": "loss, mean of the last iterations", "lr": RATE}.get(self.kind, "loss")

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


def measure(name: str) -> str:
    """What an output measures, by its name: accuracies and losses have axes of their own."""
    return next((word for word in MEASURES if word in name.lower()), "value")


class Panel(NamedTuple):
    """A pair of axes: the curves of each log, by the log's place, and the names of the axes."""

    title: str
    y: str
    curves: list[tuple[int, str, Curve]]


def panels(logs: Sequence[tuple[str, list[LogNumber]]], chart: Chart) -> list[Panel]:
    """The axes of a chart of several (name, log) pairs."""
    of_outputs, names = chart.kind in ("train", "test"), [name for name, _ in logs]
    parts: dict[str, list[tuple[int, str, Curve]]] = {}
    for index, (name, numbers) in enumerate(logs):
        for curve in curves(numbers, chart):
            y = measure(curve.label) if of_outputs else chart.y
            label = name
            if of_outputs:
                label = f"{name}: {curve.label}" if len(logs) > 1 else curve.label
            if chart.kind == "lr":  # the last rate held until the log's end
                curve.iterations.append(numbers[-1].iteration)
                curve.seconds.append(numbers[-1].seconds)
                curve.values.append(curve.values[-1])
            parts.setdefault(y, []).append((index, label, curve))
    return [
        _panel(chart, y, parts[y], of_outputs, names)
        for y in sorted(parts, key=lambda y: [*MEASURES, y].index(y))
    ]


def _panel(
    chart: Chart, y: str, drawn: list[tuple[int, str, Curve]], of_outputs: bool, names: Sequence[str]
) -> Panel:
    """One of the panels. Where it shows one output, the title names that, and the legend only the logs."""
    if not of_outputs:
        return Panel(str(chart), y, drawn)
    outputs = {curve.label for *_, curve in drawn}
    if len(outputs) == 1:
        (output,) = outputs
        short = [(index, names[index], curve) for index, _, curve in drawn]
        return Panel(f"{chart.kind} {output}", y, short)
    unnamed = not chart.name and not chart.word and y in MEASURES
    return Panel(f"{chart.kind} {y}" if unnamed else str(chart), y, drawn)


def looks(parts: Iterable[Panel]) -> dict[str, dict[str, Any]]:
    """The look of each label: a colour for each log, or for each curve if all are of one log."""
    labels: dict[int, list[str]] = {}
    for panel in parts:
        for index, label, _ in panel.curves:
            of_log = labels.setdefault(index, [])
            if label not in of_log:
                of_log.append(label)
    several = len(labels) > 1
    return {
        label: look(index, place) if several else look(place)
        for index, of_log in labels.items()
        for place, label in enumerate(of_log)
    }


def draw_panel(axes: Any, panel: Panel, seconds: bool, styles: Mapping[str, dict[str, Any]] = {}) -> None:
    """Draw one panel.

    styles   the look of each label (see `looks`), where the panel is one of several
    """
    styles = styles or looks([panel])
    for _, label, curve in panel.curves:
        style = dict(styles[label])
        if panel.y == RATE:
            style["drawstyle"] = "steps-post"  # a rate holds until the next one
        axes.plot(curve.seconds if seconds else curve.iterations, curve.values, label=label, **style)
    if panel.y == RATE:
        show_rates(axes)
    style_axes(axes, panel.title, "seconds" if seconds else "iterations", panel.y)


def show_rates(axes: Any) -> None:
    """A logarithmic axis for rates that drop to a tenth or less, each drop by as much as the others."""
    rates = [float(rate) for line in axes.get_lines() for rate in line.get_ydata()]
    if rates and 0 < 10 * min(rates) <= max(rates):
        axes.set_yscale("log")


def log_names(paths: Sequence[str]) -> list[str]:
    """The names of the logs in a legend: their file names; if two are equal, paths from where they part."""
    names = [os.path.basename(path) for path in paths]
    if len(set(names)) == len(names):
        return names
    parts = [path.split("/") for path in paths]
    folders = zip(*(path[:-1] for path in parts), strict=False)
    common = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, folders))
    return ["/".join(path[common:]) for path in parts]


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
        raise DataError(
            f"there is no {chart} in these logs; there is {', '.join(sorted(known))}: "
            "write one of these as WHAT"
        )
    parts = panels(logs, chart)

    def draw(figure: Any) -> None:
        places = figure.subplots(len(parts), squeeze=False, sharex=True)[:, 0]
        styles = looks(parts)
        for axes, panel in zip(places, parts, strict=True):
            draw_panel(axes, panel, over_seconds or seconds, styles)
            axes.label_outer()
        add_legend(figure)

    write_picture(output, draw, height=5 if len(parts) == 1 else 3.2 * len(parts))
