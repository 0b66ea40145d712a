"""Arrays out of HDF5 files, whose headers are looked at before memory is taken.

HDF5 makes up what was never stored, unpacks whatever a chunk holds, and finds one data set under many names:
a file of a kilobyte can ask for any amount of memory.
"""

from __future__ import annotations

import math
import os
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from imae.layers.memory import SMALL_FILE, free_memory, most_unpacked
from imae.prototxt.file_kinds import FileKind, mistaken_file
from imae.prototxt.files import AnyPath

# zlib, HDF5's own compressor, makes at most 1032 bytes of one, and even that only of constant data.
MEMORY_PER_BYTE = 1000
NUMBERS, TEXT = "biuf", "SO"  # numpy's kinds of types
# What h5py raises for a damaged file, or for one that holds something else.
HDF5_ERRORS = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError)
UNPACKED_FILTERS = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)  # leave the size as it is


class DataSets:
    """Reads data sets of one open file; together they get MEMORY_PER_BYTE bytes for each of the file's."""

    def __init__(self, file: h5py.File) -> None:
        self.size = os.path.getsize(file.filename)
        self.left = most_unpacked(self.size, MEMORY_PER_BYTE)

    def read(self, data_set: Any, kinds: str = NUMBERS) -> NDArray[Any]:
        """All values; see `admit`."""
        self.admit(data_set, kinds)
        return np.asarray(data_set[()])

    def admit(self, data_set: Any, kinds: str = NUMBERS) -> None:
        """ValueError for what is no data set of these kinds, or takes more memory than is left or free."""
        if not isinstance(data_set, h5py.Dataset) or data_set.shape is None:
            raise ValueError(f"{getattr(data_set, 'name', data_set)} holds no values")
        if data_set.dtype.kind not in kinds:
            raise ValueError(f"{data_set.name} holds values of type {data_set.dtype}")
        bytes_each = max(data_set.dtype.itemsize, np.float32().itemsize)
        needed = (data_set.size + math.prod(data_set.chunks or (0,))) * bytes_each
        if needed > self.left:
            raise ValueError(
                f"{data_set.name} asks for {needed} bytes of memory; a file of {self.size} bytes gets "
                f"{most_unpacked(self.size, MEMORY_PER_BYTE)} in all, {MEMORY_PER_BYTE} for each byte of at "
                f"least {SMALL_FILE}; if it is to be trusted, write it without compression"
            )
        if needed > (free := free_memory()):
            raise ValueError(f"{data_set.name} needs {needed} bytes of memory, but only {free} are free")
        _check_chunks(data_set)
        self.left -= needed


def hdf5_content(path: AnyPath, but: Literal["weights", "a solver state"]) -> str:
    """What to append to an error about a file that should be HDF5 and hold `but`: "; it ...", or nothing.

    Nothing where it is as it should be, or where its content tells nothing.
    """
    if mistaken := mistaken_file(path, FileKind.HDF5):
        return mistaken
    try:
        with h5py.File(path, "r") as file:
            if "iter" in file and "history" in file:
                content = "a solver state"
            elif isinstance(file.get("data"), h5py.Group):
                content = "weights"
            else:
                content = f"the data sets {', '.join(list(file)[:5])}" if len(file) else "nothing"
    except HDF5_ERRORS:
        return ""
    return f"; it holds {content}" if content != but else ""


def _check_chunks(data_set: h5py.Dataset) -> None:
    """ValueError for chunks that may unpack to more than a chunk."""
    if data_set.chunks is None:
        return
    settings = data_set.id.get_create_plist()
    filters = [settings.get_filter(index)[0] for index in range(settings.get_nfilters())]
    packers = [number for number in filters if number not in UNPACKED_FILTERS]
    if len(packers) > 1:
        raise ValueError(f"{data_set.name} is compressed {len(packers)} times over")
    if not packers:
        return
    size = math.prod(data_set.chunks) * data_set.dtype.itemsize
    most = size + size // 10 + 4096  # incompressible data grow a little

    def look(chunk: Any) -> None:
        if chunk.size > most:
            raise ValueError(
                f"{data_set.name} has a chunk of {chunk.size} bytes, which should be {size} unpacked"
            )

    data_set.id.chunk_iter(look)
