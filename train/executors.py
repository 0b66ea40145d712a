"""Which executors run the nets of a solver."""

from __future__ import annotations

import torch

from imae.net.cuda_graph import GraphExecutor
from imae.net.executor import Executor, NetExecutor, Result, StepwiseExecutor
from imae.net.net import Net
from imae.net.stepwise import Stepwise
from imae.train.options import Options


def make_executor(net: Net, options: Options, passes: int) -> Executor:
    """The executor that the options ask for; `passes` is how many of them an iteration makes."""
    if options.executor is not None:
        return options.executor(net)
    device = torch.device(options.device)
    reduced, compiled, channels_last = options.reduced, options.compiled, options.channels_last
    if options.recorder is None:
        return NetExecutor(net, device, options.fast, reduced=reduced, compiled=compiled, last=channels_last)
    return GraphExecutor(
        net,
        device,
        options.recorder,
        replaces=passes == 1,
        reduced=reduced,
        compiled=compiled,
        last=channels_last,
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


def with_debug_info(run: Executor, net: Net, device: torch.device) -> Executor:
    """What runs a net whose debug_info may be set at some passes."""
    return run if isinstance(run, StepwiseExecutor) else DebugInfoExecutor(run, net, device)
