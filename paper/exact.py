"""Results of the paper that need no training.

Table 4 and equation 26, figures 1 and 5, the share of labels that its noise leaves right, and the later
version's table 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from google.protobuf import text_format
from torch import Tensor

from imae.layers.caffe_random import CaffeRandom
from imae.layers.registry import class_of
from imae.layers.run import Run
from imae.losses import example_weights as weights
from imae.paper.expected import LATER_TABLE_2, TABLE_4, VARIANCES, Formula
from imae.paper.experiments import TEMPERATURES
from imae.prototxt import LayerParameter
from imae.prototxt.caffe_pb2 import LossParameter

Curves = dict[str, tuple[Tensor, Tensor]]  # (p, w) by name
CLASSES = 10
SAME_SLOPE = 1e-12  # of the L1 norm, in double precision

OfP = Callable[[Tensor], Tensor]
# The formulas of LATER_TABLE_2 as functions of p (and p_j): dL/dz_y, dL/dz_j, L1 norm.
FORMULAS: dict[str, tuple[OfP, Callable[[Tensor, Tensor], Tensor], OfP]] = {
    "CCE": (lambda p: p - 1, lambda p, p_j: p_j, lambda p: 2 * (1 - p)),
    "MAE": (lambda p: 2 * p * (p - 1), lambda p, p_j: 2 * p * p_j, lambda p: 4 * p * (1 - p)),
    "IMAE-8": (
        lambda p: -torch.exp(8 * p * (1 - p)) / 2,
        lambda p, p_j: torch.exp(8 * p * (1 - p)) * p_j / (2 * (1 - p)),
        lambda p: torch.exp(8 * p * (1 - p)),
    ),
    "GCE-0.7": (
        lambda p: p**0.7 * (p - 1),
        lambda p, p_j: p**0.7 * p_j,
        lambda p: 2 * p**0.7 * (1 - p),
    ),
    "MSE": (
        lambda p: -2 * p * (p - 1) ** 2,
        lambda p, p_j: 2 * p * (1 - p) * p_j,
        lambda p: 4 * p * (1 - p) ** 2,
    ),
    "DM(0.5, 8)": (
        lambda p: -torch.exp(8 * p**0.5 * (1 - p)) / 2,
        lambda p, p_j: torch.exp(8 * p**0.5 * (1 - p)) * p_j / (2 * (1 - p)),
        lambda p: torch.exp(8 * p**0.5 * (1 - p)),
    ),
}
# L(p) of LATER_TABLE_2, where it is elementary.
VALUES: dict[str, OfP] = {
    "CCE": lambda p: -torch.log(p),
    "MAE": lambda p: 2 * (1 - p),
    "GCE-0.7": lambda p: (1 - p**0.7) / 0.7,
    "MSE": lambda p: (1 - p) ** 2,
}


class Exact(NamedTuple):
    """A number of the paper as printed, and our value, which is also rounded to as many digits."""

    name: str
    printed: str
    value: float

    @property
    def rounded(self) -> str:
        """Our value as the paper would print it."""
        text = f"{self.value:.{len(self.printed.partition('.')[2])}f}"
        return text if float(text) else text.removeprefix("-")  # a variance of 0 may be -1e-17

    @property
    def same(self) -> bool:
        """Whether our value equals the paper's to the printed digit."""
        return self.rounded == self.printed


def table_4() -> list[Exact]:
    """The variance of IMAE's weights for each T."""
    return [
        Exact(f"{t:g}", printed, weights.variance(partial(weights.imae, t=t)))
        for t, printed in TABLE_4.items()
    ]


def figure_1_variances() -> list[Exact]:
    """The two variances that figure 1's caption and section 4 print."""
    ours: dict[str, weights.Weight] = {"MAE": weights.mae, "IMAE-8": partial(weights.imae, t=8)}
    return [Exact(name, printed, weights.variance(ours[name])) for name, printed in VARIANCES.items()]


def figure_1(points: int = 201) -> Curves:
    """The weights of CCE, MAE and IMAE with T = 8."""
    return {name.replace(", T = ", "-"): curve for name, curve in weights.figure_1(points).items()}


def figure_5(points: int = 201) -> Curves:
    """IMAE's weights for each T."""
    return {f"{t:g}": weights.curve(partial(weights.imae, t=t), points) for t in TEMPERATURES}


