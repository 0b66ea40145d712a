"""The learning rate of an iteration: Caffe's seven policies.

    fixed      base_lr
    step       base_lr * gamma ^ current_step,   current_step = iteration / stepsize, rounded down
    exp        base_lr * gamma ^ iteration
    inv        base_lr * (1 + gamma * iteration) ^ -power
    multistep  base_lr * gamma ^ current_step,   current_step + 1 at each stepvalue
    poly       base_lr * (1 - iteration / max_iter) ^ power
    sigmoid    base_lr / (1 + exp(-gamma * (iteration - stepsize)))

Iterations count from 0; the rate is used in the update of that iteration. It equals Caffe's bit for bit: the
powers of step, exp and multistep are double, all else is float32, 1 + gamma * iteration is rounded once.

Caffe: sgd_solver.cpp, GetLearningRate.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from imae.files.errors import PrototxtError
from imae.files.nearest import did_you_mean
from imae.prototxt import SolverParameter

f32, f64 = np.float32, np.float64
Policy = Callable[[SolverParameter, int, int], np.float32 | np.float64]


def learning_rate(param: SolverParameter, iteration: int, current_step: int) -> float:
    """The rate of the update at `iteration`; PrototxtError if the policy is unknown or lacks a field."""
    name = param.lr_policy
    if name not in POLICIES:
        hint = did_you_mean(name, POLICIES, "'")
        raise PrototxtError(
            f"Unknown learning rate policy: {name}{hint} (known policies: {', '.join(POLICIES)})"
        )
    if name not in ("fixed", "poly") and not param.gamma >= 0:
        raise PrototxtError(f"lr_policy {name!r}: gamma must be at least 0, got {param.gamma:g}")
    if name in ("step", "sigmoid") and param.stepsize <= 0:
        raise PrototxtError(f"lr_policy {name!r}: stepsize must be greater than 0, got {param.stepsize}")
    with np.errstate(all="ignore"):  # Caffe: poly may be NaN beyond max_iter, exp may become infinite
        return float(f32(f32(param.base_lr) * POLICIES[name](param, iteration, current_step)))


def advance_step(param: SolverParameter, iteration: int, current_step: int) -> int:
    """current_step at `iteration`, from current_step at the iteration before."""
    if param.lr_policy == "step" and param.stepsize > 0:
        return iteration // param.stepsize
    if param.lr_policy == "multistep" and current_step < len(param.stepvalue):
        # Caffe: at most one step per iteration; with stepvalues close together, later iterations catch up.
        return current_step + (iteration >= param.stepvalue[current_step])
    return current_step


def _fixed(param: SolverParameter, iteration: int, current_step: int) -> np.float32:
    return f32(1)


def _step(param: SolverParameter, iteration: int, current_step: int) -> np.float64:
    return f64(param.gamma) ** current_step


def _exp(param: SolverParameter, iteration: int, current_step: int) -> np.float64:
    return f64(param.gamma) ** iteration


def _inv(param: SolverParameter, iteration: int, current_step: int) -> np.float32:
    return f32(f64(f32(1 + f64(param.gamma) * iteration)) ** f64(-param.power))


def _poly(param: SolverParameter, iteration: int, current_step: int) -> np.float32:
    return f32(f64(f32(1) - f32(iteration) / f32(param.max_iter)) ** f64(param.power))


def _sigmoid(param: SolverParameter, iteration: int, current_step: int) -> np.float32:
    exponent = -f32(param.gamma) * (f32(iteration) - f32(param.stepsize))
    return f32(1) / (f32(1) + f32(np.exp(f64(exponent))))


POLICIES: dict[str, Policy] = {
    "fixed": _fixed,
    "step": _step,
    "exp": _exp,
    "inv": _inv,
    "multistep": _step,
    "poly": _poly,
    "sigmoid": _sigmoid,
}
