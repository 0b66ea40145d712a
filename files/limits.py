"""Limits of sizes, checked before memory is allocated: one line of a file may ask for any size.

Caffe: blob.cpp, Reshape, refuses more than 2^31 - 1 values. Differs: a blob that does not fit into the free
memory is refused as well; else the system would kill the process.
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
MAX_STRIDE = 2**59  # values between neighbours along an axis; their bytes are counted with 63 bits
SMALL_BLOB = 1 << 24  # bytes; for smaller blobs the system is not asked, which takes longer than to make them

# What `imae doctor` gives to a project: files that it looks at, folders within folders, bytes of a prototxt
# or a list; and, for one file, seconds and bytes of memory (of address space: most is never touched).
MOST_PROJECT_FILES, DEEPEST_FOLDER = 100_000, 64
LARGEST_TEXT = 1 << 24
EXAMINATION_SECONDS, EXAMINATION_MEMORY = 60, 8 << 30


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
    """The bytes that a file of `size` bytes may unpack to, `per_byte` for each of its bytes.

    A file below 1 MiB counts as 1 MiB: it cannot do much harm, and some small files compress very well.
    """
    return per_byte * max(size, SMALL_FILE)


def free_memory() -> int:
    """Bytes that this process may still allocate: free memory and swap, within its own limit (`ulimit -v`).

    Where the system does not report free memory: all memory.
    """
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return total_memory()
    kilobytes = [int(size) for size in re.findall(r"(?m)^(?:MemAvailable|SwapFree): +(\d+) kB", text)]
    return min(_within_group(1024 * sum(kilobytes)), _left_to_process())


def _left_to_process() -> int:
    """Bytes of address space that the process may still allocate."""
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
    """Limit foreign code to the free memory: it fails, where else the system would kill the process.

    Where the system has no such limit, the block just runs.
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
    has_sysconf = hasattr(os, "sysconf")
    return _within_group(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if has_sysconf else 2**32)


SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+) *(%|[KMGT](?:i?B)?|B?)", re.IGNORECASE | re.ASCII)


def memory_size(text: str) -> int:
    """Bytes of memory from `4G`, `512M`, `1.5GiB` (powers of 1024), `25%` of all that there is, or `0`.

    ValueError for anything else, and for more than all memory.
    """
    match = SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"expected a size such as 4G or 512M, a share such as 25%, or 0; got {text!r}")
    number, unit = float(match[1]), match[2].upper()
    total = total_memory()
    factor = total / 100 if unit == "%" else 1024 ** "BKMGT".index(unit[:1] or "B")
    if number * factor > total:
        raise ValueError(f"{text} is more than the {bytes_text(total)} of memory that there are")
    return int(number * factor)


def bytes_text(count: int) -> str:
    """A number of bytes for logs and errors: 1.5 GiB."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"


def _within_group(memory: int) -> int:
    """`memory`, or the limit of the control group if that is less."""
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    return memory
