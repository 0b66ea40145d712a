"""Arrays from HDF5 files; their headers are checked before memory is allocated.

HDF5 fills in values that were never stored, unpacks a chunk to any size, and reaches one data set by many
names: a file of a kilobyte can ask for any amount of memory.

It also reads other files, which an untrusted file can only abuse: data sets whose values are stored elsewhere
(external storage) or assembled from other data sets (virtual; one that names itself ends the process), and
links to other files. Where one of them names a pipe, HDF5 waits for ever. So an object is opened only when it
is known to be stored in the file itself. Caffe writes none of these.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from imae.files.file_kinds import FileKind, file_kind, mistaken_file
from imae.files.limits import SMALL_FILE, free_memory, most_unpacked
from imae.files.read import AnyPath, file_size, is_on_disk, open_to_read

# zlib, HDF5's own compressor, unpacks a byte to at most 1032, and to so many only for constant data.
MEMORY_PER_BYTE = 1000
NUMBERS, TEXT = "biuf", "SO"  # numpy's kinds of types
# What h5py raises for a damaged file, or for one that holds something else.
HDF5_ERRORS = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError)
UNPACKED_FILTERS = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)  # leave the size as it is


MOST_SOFT_LINKS = 16  # on the path to an object; HDF5's own limit
DEEPEST = 32  # groups within groups


@contextmanager
def open_hdf5(path: AnyPath) -> Iterator[DataSets]:
    """The data sets of a regular file; HDF5_ERRORS where it cannot be opened."""
    with open_to_read(path) as opened:  # its errors give the reason; HDF5 would wait for a pipe
        source, size = os.fspath(path) if is_on_disk(opened) else opened, file_size(opened)
        with h5py.File(source, "r") as file:
            _check_heaps(opened, size, file.id.get_create_plist().get_sizes()[1])
            yield DataSets(file, size)


def is_hdf5(path: AnyPath) -> bool:
    """Whether a file, or what comes out of a pipe, is HDF5; OSError where it cannot be read."""
    with open_to_read(path) as opened:
        if is_on_disk(opened):
            return bool(h5py.is_hdf5(path))
        return file_kind(opened.read(16)) is FileKind.HDF5


class DataSets:
    """The data sets of an open file of `size` bytes; all together get MEMORY_PER_BYTE bytes for each byte."""

    def __init__(self, file: h5py.File, size: int) -> None:
        self.file, self.size = file, size
        self.left = most_unpacked(self.size, MEMORY_PER_BYTE)

    def find(self, name: str) -> Any:
        """The group or data set of this path; KeyError where there is none.

        ValueError where its path or its storage leads out of the file; see the module's docstring.
        """
        waiting, node, soft = name.split("/")[::-1], self.file["/"], 0
        name = f"/{name}"  # as HDF5 calls it
        while waiting:
            part = waiting.pop()
            if part in ("", "."):
                continue
            if not isinstance(node, h5py.Group) or not node.id.links.exists(key := _bytes(part)):
                raise KeyError(f"there is no {name} in it")
            # Not node.get(part, getlink=True), which follows the link to see whether it leads anywhere.
            kind = node.id.links.get_info(key).type
            if kind == h5py.h5l.TYPE_SOFT:
                soft += 1
                if soft > MOST_SOFT_LINKS:
                    raise ValueError(f"{name}: its links lead in circles")
                path = node.id.links.get_val(key).decode(errors="surrogateescape")
                waiting += path.split("/")[::-1]
                node = self.file["/"] if path.startswith("/") else node
            elif kind == h5py.h5l.TYPE_HARD:
                node = _stored_in_file(node[key], name)
            else:
                raise ValueError(
                    f"{name} is a link to another file, which is not followed; copy the values into this file"
                )
        return node

    def names(self, name: str) -> list[str]:
        """The names in a group; errors as in `find`."""
        group = self.find(name)
        if not isinstance(group, h5py.Group):
            raise ValueError(f"{name} is no group")
        return list(group)

    def walk(self, name: str) -> Iterator[tuple[str, list[str]]]:
        """(path from here, names of the data sets) of each group within a group; errors as in `find`."""
        waiting: list[tuple[str, ...]] = [(part,) for part in reversed(self.names(name))]
        seen: set[int] = set()
        while waiting:
            path = waiting.pop()
            inside, data_sets = "/".join(path), []
            names = self.names(f"{name}/{inside}")
            address = h5py.h5o.get_info(self.find(f"{name}/{inside}").id).addr
            if len(path) > 1 and (address in seen or len(path) > DEEPEST):  # links can lead in circles
                raise ValueError(f"/{name}/{inside} is nested too deeply, or has another name, too")
            seen.add(address)
            for part in names:
                if isinstance(self.find(f"{name}/{inside}/{part}"), h5py.Group):
                    waiting.append((*path, part))
                else:
                    data_sets.append(part)
            yield inside, data_sets

    def read(self, name: str, kinds: str = NUMBERS) -> NDArray[Any]:
        """All values of a data set; errors as in `find` and `admit`."""
        data_set = self.find(name)
        self.admit(data_set, kinds)
        return np.asarray(data_set[()])

    def admit(self, data_set: Any, kinds: str = NUMBERS) -> None:
        """ValueError unless an object is a data set of these kinds that fits into the memory left and free.

        `data_set` comes from `find`.
        """
        if not isinstance(data_set, h5py.Dataset) or data_set.shape is None:
            raise ValueError(f"{getattr(data_set, 'name', data_set)} holds no values")
        if data_set.dtype.kind not in kinds:
            raise ValueError(f"{data_set.name} holds values of type {data_set.dtype}")
        if data_set.dtype.kind == "O" and data_set.size != 1:  # many of them may be the same text
            raise ValueError(f"{data_set.name} holds {data_set.size} texts; one is expected")
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


def hdf5_content(path: AnyPath, expected: Literal["weights", "a solver state"]) -> str:
    """The end of an error about a file that should be HDF5 and hold what is `expected`: "; it ...", or "".

    It is "" where the content is as expected, or is not recognised.
    """
    if mistaken := mistaken_file(path, FileKind.HDF5):
        return mistaken
    try:
        with open_hdf5(path) as data_sets:
            names = data_sets.names("")
            if {"iter", "history"} <= set(names):
                content = "a solver state"
            elif "data" in names and isinstance(data_sets.find("data"), h5py.Group):
                content = "weights"
            else:
                content = f"the data sets {', '.join(names[:5])}" if names else "nothing"
    except HDF5_ERRORS:
        return ""
    return f"; it holds {content}" if content != expected else ""


HEAP = re.compile(rb"GCOL\x01\0\0\0")  # how a global heap begins: its name and version
HEAD_SIZE = 8  # bytes


def _check_heaps(opened: io.BufferedReader, size: int, width: int) -> None:
    """ValueError for a global heap in which HDF5 goes round in circles, as soon as somebody looks into it.

    A data set that is virtual has its sources there: they are read when it is opened, before anybody can ask
    whether it is virtual. In a heap, each object is preceded by its index, 2 bytes, 6 others and its size,
    `width` bytes. HDF5 2.0 goes on from one to the next by that size, also where this is no step at all.
    """
    head, left = _padded(8 + width), size // 8 + 1
    for start in _heaps(opened):
        end = min(start + _number(opened, start + 8, width), size)
        place = start + head
        while place + head <= end:
            length = _number(opened, place + 8, width)
            step = (head + _padded(length) if _number(opened, place, 2) else length) % 2**64
            left -= 1
            if not step or not left:  # heaps that overlap have more objects than there is room for
                raise ValueError("its global heap is damaged; write the file anew, as h5repack does")
            place += step


def _heaps(opened: io.BufferedReader) -> Iterator[int]:
    """Where in the file global heaps begin."""
    start, chunk = 0, b"more"
    while chunk:
        opened.seek(start)
        chunk = opened.read(1 << 20)
        for found in HEAP.finditer(chunk):
            yield start + found.start()
        start += max(len(chunk) - HEAD_SIZE + 1, HEAD_SIZE)  # one may lie across the end of a chunk


def _padded(size: int) -> int:
    return (size + 7) // 8 * 8


def _number(opened: io.BufferedReader, place: int, width: int) -> int:
    opened.seek(place)
    return int.from_bytes(opened.read(width), "little")


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


def _stored_in_file(node: Any, name: str) -> Any:
    """The node; ValueError for a data set whose values are stored outside of the file.

    This is its first query: even the shape of a virtual data set can make HDF5 open other files.
    """
    if not isinstance(node, h5py.Dataset):
        return node
    if node.is_virtual:
        raise ValueError(
            f"{name} is a virtual data set, whose values are those of others; write the values themselves, "
            "as h5repack does"
        )
    if node.external:
        raise ValueError(
            f"{name}: its values lie in another file, which is not read; write them into this one, as "
            "h5repack does"
        )
    return node


def _check_chunks(data_set: h5py.Dataset) -> None:
    """ValueError for chunks that may unpack to more than the size of a chunk."""
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

    def check_chunk(chunk: Any) -> None:
        if chunk.size > most:
            raise ValueError(
                f"{data_set.name} has a chunk of {chunk.size} bytes, which should be {size} unpacked"
            )

    data_set.id.chunk_iter(check_chunk)
