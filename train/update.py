"""The update of the weights, from the summed gradients of an iteration.

    clip the summed gradients -> divide by iter_size -> regularise (decay_mult; AdamW: at the end)
         -> update rule (lr_mult, the rate inside the history) -> subtract

Fields of NVIDIA's and Intel's solvers change momentum and weight decay from iteration to iteration
(schedules.py), and give each blob a rate of its own (local_rates.py).

Caffe: sgd_solver.cpp, ApplyUpdate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from imae.layers.utility.synced_memory import is_diff_seen, parameter_diff
from imae.net import kernels
from imae.net.cuda_graph import Recorded, Recorder
from imae.net.net import Net
from imae.prototxt import SolverParameter
from imae.train.local_rates import has_local_rates, local_rates
from imae.train.schedules import decay_varies, momentum_at, momentum_varies, weight_decay_at
from imae.train.update_rules import SGD, UpdateRule


@dataclass
class ParameterGroup:
    """Learnable parameters with the same lr_mult and decay_mult, by their places in `net.learnable`.

    rate     learning rate * lr_mult, on the device; where blobs have rates of their own: the learning rate
    shrink   for rules whose weight decay is decoupled: the share of the weights that is subtracted
    """

    places: list[int]
    lr_mult: float
    decay_mult: float
    rate: Tensor
    shrink: Tensor


class Update:
    """Updates the learnable parameters of a net. The work runs on the device without the host.

    rule       computes what is subtracted (update_rules.py)
    device     where the net computes
    recorder   makes a recorder of the work (cuda_graph.py); None: the work is launched each time
    fast       use the kernels of net/kernels where there is one for the rule

    history    history blobs in Caffe's order: one per learnable parameter, then a second one where the rule
               has two
    """

    def __init__(
        self,
        param: SolverParameter,
        rule: UpdateRule,
        net: Net,
        device: torch.device,
        recorder: Callable[[], Recorder] | None = None,
        fast: bool = False,
    ) -> None:
        self.param, self.rule, self.net, self._fast = param, rule, net, fast
        self.history = [torch.zeros_like(p.detach()) for _ in range(rule.histories) for p in net.learnable]
        self._groups = _group_parameters(net, device)
        # On the device, so that a recorded update stays valid when they change.
        self._decay = torch.full((), param.weight_decay, dtype=net.dtype, device=device)
        self._momentum = torch.full((), param.momentum, dtype=net.dtype, device=device)
        if isinstance(rule, SGD) and momentum_varies(param):
            rule.changing_momentum = self._momentum
        self._recorded = recorder is not None
        self._work = self.launch if recorder is None else Recorded(self.launch, recorder())

    def diffs(self) -> list[Tensor]:
        """The gradients of the learnable parameters."""
        return [parameter_diff(p) for p in self.net.learnable]

    def clear_diffs(self) -> None:
        """Set all gradients to 0.

        A gradient of which no script has an array is given up: the next backward pass stores its own instead
        of adding it to zeros, and until then there is room for blobs. A recorded pass writes to the same
        memory again, and so may a script.
        """
        kept = []
        for parameter in self.net.learnable:
            if self._recorded or is_diff_seen(parameter):
                kept.append(parameter_diff(parameter))
            else:
                parameter.grad = None
        if kept:
            torch._foreach_zero_(kept)

    def __call__(self, rate: float, iteration: int) -> Tensor | None:
        """Update the weights; returns the L2 norm of the gradients, where clip_gradients limits it."""
        if not self._groups:
            return None
        for group in self._groups:
            lr_mult = 1 if has_local_rates(self.param) else group.lr_mult
            group.rate.fill_(self.rule.corrected(rate, iteration) * lr_mult)
            if self.rule.decoupled:
                group.shrink.fill_(rate * lr_mult * weight_decay_at(self.param, iteration) * group.decay_mult)
        if momentum_varies(self.param):
            self._momentum.fill_(momentum_at(self.param, iteration, rate))
        if decay_varies(self.param):
            self._decay.fill_(weight_decay_at(self.param, iteration))
        norm = self._work()
        return None if norm is None else norm.clone()  # a replay writes to the same memory again

    @torch.no_grad()
    def launch(self) -> Tensor | None:
        """Update with the rates of the groups; a recorder records this."""
        param, learnable, diffs = self.param, self.net.learnable, self.diffs()
        datas = [p.detach() for p in learnable]
        norm = self._clip(diffs)
        if param.iter_size != 1:
            torch._foreach_mul_(diffs, 1 / param.iter_size)
        for group in self._groups:
            weights = [datas[place] for place in group.places]
            group_diffs = [diffs[place] for place in group.places]
            starts = range(0, len(self.history), len(learnable))
            histories = [[self.history[start + place] for place in group.places] for start in starts]
            if self._has_kernel(weights, group_diffs, histories):
                decay = param.weight_decay * group.decay_mult
                kernels.sgd(weights, group_diffs, histories[0], decay, param.momentum, float(group.rate))
                continue
            own_rates = None
            if has_local_rates(param):
                own_rates = local_rates(
                    param, weights, group_diffs, group.lr_mult, group.rate, self._momentum
                )
            if not self.rule.decoupled:
                self._regularize(weights, group_diffs, group.decay_mult)
            if own_rates is not None and isinstance(self.rule, SGD):
                self.rule.update(group_diffs, histories, own_rates)
            else:
                self.rule.update(group_diffs, histories, group.rate)
            if self.rule.decoupled:
                torch._foreach_add_(group_diffs, torch._foreach_mul(weights, group.shrink))
            torch._foreach_sub_(weights, group_diffs)
        return norm

    def _has_kernel(self, weights: list[Tensor], diffs: list[Tensor], histories: list[list[Tensor]]) -> bool:
        """Whether the kernel in C makes this update: plain SGD with L2, on the CPU."""
        param = self.param
        return (
            self._fast
            and type(self.rule) is SGD
            and self.rule.changing_momentum is None
            and param.regularization_type == "L2"
            and not (self._recorded or decay_varies(param) or has_local_rates(param))
            and kernels.sgd_supports(weights, diffs, *histories)
        )

    def _regularize(self, weights: list[Tensor], diffs: list[Tensor], decay_mult: float) -> None:
        """Add weight_decay * decay_mult times the weights, or their signs, to the diffs."""
        decay = self.param.weight_decay * decay_mult
        varies = decay_varies(self.param)
        if not decay_mult or not (decay or varies):
            return
        terms = weights if self.param.regularization_type == "L2" else list(torch._foreach_sign(weights))
        if varies:
            torch._foreach_add_(diffs, torch._foreach_mul(terms, self._decay * decay_mult))
        else:
            torch._foreach_add_(diffs, terms, alpha=decay)

    def _clip(self, diffs: list[Tensor]) -> Tensor | None:
        """Scale all diffs so that their common L2 norm is at most clip_gradients; returns the norm before."""
        limit = self.param.clip_gradients
        if limit < 0:
            return None
        norm: Tensor = torch.stack(torch._foreach_norm(diffs)).norm()
        torch._foreach_mul_(diffs, torch.where(norm > limit, limit / norm, 1.0))
        return norm


def _group_parameters(net: Net, device: torch.device) -> list[ParameterGroup]:
    places: dict[tuple[float, float], list[int]] = {}
    for place, mults in enumerate(zip(net.lr_mults, net.decay_mults, strict=True)):
        places.setdefault(mults, []).append(place)
    rate = torch.zeros((), dtype=net.dtype, device=device)
    return [ParameterGroup(members, *mults, rate.clone(), rate.clone()) for mults, members in places.items()]
