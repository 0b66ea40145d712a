"""The device's part of an iteration, recorded once as CUDA graphs and replayed from then on.

An iteration has hundreds of small kernels. Launching them one by one takes longer than the device needs to
run them. A graph is launched as a whole, and works on the memory that it was recorded with. So a pass reads
its batch from fixed buffers, and diffs and outputs keep their memory. What changes from one iteration to the
next (the batch, the learning rate) is written to the device before the replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from imae.files.errors import DeviceError
from imae.layers.blob import shape_string
from imae.layers.layer import DataLayer
from imae.layers.utility.synced_memory import parameter_diff
from imae.net.executor import NetExecutor, Result
from imae.net.net import Net

T = TypeVar("T")

WARM_UP = 3  # calls before the recording, in which libraries choose algorithms and allocate workspace


class Recorder(Protocol):
    """Records the device's work of one call once, and replays it."""

    def warm_up(self, work: Callable[[], T]) -> T:
        """Do the work in the way in which it will be recorded."""

    def record(self, work: Callable[[], T]) -> T:
        """Record the work without doing it; the tensors that it returns get their values in each `replay`."""

    def replay(self) -> None:
        """Do the recorded work."""


class CudaRecorder:
    """A CUDA graph with memory of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def warm_up(self, work: Callable[[], T]) -> T:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = work()
        current.wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], T]) -> T:
        """DeviceError where the work needs the host."""
        try:
            # thread_local: the work of other threads (batches, NCCL) is neither recorded nor refused.
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                return work()
        except RuntimeError as error:
            reason = next(iter(str(error).strip().splitlines()), "no reason given")
            raise DeviceError(
                f"the iteration cannot be recorded as a CUDA graph: {reason}; leave --cuda-graph out"
            ) from error

    def replay(self) -> None:
        self._graph.replay()


class Recorded(Generic[T]):
    """`work` as a function that records it after WARM_UP calls, and then replays it."""

    def __init__(self, work: Callable[[], T], recorder: Recorder) -> None:
        self._work, self._recorder = work, recorder
        self._calls = 0
        self._result: T

    def __call__(self) -> T:
        """The result of the work; after the recording always the same tensors."""
        if self._calls < WARM_UP:
            self._calls += 1
            return self._recorder.warm_up(self._work)
        if self._calls == WARM_UP:
            self._result = self._recorder.record(self._work)
            self._calls += 1
        self._recorder.replay()
        return self._result


class GraphExecutor(NetExecutor):
    """A NetExecutor whose passes are recorded and replayed.

    recorder   makes the recorder of one kind of pass
    replaces   whether a pass replaces the diffs instead of adding to them
    options    further options of NetExecutor
    """

    def __init__(
        self,
        net: Net,
        device: torch.device,
        recorder: Callable[[], Recorder],
        *,
        replaces: bool,
        **options: Any,
    ) -> None:
        super().__init__(net, device, **options)
        self._replaces = replaces
        self._buffers: list[list[Tensor]] = []
        self._passes = {
            backward: Recorded(partial(self._work, backward), recorder()) for backward in (False, True)
        }

    def _placed(self, fetched: list[tuple[Tensor, ...]]) -> list[list[Tensor]]:
        """The buffers, filled."""
        if not self._buffers:
            self._check()
            self._buffers = [
                [torch.empty_like(self._place(tensor)) for tensor in tensors] for tensors in fetched
            ]
        for feed, buffers, tensors in zip(self._feeds, self._buffers, fetched, strict=True):
            for buffer, tensor in zip(buffers, tensors, strict=True):
                if buffer.shape != tensor.shape:
                    raise feed.layer.error(
                        f"a batch has shape {shape_string(tensor.shape)}, the first one had "
                        f"{shape_string(buffer.shape)}; leave --cuda-graph out"
                    )
                pinned = tensor.pin_memory() if buffer.is_cuda else tensor
                if pinned.stride() != buffer.stride():
                    pinned = self._place(pinned)
                buffer.copy_(pinned, non_blocking=True)
        return self._buffers

    def _pass(self, placed: Sequence[Sequence[Tensor]], backward: bool) -> Result:
        loss, outputs = self._passes[backward]()
        return loss.clone(), {name: blob.clone() for name, blob in outputs.items()}

    def _work(self, backward: bool) -> Result:
        if backward and self._replaces:
            fixed = [parameter_diff(p) for p in self.net.learnable if not p.requires_grad]
            if fixed:
                torch._foreach_zero_(fixed)
            for parameter in self.net.learnable:
                if parameter.requires_grad:
                    parameter.grad = None  # so that autograd stores the diff instead of adding to it
        return super()._pass(self._buffers, backward)

    def _check(self) -> None:
        """LayerError for a layer whose forward pass needs the host."""
        for step in self.net.steps:
            if not (isinstance(step.layer, DataLayer) or step.layer.capturable):
                raise step.layer.error(
                    f"a CUDA graph cannot hold a layer of type {step.layer.type} as it is set up here, since "
                    "it needs the host in each pass; leave --cuda-graph out"
                )
