"""What pycaffe keeps for the whole process: the random generator and the device mode."""

from __future__ import annotations

from imae.layers.caffe_random import CaffeRandom
from imae.prototxt.errors import DeviceError

_random = CaffeRandom(None)


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
