"""Learning rates of single parameter blobs, by the norms of weights w and gradient g: LARC and LARS.

    larc (NVIDIA)          q = (1 - momentum) * larc_eta * |w| / |g|
    local_lr_auto (Intel)  q = local_gw_ratio * |w| / (|g| + weight_decay * |w|)

Where |w| or |g| is 0, q is 1. q takes the place of an lr_mult above 0. The blob's rate is the learning rate
times q; with larc_policy "clip" it is the smaller of the learning rate and q. g is the gradient after
clipping and division by iter_size, before weight decay. Only SGD has such rates.

NVIDIA Caffe 0.17: sgd_solver.cpp, GetLocalRate, as on a GPU (on the CPU the decay is in g). intel/caffe: the
same name. Differs: larc_turbo is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imae.files.errors import PrototxtError
from imae.prototxt import SolverParameter

LARC_POLICIES = ("scale", "clip")


def has_local_rates(param: SolverParameter) -> bool:
    """Whether each parameter blob has a rate of its own."""
    return param.type == "SGD" and (param.larc or param.local_lr_auto)


def check_local_rates(param: SolverParameter) -> None:
    """PrototxtError for fields that contradict each other, or that are not supported."""
    if not has_local_rates(param):
        return
    if param.larc and param.local_lr_auto:
        raise PrototxtError(
            "larc is a field of NVIDIA's fork, local_lr_auto one of Intel's, for the same; remove one"
        )
    if param.larc and param.larc_policy not in LARC_POLICIES:
        raise PrototxtError(
            f"Unknown larc policy: {param.larc_policy} (known policies: {', '.join(LARC_POLICIES)})"
        )
    if param.larc and param.larc_turbo:
        raise PrototxtError(
            "larc_turbo, of NVIDIA's fork, would lower each blob's rate by the correlation of its gradient "
            "and its history, which is not supported; remove it"
        )


def local_rates(
    param: SolverParameter,
    weights: list[Tensor],
    diffs: list[Tensor],
    lr_mult: float,
    rate: Tensor,
    momentum: Tensor,
) -> list[Tensor]:
    """The rate of each blob, where the blobs have one lr_mult.

    rate   the learning rate, without lr_mult
    """
    w, g = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, diffs))
    if lr_mult > 0:
        if param.larc:
            q = (1 - momentum) * param.larc_eta * w / g
        else:
            q = param.local_gw_ratio * w / (g + param.weight_decay * w)
        q = torch.where((w > 0) & (g > 0), q, 1.0)
    else:
        q = torch.full_like(w, lr_mult)
    clips = param.larc and param.larc_policy == "clip"
    rates = torch.minimum(rate, q) if clips else rate * q
    return list(rates.unbind())
