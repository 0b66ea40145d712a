"""How the solver runs a net: once forward, or forward and backward.

An executor returns (loss, outputs): the weighted sum of the losses, a scalar, and the output blobs by name,
on the net's device, valid also after the next run. Gradients ADD UP in `.grad` of the learnable parameters.
Nothing here waits for the device.
"""

from __future__ import annotations

import logging
from typing import Protocol

import torch
from torch import Tensor, nn

from imae.layers.fuse import fuse_training
from imae.layers.net import Net
from imae.layers.stepwise import Stepwise, parameter_diff
from imae.train.caffe_log import number

logger = logging.getLogger(__name__)

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
    """

    def __init__(self, net: Net, device: torch.device, fast: bool = True) -> None:
        self.net, self.device = net.to(device), device
        self.channels_last = fast and device.type == "cpu"
        if fast:
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
        blobs = self.net.forward({name: self._placed(blob) for name, blob in self.net.next_batch().items()})
        return self.net.loss(blobs), {name: blobs[name] for name in self.net.outputs}

    def _placed(self, blob: Tensor) -> Tensor:
        if self.channels_last and blob.dim() == 4:
            return blob.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return blob.to(self.device, non_blocking=True)


class StepwiseExecutor:
    """Runs the net layer by layer on the CPU, so that every blob and diff can be looked at afterwards.

    debug_info   log the mean absolute values of blobs and diffs as they arise (`debug_info: true`)
    """

    def __init__(self, stepwise: Stepwise, debug_info: bool = False) -> None:
        self.stepwise, self.debug_info = stepwise, debug_info

    def forward_backward(self) -> Result:
        result = self.forward()
        after_backward = self.stepwise.after_backward
        if self.debug_info:
            after_backward.append(self._log_backward)
        self.stepwise.backward()
        if self.debug_info:
            after_backward.remove(self._log_backward)
            self._log_totals()
        return result

    def forward(self) -> Result:
        after_forward = self.stepwise.after_forward
        if self.debug_info:
            after_forward.append(self._log_forward)
        loss = torch.tensor(self.stepwise.forward())
        if self.debug_info:
            after_forward.remove(self._log_forward)
        return loss, {name: blob.clone() for name, blob in self.stepwise.outputs().items()}

    def _log_forward(self, index: int) -> None:
        step = self.stepwise.net.steps[index]
        where = f"[Forward] Layer {step.layer.name}"
        for top in step.tops:
            _log(593, f"{where}, top blob {top} data: {_mean(self.stepwise.blobs[top].data)}")
        for place, (blob, spec) in enumerate(zip(step.layer.blobs, step.layer.param_specs(), strict=True)):
            _log(605, f"{where}, param blob {spec.name or place} data: {_mean(blob)}")

    def _log_backward(self, index: int) -> None:
        step = self.stepwise.net.steps[index]
        if not step.need_backward:
            return
        where = f"[Backward] Layer {step.layer.name}"
        for bottom, need in zip(step.bottoms, step.bottom_need_backward, strict=True):
            if need:
                _log(621, f"{where}, bottom blob {bottom} diff: {_mean(self.stepwise.blobs[bottom].diff)}")
        for place, blob in enumerate(step.layer.blobs):
            if blob.requires_grad:
                _log(632, f"{where}, param blob {place} diff: {_mean(parameter_diff(blob))}")

    def _log_totals(self) -> None:
        learnable = self.stepwise.net.learnable
        datas, diffs = [p.detach() for p in learnable], [parameter_diff(p) for p in learnable]
        l1, l2 = ([_norm(blobs, order) for blobs in (datas, diffs)] for order in (1, 2))
        norms = f"L1 norm = ({l1[0]}, {l1[1]}); L2 norm = ({l2[0]}, {l2[1]})"
        _log(721, f"[Backward] All net params (data, diff): {norms}", logging.ERROR)  # Caffe: at level ERROR


def _mean(blob: Tensor | nn.Parameter) -> str:
    """The mean absolute value."""
    return number(blob.detach().abs().mean().item())


def _norm(blobs: list[Tensor], order: int) -> str:
    """The norm of all blobs together."""
    return number(torch.stack([torch.linalg.vector_norm(blob, order) for blob in blobs]).norm(order).item())


def _log(line: int, message: str, level: int = logging.INFO) -> None:
    logger.log(level, "    %s", message, extra={"caffe": f"net.cpp:{line}"})
