"""A CUDA graph's behaviour on the CPU: record the operations of a call once, replay them on the same memory.

Python runs only during the recording. So everything that a pass or an update does in Python besides its
operations (numbers passed as arguments, growing lists, branches) is not repeated by a replay, as on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")

# Operations that make the host wait for the device, or copy between the two.
ASKS_THE_HOST = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique_dim"}


class OpRecorder(TorchDispatchMode):
    """A Recorder (imae.net.cuda_graph) of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.replays = 0
        self._done = False

    def warm_up(self, work: Callable[[], T]) -> T:
        return work()

    def record(self, work: Callable[[], T]) -> T:
        """Record the work. Unlike a CUDA graph this also does it, so the first replay does nothing."""
        with self:
            result = work()
        self._done = True
        return result

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ASKS_THE_HOST:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        given = kwargs or {}
        result = func(*args, **given)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, given)) if isinstance(leaf, Tensor)]
        held = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        fresh = [out for out in outputs if out.untyped_storage().data_ptr() not in held]
        if fresh or func._schema.is_mutable:  # else the result is a view, which stays valid
            self.operations.append((func, args, given, [] if func._schema.is_mutable else outputs))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        if self._done:
            self._done = False
            return
        for func, args, kwargs, outputs in self.operations:
            results = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
            for output, again in zip(outputs, results, strict=bool(outputs)):
                output.copy_(again)
