"""How torch.compile calls a net: traced as a whole, or not at all.

torch.compile reads the code of what it compiles, and stops at what it does not know: here at each field of a
protobuf message. So a net is called through a function that is traced by its operations alone. One that draws
random numbers, keeps states or reads values on the host is not compiled, and runs as it is.

Importing this file imports torch's compiler. It is imported when that is at work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import nonstrict_trace

from imae.converters.module_numbers import module_of


@nonstrict_trace
def call_traced(
    number: int,
    tensors: Mapping[str, Tensor],
    inputs: Sequence[Tensor],
    named: Mapping[str, Tensor],
    keep: Sequence[str],
) -> Any:
    """What the module of this number returns with these parameters and buffers."""
    options: dict[str, Any] = {**named, "keep": keep}
    return torch.func.functional_call(module_of(number), dict(tensors), tuple(inputs), options)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it untyped
def call_plain(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, without being compiled."""
    return function(*arguments)
