"""The command that starts `imae` in a new process, for parts that may not import the command line."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points


def imae_program() -> list[str]:
    """The words that start `imae` with this Python: the module of its console script (pyproject.toml).

    -P: modules in the working directory do not shadow installed ones.
    """
    (script,) = entry_points(group="console_scripts", name="imae")
    return [sys.executable, "-P", "-m", script.module]
