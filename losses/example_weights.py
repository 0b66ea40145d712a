"""The weight w(p) that a loss gives an example: the L1 norm of its gradient with respect to the logits.

    p     softmax probability of the annotated label (equation 1)
    rest  1 - p, the probability of all other classes together; an argument of its own, because near p = 1 the
          difference 1 - p loses all digits

    CCE   2 rest                              equation 19
    MAE   4 p rest                            equation 20
    IMAE  exp(T p rest)                       equation 21
    GCE   2 p^q rest                          later version, table 2
    MSE   4 p rest^2                          later version, table 2
    DM    exp(beta p^lambda rest)             arXiv 1905.11233; IMAE is lambda 1, beta T
    SCE   2 (alpha + beta |A| p) rest         arXiv 1908.06112
    AUL   2 p (a - p)^(q-1) rest              arXiv 2106.03110
    AGCE  2 p (a + p)^(q-1) rest              arXiv 2106.03110
    AEL   2 p exp(-p / a) / a rest            arXiv 2106.03110
    TCE   2 (1 - rest^t) rest                 Feng et al. 2020

Equations: "Improving MAE against CCE under Label Noise", arXiv 1903.12141; its later version is "IMAE for
Noise-Robust Learning". The last five follow from the losses' formulas. All functions work element by element,
on any shape, dtype and device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Weight = Callable[[Tensor, Tensor], Tensor]

LARGEST_EXPONENT = 80.0  # a batch of exp(80) still has a sum in single precision


def cce(p: Tensor, rest: Tensor) -> Tensor:
    """2 (1 - p), equation 19."""
    return 2 * rest


def mae(p: Tensor, rest: Tensor) -> Tensor:
    """4 p (1 - p), equation 20."""
    return 4 * p * rest


def mse(p: Tensor, rest: Tensor) -> Tensor:
    """4 p (1 - p)^2."""
    return 4 * p * rest * rest


def gce(p: Tensor, rest: Tensor, q: float) -> Tensor:
    """2 p^q (1 - p); q = 1 is half of MAE, q -> 0 is CCE."""
    return 2 * p**q * rest


def imae(p: Tensor, rest: Tensor, t: float) -> Tensor:
    """exp(T p (1 - p)), equation 21."""
    return torch.exp(t * p * rest)


def dm(p: Tensor, rest: Tensor, lambda_: float, beta: float) -> Tensor:
    """exp(beta p^lambda (1 - p))."""
    return torch.exp(beta * p**lambda_ * rest)


def sce(p: Tensor, rest: Tensor, alpha: float, beta: float, log_zero: float) -> Tensor:
    """2 (alpha + beta |A| p) (1 - p)."""
    return 2 * (alpha - beta * log_zero * p) * rest


def aul(p: Tensor, rest: Tensor, a: float, q: float) -> Tensor:
    """2 p (a - p)^(q - 1) (1 - p)."""
    return 2 * p * (a - p) ** (q - 1) * rest


def agce(p: Tensor, rest: Tensor, a: float, q: float) -> Tensor:
    """2 p (a + p)^(q - 1) (1 - p)."""
    return 2 * p * (a + p) ** (q - 1) * rest


def ael(p: Tensor, rest: Tensor, a: float) -> Tensor:
    """2 p exp(-p / a) / a (1 - p)."""
    return 2 * p * torch.exp(-p / a) / a * rest


def tce(p: Tensor, rest: Tensor, t: int) -> Tensor:
    """2 (1 - (1 - p)^t) (1 - p); 1 - (1 - p)^t without loss of digits where p is near 0."""
    return -2 * torch.expm1(t * torch.log1p(-p)) * rest


def largest_exponent(lambda_: float, beta: float) -> float:
    """Largest value of beta p^lambda (1 - p) on [0, 1]: at p = lambda / (1 + lambda), or 0 for beta < 0."""
    p = lambda_ / (1 + lambda_)
    return max(beta * math.pow(p, lambda_) * (1 - p), 0.0)


def mean(weight: Weight) -> float:
    """Integral of w(p) over p from 0 to 1.

    Tanh-sinh rule: with p = sigmoid(pi sinh t) the integrand decays doubly exponentially at both ends, so a
    singular derivative there (p^lambda, lambda < 1) does no harm; about 1e-15 relative for the weights above.
    """
    t = torch.linspace(-4, 4, 513, dtype=torch.float64)
    p, rest = torch.sigmoid(math.pi * t.sinh()), torch.sigmoid(-math.pi * t.sinh())
    return float((weight(p, rest) * math.pi * t.cosh() * p * rest).sum()) / 64


def variance(weight: Weight) -> float:
    """Variance of w(p) for p uniform on [0, 1], equations 23 and 24: the differentiation degree of a loss."""
    return mean(lambda p, rest: weight(p, rest) ** 2) - mean(weight) ** 2


def curve(weight: Weight, points: int = 201) -> tuple[Tensor, Tensor]:
    """(p, w): `points` equally spaced p from 0 to 1, float64, and their weights."""
    p = torch.linspace(0, 1, points, dtype=torch.float64)
    return p, weight(p, 1 - p)


def figure_1(points: int = 201) -> dict[str, tuple[Tensor, Tensor]]:
    """The curves of the paper's figure 1 by name."""
    weights: dict[str, Weight] = {"CCE": cce, "MAE": mae, "IMAE, T = 8": partial(imae, t=8)}
    return {name: curve(weight, points) for name, weight in weights.items()}
