"""Precision of what is computed in a net whose blobs are in reduced precision (bfloat16).

Eight bits are enough for a feature, not for a coordinate or an index: from 256 on they leave out every other
whole number. Nor are they for a sum over a batch.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def at_least_single(x: Tensor) -> Tensor:
    """The values in single precision, unless they are in double."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def unreduced(x: Tensor) -> AbstractContextManager[object]:
    """Within it products of matrices have the precision of their factors, in a net of reduced precision, too.

    For a layer with a backward pass of its own, which expects what it has saved in one type.
    """
    return torch.autocast(x.device.type, enabled=False)
