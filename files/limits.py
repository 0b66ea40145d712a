"""How large a thing can be: looked at before memory is taken, for one line of a file may ask for any size.

Caffe: blob.cpp, Reshape, refuses more than 2^31 - 1 values. Differs: a blob for which there is no memory is
refused as well, instead of letting the system end the process.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MAX_AXES, MAX_COUNT = 32, 2**31 - 1
MAX_STRIDE = 2**59  # values from one to the next along an axis, whose bytes are counted with 63 bits
SMALL_BLOB = 1 << 20  # bytes, about which the system is not asked


def blob_problem(shape: Sequence[int]) -> str | None:
    """Why there cannot be a blob of this shape, or None."""
    if len(shape) > MAX_AXES:
        return f"a blob has at most {MAX_AXES} axes; got {len(shape)}"
    if any(not 0 <= axis <= MAX_COUNT for axis in shape):
        return f"a blob's axes are 0 to {MAX_COUNT}; got {tuple(shape)}"
    if math.prod(axis for axis in shape if axis) > MAX_STRIDE:
        return f"a blob of shape {tuple(shape)} is impossible, though it has no values; choose smaller sizes"
    count = math.prod(shape)
    if count > MAX_COUNT:
        return f"blob size exceeds INT_MAX: shape {tuple(shape)} has {count} values, at most {MAX_COUNT} fit"
    if 4 * count > SMALL_BLOB and 4 * count > (free := free_memory()):
        return (
            f"a blob of shape {tuple(shape)} needs {4 * count / 2**30:.3g} GiB, but only "
            f"{free / 2**30:.3g} GiB of memory are free; choose smaller sizes"
        )
    return None


SMALL_FILE = 1 << 20


def most_unpacked(size: int, per_byte: int) -> int:
    """What a file of `size` bytes may unpack to: so much for each of its bytes.

    A small file counts as one of 1 MiB: what little it can do does no harm, and some shrink a great deal.
    """
    return per_byte * max(size, SMALL_FILE)


def free_memory() -> int:
    """Bytes that this process may take: what is free, swap included, within its own limit (`ulimit -v`).

    All that there are where the system does not tell.
    """
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return total_memory()
    kilobytes = [int(size) for size in re.findall(r"(?m)^(?:MemAvailable|SwapFree): +(\d+) kB", text)]
    return min(_within_group(1024 * sum(kilobytes)), _left_to_process())


def _left_to_process() -> int:
    """Bytes of addresses that the process may still take."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return sys.maxsize
    import resource  # not on all systems

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(0, limit - int(statm.read_text().split()[0]) * resource.getpagesize())


@contextmanager
def within_free_memory() -> Iterator[None]:
    """Let a block of foreign code fail that wants more memory than is free: else the system ends the process.

    Where the system knows no such limit, the block just runs.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    import resource  # not on all systems

    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(statm.read_text().split()[0]) * resource.getpagesize()
    most = min([taken + free_memory(), *(limit for limit in limits if limit != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def total_memory() -> int:
    """Bytes of memory of the machine, or of the control group."""
    known = hasattr(os, "sysconf")
    return _within_group(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else 2**32)


SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+) *(%|[KMGT](?:i?B)?|B?)", re.IGNORECASE | re.ASCII)


def memory_size(text: str) -> int:
    """Bytes of memory from `4G`, `512M`, `1.5GiB` (powers of 1024), `25%` of all that there is, or `0`.

    ValueError for anything else, and for more than there is.
    """
    found = SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError(f"expected a size such as 4G or 512M, a share such as 25%, or 0; got {text!r}")
    number, unit = float(found[1]), found[2].upper()
    total = total_memory()
    factor = total / 100 if unit == "%" else 1024 ** "BKMGT".index(unit[:1] or "B")
    if number * factor > total:
        raise ValueError(f"{text} is more than the {bytes_text(total)} of memory that there are")
    return int(number * factor)


def bytes_text(count: int) -> str:
    """A number of bytes as logs and errors give it: 1.5 GiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"


def _within_group(memory: int) -> int:
    """At most what the control group allows."""
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    return memory
