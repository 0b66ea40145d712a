"""Which of the kernels in C this processor can run, for marks and skips."""

from __future__ import annotations

import os

from imae.files.errors import DeviceError
from imae.net.kernels import native


def conv_supported() -> bool:
    """Whether the convolutions' kernels were built, and run on this processor with IMAE_KERNELS_ISA."""
    try:
        chosen = native._choose("all", os.environ.get("IMAE_KERNELS_ISA") or "auto", native._library())
    except DeviceError:
        return False
    return chosen.winograd
