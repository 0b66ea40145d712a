"""The settings of a training beside its solver file: how it computes, and which snapshots it keeps."""

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
    """The options of a Solver. By default a SolverParameter has the meaning that it has in Caffe on the CPU.

    device          where the nets compute
    executor        makes the executor of a net (executor.py). None: one by the fields `fast` to `recorder`
    fast, channels_last, compiled, reduced   as for NetExecutor
    recorder        makes the recorder of passes and updates (cuda_graph.py). None: they are launched
                    each time
    on_nan          "stop": a train loss that is NaN or infinite is a NotFiniteError at the next display.
                    "continue": it is only displayed, as in Caffe
    keep            how many whole snapshots stay, the newest ones; besides them the last good one (before
                    there is one, the one from which this run was restored), and the last one whose weights
                    are finite. 0: all stay
    gpu_dropout     "device": a GPU draws dropout masks, and the pixels of stochastic pooling, itself.
                    "caffe": they come from the run's random numbers, as in Caffe on the CPU, which is slower
    dialect         the fork that wrote the files of nets and weights; None: Caffe
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
