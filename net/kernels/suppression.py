"""SSD's suppression of boxes by a kernel in C, where it is there; its numbers are those of boxes.py."""

from __future__ import annotations

import torch
from torch import Tensor

from imae.layers.forks.boxes import suppress
from imae.net.kernels import native


def fast_suppress(boxes: Tensor, threshold: float, eta: float = 1) -> Tensor:
    """`suppress` of layers/forks/boxes.py."""
    if eta < 1 or boxes.dtype != torch.float32 or not boxes.is_cpu or not native.uses_suppress():
        return suppress(boxes, threshold, eta)
    return native.suppress(boxes, threshold)
