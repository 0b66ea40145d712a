"""Momentum and weight decay that change from iteration to iteration: fields of NVIDIA's solvers.

    momentum_policy      fixed  momentum
                         poly   momentum + (max_momentum - momentum) * (iteration / max_iter) ^ momentum_power
                         opt    (1 - sqrt(rate) / 2) ^ 2, at most max_momentum, if that is set
    weight_decay_policy  fixed  weight_decay
                         poly   weight_decay + (max_weight_decay - weight_decay)
                                               * (iteration / max_iter) ^ weight_decay_power

The momentum is that of SGD; other types keep theirs. All is float32, apart from the terms of `opt`.

NVIDIA Caffe 0.17: sgd_solver.cpp, GetMomentum, GetWeightDecay. Differs: an unknown weight_decay_policy is an
error (there it is fixed); the decay also changes on the CPU, where the fork passes over its policy.
"""

from __future__ import annotations

import numpy as np

from imae.files.errors import PrototxtError
from imae.prototxt import SolverParameter

f32, f64 = np.float32, np.float64
MOMENTUM_POLICIES = ("fixed", "poly", "opt")
DECAY_POLICIES = ("fixed", "poly")


def check_schedules(param: SolverParameter) -> None:
    """PrototxtError for a policy that is unknown."""
    for field, policies in (
        ("momentum_policy", MOMENTUM_POLICIES),
        ("weight_decay_policy", DECAY_POLICIES),
    ):
        if (name := getattr(param, field)) not in policies:
            raise PrototxtError(f"Unknown {field}: {name} (known policies: {', '.join(policies)})")


def momentum_varies(param: SolverParameter) -> bool:
    """Whether the momentum changes from iteration to iteration."""
    return param.type == "SGD" and param.momentum_policy != "fixed"


def decay_varies(param: SolverParameter) -> bool:
    """Whether the weight decay changes from iteration to iteration."""
    return param.weight_decay_policy != "fixed"


def momentum_at(param: SolverParameter, iteration: int, rate: float) -> float:
    """The momentum of the update at `iteration`, whose learning rate is `rate`."""
    if not momentum_varies(param):
        return param.momentum
    if param.momentum_policy == "poly":
        return _grown(param, param.momentum, param.max_momentum, param.momentum_power, iteration)
    root = 1 - 0.5 * f64(np.sqrt(f32(rate)))
    momentum = f32(root * root)
    return float(min(f32(param.max_momentum), momentum) if param.HasField("max_momentum") else momentum)


def weight_decay_at(param: SolverParameter, iteration: int) -> float:
    """The weight decay of the update at `iteration`."""
    if not decay_varies(param):
        return param.weight_decay
    return _grown(param, param.weight_decay, param.max_weight_decay, param.weight_decay_power, iteration)


def _grown(param: SolverParameter, start: float, end: float, power: float, iteration: int) -> float:
    """`start` at iteration 0, `end` at max_iter."""
    with np.errstate(all="ignore"):  # max_iter may be 0
        part = f32(f64(f32(iteration) / f32(param.max_iter)) ** f64(power))
        return float(f32(start) + (f32(end) - f32(start)) * part)
