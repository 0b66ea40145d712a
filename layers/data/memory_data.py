"""MemoryData: batches from arrays that a program passes in.

top[0]  (batch_size, channels, height, width)
top[1]  (batch_size,) at set-up, (batch_size, 1, 1, 1) from the first forward pass on, as in Caffe: the labels

The batches are consecutive parts of the arrays, then start from their beginning. The arrays are used without
a copy; `add` takes images instead, which are transformed (transformer.py).

Caffe: memory_data_layer.cpp.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imae.files.caffe_log import log_line
from imae.files.errors import SnapshotError
from imae.layers.data.saved_state import State, check_state
from imae.layers.data.transformer import DataTransformer
from imae.layers.layer import DataLayer, Shape
from imae.layers.registry import register_layer


@register_layer("MemoryData")
class MemoryData(DataLayer):
    num_tops = 2
    reads = tuple(
        f"transform_param.{field}"
        for field in ("scale", "mirror", "crop_size", "mean_file", "mean_value", "exclude_last_crop")
    )

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        memory = self.param.memory_data_param
        self.batch_size = memory.batch_size
        self.size = (memory.channels, memory.height, memory.width)
        if 0 in (self.batch_size, *self.size):
            raise self.error(
                "batch_size, channels, height, and width must be specified and positive in memory_data_param;"
                f" got {(self.batch_size, *self.size)}"
            )
        name = f"layer '{self.name}' (MemoryData)"
        self.transformer = DataTransformer(self.param.transform_param, self.phase, name)
        self.transformer.seed(self.random)
        self.data: Tensor | None = None
        self.labels = torch.zeros(0)
        self.index = 0
        self.unused = False  # images of `add` that the forward passes have not used up yet

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [(self.batch_size, *self.size), (self.batch_size,)]

    def reset(self, data: NDArray[np.float32], labels: NDArray[np.float32]) -> None:
        """Take the batches from `data` (N, channels, height, width) and `labels` (N,) or (N, 1, 1, 1).

        N is a multiple of batch_size; both float32 and C-contiguous.
        """
        if self.param.HasField("transform_param"):
            log_line(
                "memory_data_layer.cpp:90",
                "MemoryData does not transform array data on Reset()",
                logging.WARNING,
            )
        self._set_arrays(data, labels)

    set_input_arrays = reset  # pycaffe's name

    def add(self, images: Sequence[NDArray[Any]], labels: Sequence[int]) -> None:
        """Take the batches from images (C, H, W), transformed; earlier images must be used up before."""
        if self.unused:
            raise self.error("Can't add data until current data has been consumed.")
        if not images:
            raise self.error("There is no datum to add.")
        owner = f"layer '{self.name}' (MemoryData)"
        data = self.transformer.transform_list(images, lambda i: f"{owner}, image {i}")
        self._set_arrays(data, np.array(labels, np.float32))
        self.unused = True

    def next_batch(self) -> tuple[Tensor, ...]:
        if self.data is None:
            raise self.error(
                "MemoryDataLayer needs to be initialized by calling Reset; call set_input_arrays"
            )
        rows = slice(self.index, self.index + self.batch_size)
        self.index = rows.stop % len(self.data)
        self.unused &= self.index != 0
        return self.data[rows], self.labels[rows]

    def get_state(self) -> State:
        return {"index": self.index, "transformer": self.transformer.get_state()}

    def set_state(self, state: State) -> None:
        """Continue where `get_state` was called; the caller must set the same arrays before."""
        check_state(self, state, self.get_state())
        if state["index"] and (self.data is None or not 0 <= state["index"] < len(self.data)):
            raise SnapshotError(
                f"layer '{self.name}' (MemoryData): give it the arrays of the saved run first"
            )
        self.index = state["index"]
        self.transformer.set_state(state["transformer"])

    def _set_arrays(self, data: NDArray[np.float32], labels: NDArray[np.float32]) -> None:
        for name, array in (("data", data), ("labels", labels)):
            if array.dtype != np.float32 or not array.flags.c_contiguous:
                raise self.error(f"{name} array must be float32 and C contiguous; got {array.dtype}")
        if data.shape[1:] != self.size or data.ndim != 4:
            raise self.error(f"data array must be (N, {', '.join(map(str, self.size))}); got {data.shape}")
        if labels.shape not in ((len(data),), (len(data), 1, 1, 1)):
            raise self.error(f"labels array must be ({len(data)},); got {labels.shape}")
        if len(data) == 0 or len(data) % self.batch_size:
            raise self.error(f"n must be a multiple of batch size; got {len(data)} for {self.batch_size}")
        self.data, self.labels = _tensor(data), _tensor(labels).view(-1, 1, 1, 1)
        self.index = 0


def _tensor(array: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())
