"""HDF5Data: rows of the data sets of HDF5 files.

    source: a text file with the names of the files, separated by white space, relative to the working folder

top[i]  (batch_size, ...), float32: rows of the data set of the top's name

Rows are read file after file, then from the beginning, also within a batch. `shuffle` shuffles the files; it
shuffles the rows of a file when the file is read, and again after every end of a file. It uses the C
library's rand(), which starts as with srand(1) whatever random_seed is. Where several ranks train together,
rank r of N takes rows r, r + N, ... of that order, which is the same in all ranks.

Batches are made while the net computes, so that it does not wait where the next file is read.

Caffe: hdf5_data_layer.cpp. Differs: in Caffe all shuffling HDF5Data layers of a process share one rand().
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from imae.files.caffe_log import log_line
from imae.files.errors import DataError, SnapshotError
from imae.files.file_kinds import FileKind, mistaken_file, mistaken_for
from imae.files.hdf5_file import HDF5_ERRORS, DataSets, open_hdf5
from imae.files.read import read_bytes
from imae.layers.data.base_data import AheadLayer, Batch, Buffers, checked_batch_size
from imae.layers.data.c_rand import GlibcRand
from imae.layers.data.saved_state import State, check_index, check_permutation
from imae.layers.layer import Shape
from imae.layers.registry import register_layer

UNSUPPORTED = {
    getattr(h5py.h5t, name): name
    for name in ("TIME", "STRING", "BITFIELD", "OPAQUE", "COMPOUND", "REFERENCE", "ENUM", "VLEN", "ARRAY")
}


@register_layer("HDF5Data")
class HDF5Data(AheadLayer):
    min_tops = 1
    prefetch = 2
    reads = ("transform_param",)  # to refuse it

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        hdf5 = self.param.hdf5_data_param
        if self.param.HasField("transform_param"):
            raise self.error("HDF5Data does not transform data.; leave transform_param out")
        self.batch_size = checked_batch_size(self.param, hdf5.batch_size)
        log_line("hdf5_data_layer.cpp:81", f"Loading list of HDF5 filenames from: {hdf5.source}")
        self.files = read_file_list(hdf5.source)
        log_line("hdf5_data_layer.cpp:95", f"Number of HDF5 files: {len(self.files)}")
        self.rand = GlibcRand(1)
        self.values: list[NDArray[np.float32]] = []
        self.row_order = np.zeros(0, np.int64)
        self.file_order = np.arange(len(self.files))
        self.file_order = self._shuffled(self.file_order)
        self.file, self.row = 0, self.ranks.rank
        self._load_file()
        self._end_files()
        self.arrays = [Buffers() for _ in self.values]
        self.begin()

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [(self.batch_size, *values.shape[1:]) for values in self.values]

    def load_batch(self) -> Batch:
        batch = [
            arrays.new((self.batch_size, *values.shape[1:]))
            for arrays, values in zip(self.arrays, self.values, strict=True)
        ]
        done = 0
        while done < self.batch_size:
            rows = self.row_order[self.row :: self.ranks.size][: self.batch_size - done]
            for part, values in zip(batch, self.values, strict=True):
                # "clip": as all rows are there, it changes none, and needs no copy in between
                np.take(values, rows, 0, part[done : done + len(rows)], "clip")
            done += len(rows)
            self.row += self.ranks.size * len(rows)
            self._end_files()
        return tuple(torch.from_numpy(part) for part in batch)

    def position(self) -> State:
        return {
            "files": len(self.files),
            "file": self.file,
            "row": self.row,
            "file_order": self.file_order,
            "row_order": self.row_order,
            "rand": np.array(self.rand.words, np.uint32),
        }

    def seek(self, state: State) -> None:
        if state["files"] == len(self.files):
            check_permutation("file_order", state["file_order"], len(self.files))
            check_index("file", state["file"], len(self.files))
            self.file, self.file_order = state["file"], state["file_order"]
            self._load_file()
        if state["files"] != len(self.files) or len(state["row_order"]) != len(self.row_order):
            raise SnapshotError(
                f"layer '{self.name}' (HDF5Data): the files are not those of the snapshot; use the same ones"
            )
        check_permutation("row_order", state["row_order"], len(self.row_order))
        check_index("row", state["row"], len(self.row_order))
        if len(state["rand"]) != len(self.rand.words):
            raise SnapshotError(f"rand has {len(self.rand.words)} words, the snapshot {len(state['rand'])}")
        self.row, self.row_order = state["row"], state["row_order"]
        self.rand.words = deque(state["rand"].tolist(), maxlen=31)

    def _end_files(self) -> None:
        while self.row >= len(self.row_order):
            self.row -= len(self.row_order)
            if len(self.files) > 1:
                self.file += 1
                if self.file == len(self.files):
                    self.file = 0
                    self.file_order = self._shuffled(self.file_order)
                self._load_file()
            self.row_order = self._shuffled(self.row_order)

    def _load_file(self) -> None:
        """Read the data sets of the current file; its rows in (shuffled) order."""
        name = self.files[self.file_order[self.file]]
        values = read_data_sets(name, list(self.param.top))
        shapes = [array.shape[1:] for array in values]
        first_shapes = [array.shape[1:] for array in self.values] or shapes
        if shapes != first_shapes:
            raise DataError(
                f"HDF5 file '{name}': rows of shape {shapes}; those of the first file have {first_shapes}"
            )
        self.values = values
        self.row_order = self._shuffled(np.arange(len(values[0])))

    def _shuffled(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """The order, shuffled like by libstdc++'s random_shuffle if `shuffle` is set; a new array then."""
        if not self.param.hdf5_data_param.shuffle:
            return order
        items = order.tolist()
        for i in range(1, len(items)):
            j = self.rand.draw() % (i + 1)
            items[i], items[j] = items[j], items[i]
        return np.array(items, np.int64)


