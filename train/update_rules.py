"""Caffe's six update rules, and AdamW: what is subtracted from the weights, and what history each keeps.

Below, g is the diff of a parameter after clipping, division by iter_size and weight decay; r is the learning
rate times lr_mult, a tensor on the device, so that a CUDA graph stays valid when it changes. A rule replaces
the diffs in-place by what is subtracted (as in Caffe), for all parameters of one lr_mult at once. SGD also
takes a rate for each of them, and a momentum that changes.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from imae.files.errors import PrototxtError
from imae.files.nearest import did_you_mean
from imae.prototxt import SolverParameter

Tensors = list[Tensor]


class UpdateRule:
    """Base of the rules.

    histories   history blobs per parameter
    decoupled   whether weight decay takes no part in g: r * decay * W is subtracted beside the rule's result
    """

    histories: ClassVar[int] = 1
    decoupled: ClassVar[bool] = False

    def __init__(self, param: SolverParameter) -> None:
        self.momentum, self.delta = param.momentum, param.delta

    def corrected(self, rate: float, iteration: int) -> float:
        """The rate times the rule's factor for this iteration, if it has one."""
        return rate

    def update(self, diffs: Tensors, histories: list[Tensors], rate: Tensor) -> None:
        """Replace each g in `diffs` by what is subtracted; update the histories."""
        raise AssertionError("an UpdateRule is one of RULES")


class SGD(UpdateRule):
    """h <- momentum * h + r * g;  subtract h.

    The rate is inside the history: after a rate drop the old velocity keeps its old scale. torch.optim.SGD
    multiplies by the rate outside and so differs after the first drop.  Caffe: sgd_solver.cpp.

    changing_momentum   takes the place of momentum, on the device
    """

    changing_momentum: Tensor | None = None

    def update(self, diffs: Tensors, histories: list[Tensors], rate: Tensor | Tensors) -> None:
        (h,) = histories
        torch._foreach_mul_(diffs, rate)
        if self.changing_momentum is None:
            torch._foreach_add_(diffs, h, alpha=self.momentum)
        else:
            torch._foreach_add_(diffs, torch._foreach_mul(h, self.changing_momentum))
        torch._foreach_copy_(h, diffs)


class Nesterov(UpdateRule):
    """h' <- momentum * h + r * g;  subtract (1 + momentum) * h' - momentum * h.

    Caffe: nesterov_solver.cpp. Differs from torch.optim.SGD(nesterov=True) as SGD does.
    """

    def update(self, diffs: Tensors, histories: list[Tensors], rate: Tensor) -> None:
        (h,) = histories
        old = torch._foreach_mul(h, self.momentum)
        torch._foreach_mul_(diffs, rate)
        torch._foreach_add_(diffs, old)
        torch._foreach_copy_(h, diffs)
        torch._foreach_mul_(diffs, 1 + self.momentum)
        torch._foreach_sub_(diffs, old)


class AdaGrad(UpdateRule):
    """h <- h + g^2;  subtract r * g / (sqrt(h) + delta).

    Caffe: adagrad_solver.cpp.
    """

    def __init__(self, param: SolverParameter) -> None:
        super().__init__(param)
        _refuse_momentum(param)

    def update(self, diffs: Tensors, histories: list[Tensors], rate: Tensor) -> None:
        (h,) = histories
        torch._foreach_addcmul_(h, diffs, diffs)
        torch._foreach_div_(diffs, _root(h, self.delta))
        torch._foreach_mul_(diffs, rate)


class RMSProp(UpdateRule):
    """h <- rms_decay * h + (1 - rms_decay) * g^2;  subtract r * g / (sqrt(h) + delta).

    Caffe: rmsprop_solver.cpp. torch.optim.RMSprop does the same where its eps is delta.
    """

    def __init__(self, param: SolverParameter) -> None:
        super().__init__(param)
        _refuse_momentum(param)
        self.decay = param.rms_decay
        if not 0 <= self.decay < 1:
            raise PrototxtError(f"rms_decay should lie between 0 and 1 (1 left out); got {self.decay:g}")

    def update(self, diffs: Tensors, histories: list[Tensors], rate: Tensor) -> None:
        (h,) = histories
        torch._foreach_mul_(h, self.decay)
        torch._foreach_addcmul_(h, diffs, diffs, value=1 - self.decay)
        torch._foreach_div_(diffs, _root(h, self.delta))
        torch._foreach_mul_(diffs, rate)


