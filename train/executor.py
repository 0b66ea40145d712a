"""How the solver runs a net: once forward, or forward and backward.

An executor returns (loss, outputs): the weighted sum of the losses, a scalar, and the output blobs by name,
on the net's device, valid also after the next run. Gradients ADD UP in `.grad` of the learnable parameters.
Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import torch
from torch import Tensor

from imae.layers.fuse import fuse_training
from imae.layers.net import Net
from imae.layers.stepwise import Stepwise

Result = tuple[Tensor, dict[str, Tensor]]


class Executor(Protocol):
    """What the solver asks of it."""

    def forward_backward(self) -> Result:
        """The next batch through the net, both ways."""

    def forward(self) -> Result:
        """The next batch through the net, without gradients."""


class NetExecutor:
    """Runs the whole net as one autograd graph.

    fast   fuse layers (fuse.py) and, on the CPU, keep 4-axis blobs in the order N, H, W, C in memory; shapes
           stay N, C, H, W, and values are the same up to rounding
    keep   names of further blobs, which stay in `kept` after a run
    """

    def __init__(self, net: Net, device: torch.device, fast: bool = True, keep: Collection[str] = ()) -> None:
        self.net, self.device = net.to(device), device
        self.keep, self.kept = keep, dict[str, Tensor]()
        self.channels_last = fast and device.type == "cpu"
        if fast and not net.debug_info:  # which names the layers' blobs one by one
            net.plan = fuse_training(net)
        if self.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs

    def forward_backward(self) -> Result:
        loss, outputs = self._run()
        if loss.requires_grad:
            torch.autograd.backward(loss)
        return loss.detach(), {name: blob.detach() for name, blob in outputs.items()}

    def forward(self) -> Result:
        with torch.no_grad():
            return self._run()

    def _run(self) -> Result:
        batch = {name: self._placed(blob) for name, blob in self.net.next_batch().items()}
        blobs = self.net.forward(batch, self.keep)
        self.kept = {name: blobs[name].detach() for name in self.keep}
        return self.net.loss(blobs), {name: blobs[name] for name in self.net.outputs}

    def _placed(self, blob: Tensor) -> Tensor:
        if self.channels_last and blob.dim() == 4:
            return blob.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return blob.to(self.device, non_blocking=True)


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
