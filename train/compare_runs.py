"""Any number of trainings beside each other, by their logs: best and last test outputs, loss, time.

An output with "loss" or "error" in its name is best where it is lowest, any other where it is highest. Logs
of one run with several seeds can be grouped: their numbers become a mean and a standard deviation.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from imae.files.caffe_log import LogNumber, number, read_log
from imae.files.errors import DataError, ImaeError
from imae.files.read import AnyPath
from imae.train.compare_logs import aligned
from imae.train.curve_style import add_legend, look, style_axes, write_picture
from imae.train.log_tables import csv_text
from imae.train.plot_log import RATE, Chart, Curve, curves, log_names, measure, show_rates

LOWER_IS_BETTER = ("loss", "error")


class Outcome(NamedTuple):
    """A test output of a run. iteration: of its best value."""

    best: float
    iteration: int
    last: float


class Training(NamedTuple):
    """A log in short.

    outputs     by the output's name; elements of vectors are left out
    iterations  the last one in the log
    loss        the last smoothed training loss; None where there is none
    seconds     of all parts of a run that was stopped and resumed
    """

    name: str
    outputs: dict[str, Outcome]
    iterations: int
    loss: float | None
    seconds: float
    numbers: list[LogNumber]


def is_better(name: str, value: float, other: float) -> bool:
    """Whether a value of this output is better than another one. NaN is never better, and worse than any."""
    if other != other:
        return value == value
    return value < other if any(word in name.lower() for word in LOWER_IS_BETTER) else value > other


def summarise(name: str, numbers: Sequence[LogNumber]) -> Training:
    """The summary of a log. Where a run was resumed and an iteration is there twice, the last one counts."""
    outputs = {}
    for curve in test_curves(numbers):
        values = dict(sorted(dict(zip(curve.iterations, curve.values, strict=True)).items()))
        best, *rest = values
        for iteration in rest:
            if is_better(curve.label, values[iteration], values[best]):
                best = iteration
        outputs[curve.label] = Outcome(values[best], best, list(values.values())[-1])
    losses = [n.value for n in numbers if n.what == "loss"]
    return Training(
        name,
        outputs,
        max(n.iteration for n in numbers),
        losses[-1] if losses else None,
        _seconds(numbers),
        list(numbers),
    )


def test_curves(numbers: Sequence[LogNumber]) -> list[Curve]:
    """The curves of the test outputs, without elements of vectors; then the loss of test_compute_loss."""
    outputs = [curve for curve in curves(numbers, Chart("test")) if "[" not in curve.label]
    return outputs + [c._replace(label=f"test {c.label}") for c in curves(numbers, Chart("test_loss"))]


def _seconds(numbers: Sequence[LogNumber]) -> float:
    """The time that a log covers. Each part of a resumed run counts from its own start."""
    total, before = 0.0, 0.0
    for entry in numbers:
        if entry.seconds < before:
            total += before
        before = entry.seconds
    return total + before


class Sample(NamedTuple):
    """A number of the seeds of a run: mean, and standard deviation; None of one seed."""

    mean: float
    deviation: float | None

    def text(self) -> str:
        """As a table shows it."""
        spread = "" if self.deviation is None else f" ± {self.deviation:.2g}"
        return f"{number(self.mean)}{spread}" if self.deviation is None else f"{self.mean:.4g}{spread}"


def sample(values: Sequence[float]) -> Sample:
    """Mean and standard deviation."""
    return Sample(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


class Group(NamedTuple):
    """A run: the trainings of all its seeds."""

    name: str
    trainings: list[Training]

    def outcome(self, output: str) -> tuple[Sample, Sample, Sample] | None:
        """Best, its iteration, and last of an output; None where a seed lacks the output."""
        found = [training.outputs[output] for training in self.trainings if output in training.outputs]
        if len(found) < len(self.trainings):
            return None
        best, iteration, last = (sample(values) for values in zip(*found, strict=True))
        return best, iteration, last

    def loss(self) -> Sample | None:
        """The last training loss."""
        losses = [training.loss for training in self.trainings if training.loss is not None]
        return sample(losses) if len(losses) == len(self.trainings) else None


def read_groups(paths: Sequence[str], pattern: str | None = None, by_folder: bool = False) -> list[Group]:
    """The logs, grouped into runs; without an option each log is a run.

    pattern    logs whose names are the same without what this regular expression matches are seeds of a run
    by_folder  logs in one folder are seeds of a run
    """
    if pattern is not None and by_folder:
        raise ImaeError("logs are grouped by --group or by --group-folders; give one")
    trainings = [summarise(name, read_log(path)) for name, path in zip(log_names(paths), paths, strict=True)]
    if by_folder:
        folders = [os.path.dirname(os.path.abspath(path)) for path in paths]
        short = [os.path.basename(folder) for folder in folders]
        names = short if len(set(short)) == len(set(folders)) else folders
    elif pattern is not None:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ImaeError(f"--group '{pattern}' is no regular expression: {error}") from None
        names = [expression.sub("", training.name) for training in trainings]
    else:
        names = [training.name for training in trainings]
    groups: dict[str, list[Training]] = {}
    for name, training in zip(names, trainings, strict=True):
        groups.setdefault(name, []).append(training)
    return [Group(name, members) for name, members in groups.items()]


def output_names(groups: Sequence[Group], chosen: Sequence[str] = ()) -> list[str]:
    """The test outputs to compare: accuracies first, then losses.

    chosen   by the user; without, those that all logs have, or all if they have none in common. DataError for
             one that no log has.
    """
    trainings = [training for group in groups for training in group.trainings]
    known = list(dict.fromkeys(output for training in trainings for output in training.outputs))
    for name in chosen:
        if name not in known:
            raise DataError(
                f"no log has a test output '{name}'; there is {', '.join(known) or 'none at all'}"
            )
    order = ["accuracy", "value", "loss"]
    common = [name for name in known if all(name in training.outputs for training in trainings)]
    return list(chosen) or sorted(common or known, key=lambda name: order.index(measure(name)))


def table(groups: Sequence[Group], outputs: Sequence[str]) -> str:
    """The runs as a table of text, a line each."""
    grouped = any(len(group.trainings) > 1 for group in groups)
    head = ["run", *(["seeds"] if grouped else [])]
    for output in outputs:
        head += [f"{output} best", "at", "last"]
    lines = [[*head, "train loss", "iterations", "seconds"]]
    for group in groups:
        line = [group.name, *([str(len(group.trainings))] if grouped else [])]
        for output in outputs:
            outcome = group.outcome(output)
            if outcome is None:
                line += ["-"] * 3
            else:
                best, iteration, last = outcome
                line += [best.text(), f"{iteration.mean:.0f}", last.text()]
        loss = group.loss()
        seconds = statistics.fmean(training.seconds for training in group.trainings)
        iterations = min(training.iterations for training in group.trainings)
        lines.append([*line, "-" if loss is None else loss.text(), str(iterations), f"{seconds:.0f}"])
    return aligned(lines)


def rows(groups: Sequence[Group], outputs: Sequence[str]) -> list[dict[str, Any]]:
    """The runs as rows of a CSV file; the standard deviations of runs with several seeds have columns."""
    result = []
    for group in groups:
        row: dict[str, Any] = {"run": group.name, "seeds": len(group.trainings)}
        for output in outputs:
            best, iteration, last = group.outcome(output) or (None, None, None)
            _add(row, f"{output} best", best)
            row[f"{output} best iteration"] = "" if iteration is None else iteration.mean
            _add(row, f"{output} last", last)
        _add(row, "train loss", group.loss())
        row["iterations"] = min(training.iterations for training in group.trainings)
        row["seconds"] = statistics.fmean(training.seconds for training in group.trainings)
        result.append(row)
    return result


def _add(row: dict[str, Any], name: str, value: Sample | None) -> None:
    row[name] = "" if value is None else value.mean
    row[f"{name} std"] = "" if value is None or value.deviation is None else value.deviation


def as_csv(groups: Sequence[Group], outputs: Sequence[str]) -> str:
    """The runs as CSV."""
    return csv_text(rows(groups, outputs))


def as_json(groups: Sequence[Group], outputs: Sequence[str]) -> str:
    """The runs as JSON, with the numbers of each seed."""
    result = [
        {
            "run": group.name,
            "seeds": [
                {
                    "log": training.name,
                    "outputs": {
                        output: {
                            "best": _finite(training.outputs[output].best),
                            "best_iteration": training.outputs[output].iteration,
                            "last": _finite(training.outputs[output].last),
                        }
                        for output in outputs
                        if output in training.outputs
                    },
                    "train_loss": _finite(training.loss),
                    "iterations": training.iterations,
                    "seconds": training.seconds,
                }
                for training in group.trainings
            ],
        }
        for group in groups
    ]
    return json.dumps({"runs": result}, indent=1, ensure_ascii=False) + "\n"


def _finite(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and abs(value) < float("inf") else None


class Band(NamedTuple):
    """A curve over the iterations that all seeds have: the mean, the lowest and the highest value."""

    iterations: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def band(trainings: Sequence[Training], output: str) -> Band | None:
    """The curve of a test output, "train loss" or "learning rate"; None where no seed has it."""
    by_seed = [_values(training, output) for training in trainings]
    common = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    if not common:
        return None
    columns = [[values[iteration] for values in by_seed] for iteration in common]
    return Band(
        common, list(map(statistics.fmean, columns)), list(map(min, columns)), list(map(max, columns))
    )


def _values(training: Training, output: str) -> Mapping[int, float]:
    kind = {TRAIN_LOSS: "loss", RATE: "lr"}.get(output)
    if kind is not None:
        return {n.iteration: n.value for n in training.numbers if n.what == kind}
    for curve in test_curves(training.numbers):
        if curve.label == output:
            return dict(zip(curve.iterations, curve.values, strict=True))
    return {}


TRAIN_LOSS = "train loss"


def draw_runs(path: AnyPath, groups: Sequence[Group], outputs: Sequence[str]) -> None:
    """Write the curves of the runs as an image: each test output, the train loss and the learning rate.

    A run has a colour. With several seeds the line is their mean, in a band from the lowest to the highest.
    """
    charts = []
    for name in (*outputs, TRAIN_LOSS, RATE):
        bands = [(index, group, band(group.trainings, name)) for index, group in enumerate(groups)]
        if drawn := [(index, group, curve) for index, group, curve in bands if curve is not None]:
            charts.append((name, drawn))

    def draw(figure: Any) -> None:
        places = figure.subplots(-(-len(charts) // 2), 2, squeeze=False).ravel()
        for axes in places[len(charts) :]:
            axes.set_visible(False)
        for axes, (name, drawn) in zip(places, charts, strict=False):
            for index, group, curve in drawn:
                style = look(index)
                if name == RATE:
                    style["drawstyle"] = "steps-post"  # a rate holds until the next one
                axes.plot(curve.iterations, curve.mean, label=group.name, **style)
                if len(group.trainings) > 1 and name != RATE:
                    axes.fill_between(
                        curve.iterations, curve.low, curve.high, color=style["color"], alpha=0.18, linewidth=0
                    )
            if name == RATE:
                show_rates(axes)
            title, y = _titles(name)
            style_axes(axes, title, "iterations", y)
        add_legend(figure)

    write_picture(path, draw, height=0.8 + 2.8 * -(-len(charts) // 2))


def _titles(name: str) -> tuple[str, str]:
    """The title of a chart, and the name of its y axis."""
    if name == TRAIN_LOSS:
        return "train loss, mean of the last iterations", "loss"
    return (name, name) if name == RATE else (f"test: {name}", measure(name))


def compare_runs(
    paths: Sequence[str],
    *,
    pattern: str | None = None,
    by_folder: bool = False,
    outputs: Sequence[str] = (),
    picture: AnyPath | None = None,
) -> tuple[list[Group], list[str]]:
    """Read and group the logs, and draw them if `picture` is given; returns the runs and the outputs.

    ImaeError for options that contradict each other; DataError for a file that is no log.
    """
    groups = read_groups(paths, pattern, by_folder)
    names = output_names(groups, outputs)
    if picture is not None:
        draw_runs(picture, groups, names)
    return groups, names
