"""Typed calls of a `torch.autograd.Function`, whose own `apply` torch leaves untyped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    """The one tensor that `function` computes."""
    result: Tensor = function.apply(*args)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return result


def apply_for_several(function: type[torch.autograd.Function], *args: Any) -> tuple[Tensor, ...]:
    """The several tensors that `function` computes."""
    results: tuple[Tensor, ...] = function.apply(*args)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return results
