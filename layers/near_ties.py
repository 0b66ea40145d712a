"""Places of maxima where rounding decides between values that are all but equal.

Two programs that compute the same decide such near-ties differently, and what follows differs by more than
rounding. The check of an export therefore tells the layers what the model decided.
"""

from __future__ import annotations

from torch import Tensor

NEAR = 1e-4  # of the largest value: many roundings, and far below what a wrong place would differ by


def near_ties_as(decided: Tensor | None, own: Tensor, values: Tensor, axis: int) -> Tensor:
    """The places `own` on an axis of `values`, or those `decided` where these hold all but the same value.

    own       places that hold the maxima; -1: none
    decided   of another program; None: there is none
    """
    if decided is None:
        return own
    places = decided.to(own.device, own.dtype).reshape(own.shape)
    limit = NEAR * values.abs().amax()
    last = values.shape[axis] - 1
    best, there = (values.gather(axis, place.long().clamp(0, last)) for place in (own, places))
    near = ((best - there).abs() <= limit) & (own >= 0) & (places >= 0) & (places <= last)
    return places.where(near, own)
