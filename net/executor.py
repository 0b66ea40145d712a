"""How the solver runs a net: once forward, or forward and backward.

An executor returns (loss, outputs): the weighted sum of the losses, a scalar, and the output blobs by name,
on the net's device, valid also after the next run. Gradients ADD UP in `.grad` of the learnable parameters.
Nothing here waits for the device.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from imae.layers.layer import DataLayer
from imae.net.device import device_budget
from imae.net.fuse import fuse_training
from imae.net.net import Net
from imae.net.plan import StepFunction
from imae.net.step import Step, run_step
from imae.net.stepwise import Stepwise

Result = tuple[Tensor, dict[str, Tensor]]


class Executor(Protocol):
    """What the solver asks of it."""

    def forward_backward(self) -> Result:
        """The next batch through the net, both ways."""

    def forward(self) -> Result:
        """The next batch through the net, without gradients."""


@dataclass
class _Feed:
    """A data layer's step: what the host gives for a pass, and the blobs that the device makes of it.

    resident   whether the layer's records lie on the device, so that the host only draws
    """

    step: Step
    layer: DataLayer
    resident: bool

    def fetch(self) -> tuple[Tensor, ...]:
        """For the next pass, on the host."""
        if self.resident:
            return (self.layer.next_draw(),)
        return run_step(self.step, {})

    def blobs(self, given: Sequence[Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """The tops, by name, from what was fetched and is now on the device."""
        if self.resident:
            given = [top.to(dtype) for top in self.layer.assemble(given[0])]
        return dict(zip(self.step.tops, given, strict=True))


class NetExecutor:
    """Runs the whole net as one autograd graph.

    fast        fuse layers (fuse.py); on a GPU, keep databases there; on the CPU and in reduced precision,
                keep 4-axis blobs in the order N, H, W, C in memory. Shapes stay N, C, H, W, and values are
                the same up to rounding
    keep        names of further blobs, which stay in `kept` after a run
    compiled    let torch.compile make the kernels of joined layers
    last        whether 4-axis blobs have the order N, H, W, C in memory; None: as said above
    reduced     bfloat16: convolutions and matrix products take and give it, and blobs between them are in it;
                parameters, their diffs, losses and measures stay in single precision. None: nothing is

    plan        the steps that a pass runs
    """

    def __init__(
        self,
        net: Net,
        device: torch.device,
        fast: bool = True,
        keep: Collection[str] = (),
        reduced: torch.dtype | None = None,
        compiled: bool = False,
        last: bool | None = None,
    ) -> None:
        self.net, self.device, self.reduced = net.to(device), device, reduced
        self.keep, self.kept = keep, dict[str, Tensor]()
        self.channels_last = fast and (device.type == "cpu" or reduced is not None) if last is None else last
        self.plan: Sequence[Step] = net.steps
        if fast and not net.debug_info:  # which names the layers' blobs one by one
            self.plan = fuse_training(net, keep, compiled)
        if reduced is not None:
            self.plan = _with_single_losses(self.plan)
        if self.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        self._feeds = [
            _Feed(step, step.layer, fast and device.type == "cuda" and _reside(step.layer, device))
            for step in net.steps
            if isinstance(step.layer, DataLayer)
        ]

    def forward_backward(self) -> Result:
        return self._pass(self._placed(self._fetch()), backward=True)

    def forward(self) -> Result:
        return self._pass(self._placed(self._fetch()), backward=False)

    def _fetch(self) -> list[tuple[Tensor, ...]]:
        """What the next pass needs of each data layer, on the host."""
        return [feed.fetch() for feed in self._feeds]

    def _placed(self, fetched: list[tuple[Tensor, ...]]) -> list[list[Tensor]]:
        """The same on the device."""
        return [[self._place(tensor) for tensor in tensors] for tensors in fetched]

    def _place(self, tensor: Tensor) -> Tensor:
        if self.channels_last and tensor.dim() == 4:
            return tensor.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return tensor.to(self.device, non_blocking=True)

    def _pass(self, given: Sequence[Sequence[Tensor]], backward: bool) -> Result:
        """A pass over what lies on the device; work of the device alone."""
        with torch.set_grad_enabled(backward):
            batch: dict[str, Tensor] = {}
            for feed, tensors in zip(self._feeds, given, strict=True):
                batch.update(feed.blobs(tensors, self.net.dtype))
            with self._reduction():
                blobs = self.net.forward(batch, self.keep, self.plan)
            loss = self.net.loss(blobs)
        if backward and loss.requires_grad:
            torch.autograd.backward(loss)
        self.kept = {name: blobs[name].detach() for name in self.keep}
        return loss.detach(), {name: blobs[name].detach() for name in self.net.outputs}

    def _reduction(self) -> AbstractContextManager[object]:
        """Reduced precision, if it is asked for."""
        if self.reduced is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.reduced, cache_enabled=False)


def _reside(layer: DataLayer, device: torch.device) -> bool:
    """Let a data layer keep its records on the device, if it can and there is room."""
    return layer.make_resident(device, device_budget(device))


def _with_single_losses(plan: Sequence[Step]) -> list[Step]:
    """The plan, with losses and measures that get single precision whatever the blobs before them have."""

    def in_single(run: StepFunction) -> StepFunction:
        return lambda *bottoms: run(*(bottom.float() for bottom in bottoms))

    changed = []
    for step in plan:
        step = copy.copy(step)
        if not step.layer.deployed:
            step.run = in_single(step.run)
        changed.append(step)
    return changed


class StepwiseExecutor:
    """Runs the net layer by layer, so that every blob and diff can be looked at afterwards."""

    def __init__(self, stepwise: Stepwise) -> None:
        self.stepwise = stepwise

    def forward_backward(self) -> Result:
        result = self.forward()
        self.stepwise.backward()
        return result

    def forward(self) -> Result:
        loss = torch.tensor(self.stepwise.forward(), dtype=self.stepwise.net.dtype)
        return loss, {name: blob.clone() for name, blob in self.stepwise.outputs().items()}