def read_file_list(source: str) -> list[str]:
    """The names in a list, separated by white space."""
    try:
        data = read_bytes(source)
    except OSError as error:
        raise DataError(f"Failed to open source file: {source}: {error.strerror}") from None
    if mistaken := mistaken_for(data):
        raise DataError(f"source file {source}: expected a text that lists HDF5 files{mistaken}")
    names = [name.decode(errors="surrogateescape") for name in data.split()]
    if not names:
        raise DataError(f"Must have at least 1 HDF5 filename listed in {source}")
    return names


def read_data_sets(path: str, names: list[str]) -> list[NDArray[np.float32]]:
    """The data sets of these names as float32; all must have the same number of rows."""
    try:
        with open_hdf5(path) as data_sets:
            arrays = [_read_data_set(data_sets, path, name) for name in names]
    except DataError:
        raise
    except HDF5_ERRORS as error:
        mistaken = mistaken_file(path, FileKind.HDF5)
        raise DataError(f"Failed opening HDF5 file: {path}{mistaken or f': {error}'}") from None
    counts = [len(array) for array in arrays]
    if len(set(counts)) > 1 or counts[0] == 0:
        rows = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
        raise DataError(
            f"HDF5 file '{path}': expected the same number of rows, at least 1, of each; got {rows}"
        )
    return arrays


def _read_data_set(data_sets: DataSets, path: str, name: str) -> NDArray[np.float32]:
    try:
        data_set = data_sets.find(name)
    except KeyError:
        data_set = None
    if not isinstance(data_set, h5py.Dataset):
        names = ", ".join(data_sets.file) or "none"
        raise DataError(f"Failed to find HDF5 dataset {name} in '{path}'; it has {names}")
    kind = data_set.id.get_type().get_class()
    if kind in UNSUPPORTED:
        raise DataError(f"HDF5 file '{path}', {name}: Unsupported datatype class: H5T_{UNSUPPORTED[kind]}")
    if data_set.ndim == 0:
        raise DataError(
            f"HDF5 file '{path}', {name}: Input must have at least 1 axis.; it is a single number"
        )
    data_sets.admit(data_set)
    values = np.empty(data_set.shape, np.float32)
    if values.size:
        data_set.read_direct(values)
    return values
