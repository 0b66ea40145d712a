"""The MARS benchmark's own protocol, which is not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def mars_folder() -> Path:
    """The folder of its .mat files, which the environment variable IMAE_MARS names; a skip without one."""
    folder = os.environ.get("IMAE_MARS")
    if not folder:
        pytest.skip("the MARS protocol is not here; IMAE_MARS must name the folder of its .mat files")
    return Path(folder)
