"""How large a blob can be: looked at before memory is taken, for one line of a prototxt may ask for any size.

Caffe: blob.cpp, Reshape, refuses more than 2^31 - 1 values. Differs: a blob for which there is no memory is
refused as well, instead of letting the system end the process.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

MAX_AXES, MAX_COUNT = 32, 2**31 - 1


def blob_problem(shape: Sequence[int]) -> str | None:
    """Why there cannot be a blob of this shape, or None."""
    count = math.prod(shape)
    if count > MAX_COUNT:
        return f"blob size exceeds INT_MAX: shape {tuple(shape)} has {count} values, at most {MAX_COUNT} fit"
    if 4 * count > (free := free_memory()):
        return (
            f"a blob of shape {tuple(shape)} needs {4 * count / 2**30:.3g} GiB, but only "
            f"{free / 2**30:.3g} GiB of memory are free; choose smaller sizes"
        )
    return None


def free_memory() -> int:
    """Bytes that are free, swap included; all that there are where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return total_memory()
    kilobytes = [int(size) for size in re.findall(r"(?m)^(?:MemAvailable|SwapFree): +(\d+) kB", text)]
    return _within_group(1024 * sum(kilobytes))


def total_memory() -> int:
    """Bytes of memory of the machine, or of the control group."""
    known = hasattr(os, "sysconf")
    return _within_group(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else 2**32)


def _within_group(memory: int) -> int:
    """At most what the control group allows."""
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    return memory
