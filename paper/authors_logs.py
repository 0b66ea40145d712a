"""The authors' own CIFAR-100 curves, compared with the log of any CIFAR-100 run.

Their runs are described in authors_cifar100_resnet44.csv. Their tables print the best value of each run, with
two exceptions: 70.0 for CCE with clean labels (best 70.11, final 70.04) and 50.6 for GCE with noise 0.6 (best
50.67).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from imae.files.caffe_log import read_log, rows
from imae.files.errors import DataError, ImaeError
from imae.files.read import AnyPath

CURVES = Path(__file__).with_name("authors_cifar100_resnet44.csv")
ITERATIONS = 30000
NOISE = (0.0, 0.2, 0.4, 0.6)


class Curve(NamedTuple):
    """Test accuracy, 0 to 1, by iteration of a training."""

    iterations: tuple[int, ...]
    accuracy: tuple[float, ...]

    @property
    def best(self) -> float:
        return max(self.accuracy)

    @property
    def final(self) -> float:
        return self.accuracy[-1]


class AuthorsRun(NamedTuple):
    """One of the authors' runs.

    lambda_, beta   the parameters of DM; None for other losses
    noise           the share of labels that are of another class
    """

    loss: str
    lambda_: float | None
    beta: float | None
    noise: float
    curve: Curve

    @property
    def label(self) -> str:
        """The loss as a table shows it."""
        if self.lambda_ is None or self.beta is None:
            return self.loss
        name = f"DM(λ {self.lambda_:g}, β {self.beta:g})"
        return f"IMAE-{self.beta:g}" if self.lambda_ == 1 and self.beta else name

    @property
    def family(self) -> str:
        """The loss without the parameters tuned per noise rate: IMAE, DM of a λ, or the loss itself."""
        if self.lambda_ is None:
            return self.loss
        return self.label if self.beta == 0 else "IMAE" if self.lambda_ == 1 else f"DM, λ = {self.lambda_:g}"


def authors_runs() -> list[AuthorsRun]:
    """The authors' 48 runs."""
    lines = [line for line in CURVES.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    header, *runs = csv.reader(lines)
    iterations = tuple(map(int, header[4:]))
    return [
        AuthorsRun(
            loss,
            float(lambda_) if lambda_ else None,
            float(beta) if beta else None,
            float(noise),
            Curve(iterations, tuple(map(float, values))),
        )
        for loss, lambda_, beta, noise, *values in runs
    ]


def chosen(runs: Iterable[AuthorsRun], noise: float | None, loss: str | None) -> list[AuthorsRun]:
    """The runs with this noise and loss (family or label, case ignored); ImaeError if there is none."""
    runs = list(runs)
    if noise is not None and noise not in NOISE:
        known = ", ".join(f"{rate:g}" for rate in NOISE)
        raise ImaeError(f"the authors' logs have noise {known}, not {noise:g}")
    names = sorted({run.family for run in runs} | {run.label for run in runs})
    if loss is not None and loss.lower() not in map(str.lower, names):
        raise ImaeError(f"the authors' logs have no loss '{loss}'; they have {', '.join(names)}")
    matching = [
        run
        for run in runs
        if noise in (None, run.noise)
        and (loss is None or loss.lower() in (run.family.lower(), run.label.lower()))
    ]
    if not matching:
        raise ImaeError(f"the authors' logs have no run of {loss} with noise {noise:g}")
    return matching


def read_curve(path: AnyPath) -> Curve:
    """The test accuracy in a log, ours or Caffe's; DataError if the log has none."""
    table = rows(read_log(path), "test")
    names = [name for name in (table[0] if table else {}) if "acc" in name.lower()]
    if not names:
        raise DataError(f"'{path}' has no test accuracy: no test net output with 'acc' in its name")
    points = {int(row["NumIters"]): row[names[0]] for row in table if names[0] in row}
    if any(not 0 <= value <= 1 for value in points.values()):
        raise DataError(f"'{path}': {names[0]} is not always from 0 to 1")
    return Curve(tuple(sorted(points)), tuple(points[iteration] for iteration in sorted(points)))


def difference(ours: Curve, theirs: Curve) -> tuple[int, float] | None:
    """The number of iterations at which both were tested, and the mean of ours - theirs there; None if 0."""
    known = dict(zip(theirs.iterations, theirs.accuracy, strict=True))
    differences = [
        value - known[iteration]
        for iteration, value in zip(ours.iterations, ours.accuracy, strict=True)
        if iteration in known
    ]
    return (len(differences), sum(differences) / len(differences)) if differences else None
