"""The executors that run the nets of a solver."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from imae.net.cuda_graph import GraphExecutor
from imae.net.executor import Executor, NetExecutor, Result, StepwiseExecutor
from imae.net.net import Net
from imae.net.stepwise import Stepwise
from imae.train.options import Options

logger = logging.getLogger(__name__)


def make_executor(net: Net, options: Options, passes: int) -> Executor:
    """The executor for these options; `passes` is how many passes an iteration has."""
    if options.executor is not None:
        return options.executor(net)
    device = torch.device(options.device)
    reduced, compiled, channels_last = options.reduced, options.compiled, options.channels_last
    if options.recorder is None:
        return NetExecutor(
            net, device, options.fast, reduced=reduced, compiled=compiled, channels_last=channels_last
        )
    return GraphExecutor(
        net,
        device,
        options.recorder,
        replaces=passes == 1,
        reduced=reduced,
        compiled=compiled,
        channels_last=channels_last,
    )


class DebugInfoExecutor:
    """Runs a net by `executor`; layer by layer while its debug_info is set, which logs every blob."""

    def __init__(self, executor: Executor, net: Net, device: torch.device) -> None:
        self._executor, self._net = executor, net
        self._layer_by_layer = StepwiseExecutor(Stepwise(net, device))

    def _chosen(self) -> Executor:
        return self._layer_by_layer if self._net.debug_info else self._executor

    def forward_backward(self) -> Result:
        return self._chosen().forward_backward()

    def forward(self) -> Result:
        return self._chosen().forward()


def with_debug_info(
    executors: Sequence[Executor], nets: Sequence[Net], debug_info: bool, device: torch.device
) -> list[Executor]:
    """The executors, able to log `debug_info`. Caffe: the solver's debug_info replaces that of its nets.

    nets         the train net, whose own debug_info holds up to the first iteration; then the test nets
    debug_info   the solver's
    """
    if not debug_info and any(net.debug_info for net in nets):
        logger.warning("debug_info of a net has no effect here: the solver's counts, which is false")
    for net in nets[1:]:
        net.debug_info = debug_info
    return [
        DebugInfoExecutor(executor, net, device)
        if (debug_info or net.debug_info) and not isinstance(executor, StepwiseExecutor)
        else executor
        for executor, net in zip(executors, nets, strict=True)
    ]
