"""Which executors run the nets of a solver."""

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
    """The executor that the options ask for; `passes` is how many of them an iteration makes."""
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
    """Runs a net as `run` does; layer by layer while its debug_info is set, which tells of every blob."""

    def __init__(self, run: Executor, net: Net, device: torch.device) -> None:
        self._run, self._net = run, net
        self._layer_by_layer = StepwiseExecutor(Stepwise(net, device))

    def _chosen(self) -> Executor:
        return self._layer_by_layer if self._net.debug_info else self._run

    def forward_backward(self) -> Result:
        return self._chosen().forward_backward()

    def forward(self) -> Result:
        return self._chosen().forward()


def with_debug_info(
    runs: Sequence[Executor], nets: Sequence[Net], wanted: bool, device: torch.device
) -> list[Executor]:
    """What runs the nets, also where `debug_info` is to log. Caffe: the solver's replaces the nets' own.

    nets     the train net, whose own counts up to the first iteration; then the test nets
    wanted   the solver's debug_info
    """
    if not wanted and any(net.debug_info for net in nets):
        logger.warning("debug_info of a net has no effect here: the solver's counts, which is false")
    for net in nets[1:]:
        net.debug_info = wanted
    return [
        DebugInfoExecutor(run, net, device)
        if (wanted or net.debug_info) and not isinstance(run, StepwiseExecutor)
        else run
        for run, net in zip(runs, nets, strict=True)
    ]
