"""Which GPUs a command asks for, and how it logs its device; without torch, for the help of commands."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from imae.files.caffe_log import log_line


class GpuRequest(NamedTuple):
    """A request for GPUs: `0`, `0,1` or `all`; the option that asks for it; what to do without a GPU."""

    wanted: str
    asked_by: str
    instead: str


class DeviceLog(NamedTuple):
    """How one of Caffe's tools logs its device: (place in the tool's source, text).

    In a text, {ids} stands for the ids of all GPUs, {id} and {name} for the id and name of one.

    cpu      the line for the CPU
    gpus     the lines for all GPUs together
    gpu      the lines for each GPU
    """

    cpu: tuple[str, str]
    gpus: Sequence[tuple[str, str]] = ()
    gpu: Sequence[tuple[str, str]] = ()
    level: int = logging.INFO

    def write(self, ids: Sequence[int]) -> None:
        """Log that these GPUs compute, or the CPU if there are none."""
        import torch

        if not ids:
            log_line(*self.cpu, self.level)
        for place, text in self.gpus if ids else ():
            log_line(place, text.format(ids=", ".join(map(str, ids))), self.level)
        for index in ids:
            for place, text in self.gpu:
                name = torch.cuda.get_device_name(index) if "{name}" in text else ""
                log_line(place, text.format(id=index, name=name), self.level)


# Of `caffe test`.
TEST_DEVICE_LOG = DeviceLog(
    cpu=("caffe.cpp:275", "Use CPU."),
    gpu=[("caffe.cpp:266", "Use GPU with device ID {id}"), ("caffe.cpp:270", "GPU device name: {name}")],
)
