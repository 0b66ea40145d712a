"""Random predictions, priors and truths for SSD's layers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Inputs(NamedTuple):
    """loc (N, 4 L P), conf (N, C P), priors (1, 2, 4 P), truths (1, 1, G, 8)."""

    loc: Tensor
    conf: Tensor
    prior: Tensor
    truth: Tensor


def random_inputs(
    num: int = 2, priors: int = 24, classes: int = 3, loc_classes: int = 1, truths: int = 5, *, seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Inputs:  # fmt: skip
    """Priors over the whole image, some beyond its border; the last image has no truths."""
    rng = np.random.default_rng(seed)

    def boxes(count: int, least: float, most: float) -> np.ndarray:
        centre, half = rng.uniform(0.05, 0.95, (count, 2)), rng.uniform(least, most, (count, 2))
        return np.concatenate([centre - half, centre + half], 1)

    variances = np.broadcast_to([0.1, 0.1, 0.2, 0.2], (priors, 4))
    prior = np.stack([boxes(priors, 0.1, 0.3), variances]).reshape(1, 2, -1)
    truth = np.zeros((truths, 8))
    truth[:, 0] = np.arange(truths) * max(num - 1, 1) // truths
    truth[:, 1] = rng.integers(1, classes, truths)
    truth[:, 3:7] = boxes(truths, 0.12, 0.3)
    truth[1::2, 7] = 1
    truth[-1, 0] = -1
    loc = rng.standard_normal((num, 4 * loc_classes * priors))
    conf = rng.standard_normal((num, classes * priors)) * 2
    arrays = (loc, conf, prior, truth.reshape(1, 1, truths, 8))
    return Inputs(*(torch.from_numpy(array).to(dtype) for array in arrays))


def probabilities(conf: Tensor, classes: int) -> Tensor:
    return torch.softmax(conf.reshape(len(conf), -1, classes), 2).reshape(conf.shape)
