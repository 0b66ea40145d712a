"""Which of the C kernels this processor can run, for marks and skips of tests."""

from __future__ import annotations

import os

from imae.files.errors import DeviceError
from imae.net.kernels import native


def conv_supported() -> bool:
    """Whether the convolution kernels were built and run on this processor with its IMAE_KERNELS_ISA."""
    try:
        chosen = native._choose("all", os.environ.get("IMAE_KERNELS_ISA") or "auto", native._library())
    except DeviceError:
        return False
    return chosen.convolutions != "none"
