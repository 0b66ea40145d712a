"""The learning rate of an iteration: Caffe's seven policies, and what its forks added.

    fixed       base_lr
    step        base_lr * gamma ^ current_step,   current_step = iteration / stepsize, rounded down
    exp         base_lr * gamma ^ iteration
    inv         base_lr * (1 + gamma * iteration) ^ -power
    multistep   base_lr * gamma ^ current_step,   current_step + 1 at each stepvalue
    poly        base_lr * (1 - iteration / max_iter) ^ power
    sigmoid     base_lr / (1 + exp(-gamma * (iteration - stepsize)))
    plateau     base_lr * gamma ^ current_step,   current_step + 1 where the smoothed loss has made no new
                minimum for plateau_winsize[current_step] iterations (SSD, Intel)
    multifixed  stagelr of the first stage whose stageiter is at least iteration, else the last one (Intel)

    rampup_interval  before it: rampup_lr + (base_lr - rampup_lr) * (iteration / rampup_interval) ^ 2 (NVIDIA)
    warmup_iter      before it: warmup_start_lr to base_lr in a straight line (Intel)
    min_lr           no rate is lower; poly ends there instead of at 0 (NVIDIA)

Iterations count from 0; the rate is used in the update of that iteration. It equals Caffe's bit for bit: the
powers of step, exp and multistep are double, all else is float32, 1 + gamma * iteration is rounded once.

Caffe: sgd_solver.cpp, GetLearningRate; the same file of weiliu89/caffe, branch ssd, of intel/caffe, and of
NVIDIA/caffe, branch caffe-0.17. Differs: fields of a warm-up by Intel and by NVIDIA together are an error;
during a warm-up the momentum stays as it is, as in Intel's builds with fused SGD, the default on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from imae.files.errors import PrototxtError
from imae.files.nearest import did_you_mean
from imae.prototxt import SolverParameter

f32, f64 = np.float32, np.float64
Policy = Callable[[SolverParameter, int, int], np.float32 | np.float64]


def learning_rate(param: SolverParameter, iteration: int, current_step: int) -> float:
    """The rate of the update at `iteration`; PrototxtError if the policy is unknown or lacks a field."""
    check_policy(param)
    with np.errstate(all="ignore"):  # Caffe: poly may be NaN beyond max_iter, exp may become infinite
        if iteration < param.rampup_interval:
            rate = _rampup(param, iteration)
        elif iteration < param.warmup_iter:
            rate = _warmup(param, iteration)
        elif param.lr_policy == "multifixed":
            rate = f32(param.stagelr[_stage(param, iteration)])
        elif param.lr_policy == "poly" and param.HasField("min_lr"):
            span = f32(param.base_lr) - f32(param.min_lr)
            rate = f32(span * _poly(param, iteration, current_step)) + f32(param.min_lr)
        else:
            rate = f32(f32(param.base_lr) * POLICIES[param.lr_policy](param, iteration, current_step))
        if param.HasField("min_lr") and rate < f32(param.min_lr):
            rate = f32(param.min_lr)
        return float(rate)


def check_policy(param: SolverParameter) -> None:
    """PrototxtError if the policy is unknown, lacks a field, or contradicts itself."""
    name = param.lr_policy
    if name not in POLICIES:
        hint = did_you_mean(name, POLICIES, "'")
        raise PrototxtError(
            f"Unknown learning rate policy: {name}{hint} (known policies: {', '.join(POLICIES)})"
        )
    if name not in ("fixed", "poly", "multifixed") and not param.gamma >= 0:
        raise PrototxtError(f"lr_policy {name!r}: gamma must be at least 0, got {param.gamma:g}")
    if name in ("step", "sigmoid") and param.stepsize <= 0:
        raise PrototxtError(f"lr_policy {name!r}: stepsize must be greater than 0, got {param.stepsize}")
    if name == "multifixed" and not len(param.stagelr) == len(param.stageiter) > 0:
        raise PrototxtError(
            f"lr_policy 'multifixed' needs a stagelr for each stageiter, and at least one; got "
            f"{len(param.stagelr)} stagelr and {len(param.stageiter)} stageiter"
        )
    if not param.min_lr >= 0:
        raise PrototxtError(f"min_lr must be at least 0, got {param.min_lr:g}")
    if name == "poly" and param.base_lr < param.min_lr:
        raise PrototxtError(
            f"lr_policy 'poly': base_lr must be at least min_lr, got {param.base_lr:g} and {param.min_lr:g}"
        )
    if param.rampup_interval > 0 and param.warmup_iter > 0:
        raise PrototxtError(
            "rampup_interval is a warm-up of NVIDIA's fork, warmup_iter one of Intel's; remove one of them"
        )


def is_warming_up(param: SolverParameter, iteration: int) -> bool:
    """Whether a warm-up decides over the rate at `iteration` rather than the policy."""
    return iteration < max(param.rampup_interval, param.warmup_iter)


def advance_step(param: SolverParameter, iteration: int, current_step: int) -> int:
    """current_step at `iteration`, from current_step at the iteration before; for plateau see Plateau."""
    if is_warming_up(param, iteration):
        return current_step
    if param.lr_policy == "step" and param.stepsize > 0:
        return iteration // param.stepsize
    if param.lr_policy == "multistep" and current_step < len(param.stepvalue):
        # Caffe: at most one step per iteration; with stepvalues close together, later iterations catch up.
        return current_step + (iteration >= param.stepvalue[current_step])
    return current_step


@dataclass
class Plateau:
    """What lr_policy: "plateau" remembers.

    minimum_loss   the least smoothed loss so far
    last_event     the iteration of the last new minimum or step
    """

    minimum_loss: np.float32 = np.finfo(f32).max
    last_event: int = 0

    def advance(self, param: SolverParameter, iteration: int, current_step: int, loss: np.float32) -> int:
        """current_step at `iteration`, after whose passes the smoothed loss is `loss`."""
        if is_warming_up(param, iteration):
            return current_step
        if loss < self.minimum_loss:
            self.minimum_loss, self.last_event = f32(loss), iteration
        sizes = param.plateau_winsize
        if current_step < len(sizes) and iteration >= self.last_event + sizes[current_step]:
            self.last_event = iteration
            return current_step + 1
        return current_step


def _rampup(param: SolverParameter, iteration: int) -> np.float32:
    alpha = f32(iteration) / f32(param.rampup_interval)
    start = f32(param.rampup_lr)
    return start + (f32(param.base_lr) - start) * alpha * alpha


def _warmup(param: SolverParameter, iteration: int) -> np.float32:
    count, start = f32(param.warmup_iter), f32(param.warmup_start_lr)
    return (f32(iteration) * f32(param.base_lr) + f32(param.warmup_iter - iteration) * start) / count


def _stage(param: SolverParameter, iteration: int) -> int:
    stages = (stage for stage, last in enumerate(param.stageiter) if iteration <= last)
    return next(stages, len(param.stageiter) - 1)


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


# Factors of base_lr, except multifixed's.
POLICIES: dict[str, Policy] = {
    "fixed": _fixed,
    "step": _step,
    "exp": _exp,
    "inv": _inv,
    "multistep": _step,
    "poly": _poly,
    "sigmoid": _sigmoid,
    "plateau": _step,
    "multifixed": _fixed,
}
