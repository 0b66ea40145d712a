"""BatchNorm by the batch, Scale, a sum with another blob and ReLU as kernels that torch.compile makes.

They are for GPUs, where unfused each of these layers reads and writes whole blobs. torch.compile makes a
kernel when a blob of a new shape comes: some seconds each time, cached on disk for the next run. They are
tested on the CPU, where they work too, but the kernels in C are faster.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from imae.net.kernels.norm import normalize_by_batch
from imae.net.kernels.norm_call import NormCall

MAX_SHAPES = 1024  # torch.compile gives up beyond 8; a deep net has more


def normalize_compiled(call: NormCall, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Like `normalize_by_batch`, which it calls where each channel has one number."""
    if call.x.numel() <= call.x.shape[1]:
        return normalize_by_batch(call, mean, variance)
    with torch._dynamo.config.patch(cache_size_limit=MAX_SHAPES, accumulated_cache_size_limit=MAX_SHAPES):
        return _compiled()(*call)


@cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    # torch.compile reads every attribute of its arguments, and torch warns about this one.
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf", UserWarning)
    return torch.compile(_normalize, fullgraph=True, dynamic=False)


def _normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool, shortcut: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    top = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)[0]
    if shortcut is not None:
        top = top + shortcut
    dtype = torch.promote_types(x.dtype, torch.float32)  # the statistics', even where blobs are bfloat16
    variance, mean = torch.var_mean(x.detach().to(dtype), [0, *range(2, x.dim())])
    return F.relu(top) if relu else top, mean, variance