class AdaDelta(UpdateRule):
    """h <- m * h + (1 - m) * g^2;  u = g * sqrt((k + delta) / (h + delta));  k <- m * k + (1 - m) * u^2;
    subtract r * u.

    m is momentum; h and k are the two histories.  Caffe: adadelta_solver.cpp.
    """

    histories = 2

    def update(self, diffs: Tensors, histories: list[Tensors], rate: Tensor) -> None:
        h, k = histories
        torch._foreach_mul_(h, self.momentum)
        torch._foreach_addcmul_(h, diffs, diffs, value=1 - self.momentum)
        ratio = torch._foreach_add(k, self.delta)
        torch._foreach_div_(ratio, torch._foreach_add(h, self.delta))
        torch._foreach_sqrt_(ratio)
        torch._foreach_mul_(diffs, ratio)
        torch._foreach_mul_(k, self.momentum)
        torch._foreach_addcmul_(k, diffs, diffs, value=1 - self.momentum)
        torch._foreach_mul_(diffs, rate)


class Adam(UpdateRule):
    """m <- b1 * m + (1 - b1) * g;  v <- b2 * v + (1 - b2) * g^2;  subtract r * c * m / (sqrt(v) + delta).

    b1 is momentum, b2 is momentum2, c = sqrt(1 - b2^t) / (1 - b1^t) with t = iteration + 1.
    Caffe: adam_solver.cpp. torch.optim.Adam divides v by 1 - b2^t before it adds its eps.
    """

    histories = 2

    def __init__(self, param: SolverParameter) -> None:
        super().__init__(param)
        self.momentum2 = param.momentum2
        for field, value in (("momentum", self.momentum), ("momentum2", self.momentum2)):
            if not 0 <= value < 1:
                raise PrototxtError(
                    f"{param.type}: {field} must lie between 0 and 1 (1 left out); got {value:g}"
                )

    def corrected(self, rate: float, iteration: int) -> float:
        t = iteration + 1
        return rate * math.sqrt(1 - self.momentum2**t) / (1 - self.momentum**t)

    def update(self, diffs: Tensors, histories: list[Tensors], rate: Tensor) -> None:
        m, v = histories
        torch._foreach_mul_(m, self.momentum)
        torch._foreach_add_(m, diffs, alpha=1 - self.momentum)
        torch._foreach_mul_(v, self.momentum2)
        torch._foreach_addcmul_(v, diffs, diffs, value=1 - self.momentum2)
        torch._foreach_copy_(diffs, m)
        torch._foreach_div_(diffs, _root(v, self.delta))
        torch._foreach_mul_(diffs, rate)


class AdamW(Adam):
    """Adam of a g without weight decay; subtract r * weight_decay * decay_mult * W as well.

    Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2; not a rule of Caffe's.
    """

    decoupled = True

    def __init__(self, param: SolverParameter) -> None:
        super().__init__(param)
        if param.regularization_type != "L2":
            raise PrototxtError(
                f"AdamW decays the weights themselves; got regularization_type: "
                f'"{param.regularization_type}", leave it out'
            )


RULES: dict[str, type[UpdateRule]] = {
    rule.__name__: rule for rule in (AdaDelta, AdaGrad, Adam, AdamW, Nesterov, RMSProp, SGD)
}


def update_rule(param: SolverParameter) -> UpdateRule:
    """The rule that `type` names; PrototxtError for an unknown type or a field that is invalid with it."""
    if param.type not in RULES:
        hint = did_you_mean(param.type, RULES, "'")
        raise PrototxtError(f"Unknown solver type: {param.type} (known types: {', '.join(RULES)}){hint}")
    return RULES[param.type](param)


def _refuse_momentum(param: SolverParameter) -> None:
    if param.momentum != 0:
        raise PrototxtError(
            f"Momentum cannot be used with {param.type}; got momentum: {param.momentum:g}, remove it"
        )


def _root(history: Tensors, delta: float) -> tuple[Tensor, ...]:
    """sqrt(history) + delta."""
    root = torch._foreach_sqrt(history)
    torch._foreach_add_(root, delta)
    return root
