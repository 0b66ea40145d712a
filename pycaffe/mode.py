"""The process-wide state of pycaffe: random generator, device mode, log handler."""

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
    """device: where nets compute; gpu: the GPU to use in GPU mode."""

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
    """Restart the generator from this seed (taken modulo 2^32)."""
    _random.reseed(seed)


def set_mode_cpu() -> None:
    """Nets and solvers made from now on compute on the CPU (the default)."""
    _mode.device = CPU


def set_mode_gpu() -> None:
    """Nets and solvers made from now on compute on the GPU that `set_device` chose, by default GPU 0."""
    _mode.device = gpu(str(_mode.gpu), "set_mode_gpu()", "call set_mode_cpu()")


def set_device(device_id: int) -> None:
    """Choose the GPU to use in GPU mode."""
    _mode.gpu = device_id
    if _mode.device != CPU:
        set_mode_gpu()


def current_device() -> torch.device:
    """The device of nets and solvers that are made now."""
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
