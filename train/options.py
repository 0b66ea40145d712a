"""What a training is started with beside its solver file: how it computes, and what it looks after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from imae.net.cuda_graph import Recorder
from imae.net.executor import Executor
from imae.net.net import Net
from imae.train.loss_watch import OnNan


@dataclass(frozen=True)
class Options:
    """Those of a Solver; by default a SolverParameter means what it means to Caffe on the CPU.

    device          where the nets compute
    executor        makes what runs a net (executor.py). None: one as the fields from `fast` to `recorder` say
    fast, channels_last, compiled, reduced   as for NetExecutor, whose `last` is channels_last
    recorder        makes what records passes and updates to replay them (cuda_graph.py). None: each is
                    launched anew
    on_nan          "stop": a train loss that is NaN or infinite is a NotFiniteError at the next display.
                    "continue": it is shown and that is all, as in Caffe
    keep            how many snapshots stay, the newest ones, once they are whole; besides them the last good
                    one (before there is one, that from which this run goes on), and the last one whose
                    weights are finite. 0: all stay
    gpu_dropout     "device": a GPU draws dropout masks, and the pixels of stochastic pooling, itself.
                    "caffe": they come from the run's random numbers, as Caffe's on the CPU, which is slower
    dialect         the fork that the files of nets and weights are of; None: Caffe's own
    """

    device: str | torch.device = "cpu"
    executor: Callable[[Net], Executor] | None = None
    fast: bool = True
    channels_last: bool | None = None
    compiled: bool = False
    reduced: torch.dtype | None = None
    recorder: Callable[[], Recorder] | None = None
    on_nan: OnNan = "continue"
    keep: int = 0
    gpu_dropout: Literal["caffe", "device"] = "device"
    dialect: str | None = None
