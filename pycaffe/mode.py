"""What pycaffe keeps for the whole process: the random generator, the device mode, where the log goes."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from imae.files.caffe_log import GlogFormatter
from imae.layers.caffe_random import CaffeRandom
from imae.net.device import gpu
from imae.train.progress import StderrHandler

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
SEVERITIES = (logging.INFO, logging.WARNING, logging.ERROR)


@dataclass
class _Mode:
    """device: where nets compute; gpu: the GPU that it is in GPU mode."""

    device: torch.device = CPU
    gpu: int = 0


_mode = _Mode()
_random = CaffeRandom(None)
_log_handler = StderrHandler()
_log_handler.setFormatter(GlogFormatter())


def current_random() -> CaffeRandom:
    """The generator that fillers and masks of nets made through pycaffe draw from."""
    return _random


def set_random_seed(seed: int) -> None:
    """Start the generator anew from this seed (taken modulo 2^32)."""
    _random.reseed(seed)


def set_mode_cpu() -> None:
    """Nets and solvers made from now on compute on the CPU (the default)."""
    _mode.device = CPU


def set_mode_gpu() -> None:
    """Nets and solvers made from now on compute on the GPU that `set_device` chose, GPU 0 unless it did."""
    _mode.device = gpu(str(_mode.gpu), "set_mode_gpu()", "call set_mode_cpu()")


def set_device(device_id: int) -> None:
    """Choose the GPU that computes in GPU mode."""
    _mode.gpu = device_id
    if _mode.device != CPU:
        set_mode_gpu()


def current_device() -> torch.device:
    """Where a net that is made now computes."""
    return _mode.device


def init_log(level: int = 0, stderr: bool = True) -> None:
    """Write the log to stderr, in Caffe's form.

    level    the least severity to write: 0 info, 1 warnings, 2 errors
    stderr   False: errors only. (Caffe would write the rest to files in /tmp.)
    """
    package = logging.getLogger("imae")
    package.addHandler(_log_handler)
    package.setLevel(logging.INFO)
    _log_handler.setLevel(SEVERITIES[min(level, 2) if stderr else 2])


def log(message: str) -> None:
    """Write a line of information to the log."""
    logger.info("%s", message)
