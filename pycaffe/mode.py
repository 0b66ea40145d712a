"""What pycaffe keeps for the whole process: the random generator, the device mode, where the log goes."""

from __future__ import annotations

import logging

from imae.layers.caffe_random import CaffeRandom
from imae.prototxt.errors import DeviceError
from imae.train.caffe_log import GlogFormatter
from imae.train.progress import StderrHandler

logger = logging.getLogger(__name__)

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
    """Compute on the CPU (the default)."""


def set_mode_gpu() -> None:
    """Refused: blobs of this face live in the CPU's memory, where scripts read and write them."""
    raise DeviceError("pycaffe computes on the CPU; train and test on a GPU with the command line's --gpu")


def set_device(device_id: int) -> None:
    """Accepted and without effect until the GPU mode is set."""


def init_log(level: int = 0, stderr: bool = True) -> None:
    """Write the log to stderr, in Caffe's form.

    level    the least severity to write: 0 info, 1 warnings, 2 errors
    stderr   False: errors only. (Caffe would write the rest to files in /tmp.)
    """
    package = logging.getLogger("imae")
    package.addHandler(_log_handler)
    package.setLevel(logging.INFO)
    _log_handler.setLevel((logging.INFO, logging.WARNING, logging.ERROR)[max(0, min(level if stderr else 2, 2))])


def log(message: str) -> None:
    """Write a line of information to the log."""
    logger.info("%s", message)
