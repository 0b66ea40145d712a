"""How the solver runs a net: one forward pass, or one forward and backward pass.

An executor returns (loss, outputs): the weighted sum of the losses, a scalar, and the output blobs by name,
on the net's device, valid also after the next run. Gradients ADD UP in `.grad` of the learnable parameters.
Nothing here waits for the device.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from imae.layers.layer import DataLayer
from imae.layers.utility.synced_memory import separate_diffs
from imae.net.device import device_budget
from imae.net.fuse import fast_batch_norms, fuse_training
from imae.net.kernels import product_type, slow_bfloat16
from imae.net.net import Net
from imae.net.plan import StepFunction
from imae.net.step import Step
from imae.net.stepwise import Stepwise
from imae.prototxt import TRAIN

logger = logging.getLogger(__name__)

Result = tuple[Tensor, dict[str, Tensor]]


class Executor(Protocol):
    """The interface that the solver uses."""

    def forward_backward(self) -> Result:
        """Run the net forward and backward on the next batch."""

    def forward(self) -> Result:
        """Run the net forward on the next batch, without gradients."""


@dataclass
class _Feed:
    """A data layer's step: what the host fetches for a pass, and the blobs that the device makes of it.

    resident   whether the layer's records are resident on the device, so that the host only makes a draw
               (see DataLayer.next_draw)
    """

    step: Step
    layer: DataLayer
    resident: bool

    def fetch(self) -> tuple[Tensor, ...]:
        """What the next pass needs, on the host: a draw, or the tops, in any order in memory."""
        return (self.layer.next_draw(),) if self.resident else self.layer.next_batch()

    def blobs(self, fetched: Sequence[Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """The tops, by name, from what was fetched and is now on the device."""
        tops = self.layer.assemble(fetched[0]) if self.resident else fetched
        return dict(zip(self.step.tops, (top.to(dtype) for top in tops), strict=True))


class NetExecutor:
    """Runs the whole net as one autograd graph.

    fast            fuse layers (fuse.py); on a GPU, make databases resident there; on the CPU and in reduced
                    precision, keep 4-axis blobs in the order N, H, W, C in memory. Shapes stay N, C, H, W,
                    and values are the same up to rounding
    keep            names of further blobs, which stay in `kept` after a run
    reduced         bfloat16: convolutions and matrix products and the blobs between them are in it, while
                    parameters, their diffs, statistics, losses and measures stay in single precision. None:
                    not reduced
    compiled        let torch.compile make the kernels of fused layers
    channels_last   whether 4-axis blobs have the order N, H, W, C in memory; None: as described for `fast`

    plan            the steps that a pass runs
    """

    def __init__(
        self,
        net: Net,
        device: torch.device,
        fast: bool = True,
        keep: Collection[str] = (),
        reduced: torch.dtype | None = None,
        compiled: bool = False,
        channels_last: bool | None = None,
    ) -> None:
        if channels_last is None:
            channels_last = fast and (device.type == "cpu" or reduced is not None)
        self.net, self.device, self.reduced = net.to(device), device, reduced
        self.keep, self.kept = keep, dict[str, Tensor]()
        self.channels_last = channels_last
        self.plan: Sequence[Step] = net.steps
        on_cpu = device.type == "cpu"
        if reduced is not None and on_cpu and net.phase == TRAIN and (warning := slow_bfloat16()):
            logger.warning("%s", warning)
        if fast:  # debug_info logs the blobs of every layer
            single = reduced is not None and on_cpu and product_type(reduced) != reduced
            self.plan = (
                fast_batch_norms(net) if net.debug_info else fuse_training(net, keep, compiled, single)
            )
        if reduced is not None:
            self.plan = _with_single_losses(self.plan)
        if self.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        self._feeds = [
            _Feed(step, step.layer, fast and device.type == "cuda" and _make_resident(step.layer, device))
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
        """What was fetched, on the device."""
        return [[self._place(tensor) for tensor in tensors] for tensors in fetched]

    def _place(self, tensor: Tensor) -> Tensor:
        if self.channels_last and tensor.dim() == 4:
            return tensor.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        placed = tensor.to(self.device, non_blocking=True)
        # On the device, which is faster at it. A resident batch has the device's own order.
        return placed.contiguous()

    def _pass(self, placed: Sequence[Sequence[Tensor]], backward: bool) -> Result:
        """A pass over what `_placed` returned; it runs on the device alone."""
        with torch.set_grad_enabled(backward):
            batch: dict[str, Tensor] = {}
            for feed, tensors in zip(self._feeds, placed, strict=True):
                batch.update(feed.blobs(tensors, self.net.dtype))
            with self._reduction():
                blobs = self.net.forward(batch, self.keep, self.plan)
            loss = self.net.loss(blobs)
        if backward and loss.requires_grad:
            torch.autograd.backward(loss)
            separate_diffs(self.net.learnable)
        self.kept = {name: blobs[name].detach() for name in self.keep}
        return loss.detach(), {name: blobs[name].detach() for name in self.net.outputs}

    def _reduction(self) -> AbstractContextManager[object]:
        """A context of reduced precision, if there is one."""
        if self.reduced is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.reduced, cache_enabled=False)


def _make_resident(layer: DataLayer, device: torch.device) -> bool:
    """Let a data layer keep its records on the device, if it can and they fit; returns whether it does."""
    return layer.make_resident(device, device_budget(device))


def _with_single_losses(plan: Sequence[Step]) -> list[Step]:
    """The plan, with the bottoms of losses and measures converted to single precision."""

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
    """Runs the net layer by layer, so that every blob and diff can be read afterwards."""

    def __init__(self, stepwise: Stepwise) -> None:
        self.stepwise = stepwise

    def forward_backward(self) -> Result:
        result = self.forward()
        self.stepwise.backward()
        return result

    def forward(self) -> Result:
        loss = torch.tensor(self.stepwise.forward(), dtype=self.stepwise.net.dtype)
        return loss, {name: blob.clone() for name, blob in self.stepwise.outputs().items()}