def equation_26(t: float) -> float:
    """The variance of IMAE's weights by the supplement's closed form, for T > 0; at T = 0 it is 0/0."""
    first = math.sqrt(math.pi) * math.erf(math.sqrt(2 * t) / 2) * math.exp(t / 2) / math.sqrt(2 * t)
    return first - math.pi * math.erf(math.sqrt(t) / 2) ** 2 * math.exp(t / 2) / t


def share_of_examples(weight: weights.Weight, least: float, points: int = 100_000) -> float:
    """The share of p, uniform on [0, 1], whose weight is at least `least` times the largest, 0 to 1."""
    p = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    w = weight(p, 1 - p)
    return float((w >= least * w.max()).double().mean())


def overlap(rate: float) -> float:
    """The share of labels that stay right if, with probability `rate`, one becomes any of the ten classes."""
    return 1 - rate + rate / CLASSES


class Checked(NamedTuple):
    """A row of the later table 2, and the largest errors of our layer's gradient, relative to its L1 norm.

    own, other, norm   the errors of dL/dz_y, of dL/dz_j and of the L1 norm
    """

    formula: Formula
    own: float
    other: float
    norm: float


def later_table_2() -> list[Checked]:
    """Compare the layers' gradients, in double precision, with the printed formulas."""
    return [_check(formula) for formula in LATER_TABLE_2]


class CheckedValue(NamedTuple):
    """A printed L(p) of the later table 2, and whether the printed dL/dz_y is its gradient.

    difference   the largest one between dL/dp p (1 - p) and the printed dL/dz_y, relative to the L1 norm;
                 None where no L(p) is printed
    words        what this shows
    """

    loss: str
    difference: float | None
    words: str


def later_table_2_values() -> list[CheckedValue]:
    """Compare the gradients of the printed L(p), in double precision, with the printed dL/dz_y."""
    return [_check_value(formula.loss) for formula in LATER_TABLE_2]


def _check_value(loss: str) -> CheckedValue:
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64, requires_grad=True)
    if loss in VALUES:
        (slope,) = torch.autograd.grad(VALUES[loss](p).sum(), p)
        words = "dL/dp p (1-p) is the printed dL/dz_y"
    elif loss == "IMAE-8":  # dL/dp is the integrand at p, with a minus
        slope = -torch.exp(8 * p * (1 - p)) / (2 * p * (1 - p))
        words = (
            "the integral diverges at u = 1, as that of 1 / (2 (1-u)): L is infinite for every p; of its "
            "integrand, -dL/dp, dL/dz_y is right"
        )
    else:
        return CheckedValue(loss, None, "no L(p) is printed")
    own, _, norm = FORMULAS[loss]
    p, slope = p.detach(), slope.detach()
    difference = float(((slope * p * (1 - p) - own(p)).abs() / norm(p)).max())
    if difference > SAME_SLOPE:
        words = "dL/dp p (1-p) is NOT the printed dL/dz_y"
    return CheckedValue(loss, difference, words)


def _check(formula: Formula) -> Checked:
    p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    shares = torch.arange(1, CLASSES, dtype=torch.float64)
    others = (1 - p)[:, None] * shares / shares.sum()
    gradient = _gradient(formula.prototxt, torch.cat([p[:, None], others], 1).log())
    own_formula, other_formula, norm_formula = FORMULAS[formula.loss]
    own, other, norm = own_formula(p), other_formula(p[:, None], others), norm_formula(p)

    def farthest(difference: Tensor) -> float:
        return float((difference.abs().reshape(len(p), -1).amax(1) / norm).max())

    return Checked(
        formula,
        farthest(gradient[:, 0] - own),
        farthest(gradient[:, 1:] - other),
        farthest(gradient.abs().sum(1) - norm),
    )


def _gradient(prototxt: str, logits: Tensor) -> Tensor:
    """d loss / d logits of a loss layer, summed over the examples, all of which have label 0."""
    param = text_format.Parse(prototxt, LayerParameter(name="loss", bottom=["fc", "label"], top=["loss"]))
    param.loss_param.normalization = LossParameter.NONE
    layer = class_of(param)(param)
    logits = logits.requires_grad_()
    label = torch.zeros(len(logits), dtype=logits.dtype)
    layer.build([tuple(logits.shape), tuple(label.shape)], Run(CaffeRandom(1)))
    layer(logits, label).backward()
    assert logits.grad is not None
    return logits.grad
