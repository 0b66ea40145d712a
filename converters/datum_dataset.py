"""A database of Datums as a map-style dataset of torch, with the images of Caffe's Data layer."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imae.files.errors import DataError
from imae.files.read import AnyPath
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.data import Data
from imae.layers.data.data_resources import DataResources
from imae.layers.run import Run
from imae.prototxt import TEST, TRAIN, LayerParameter, TransformationParameter
from imae.prototxt.caffe_pb2 import DataParameter
from imae.prototxt.text import parse_text

State = dict[str, Any]


class Dataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The records of an LMDB or a LevelDB, by their places: (image, label).

    source           the database's folder
    transform_param  how images are prepared, as prototxt text: 'scale: 0.00390625 mean_value: 104'
    phase            TEST: crops are in the middle; TRAIN: crops are random. `mirror: true` mirrors images at
                     random in both, as in Caffe
    backend          LMDB or LEVELDB
    random_seed      of the random numbers, which are drawn image by image; None: another one each time

    An image is float32, (C, H, W), BGR. A label is a whole number. In their order the images are those of a
    Data layer with this random_seed. Each worker of a DataLoader opens the database itself, and draws random
    numbers of its own, others in each epoch; torch.manual_seed, too, decides which.

    An ImaeError where the database cannot be read, or does not fit the transformation.

    >>> import imae
    >>> digits = imae.Dataset("digits_lmdb", transform_param="scale: 0.0625")
    >>> image, label = digits[0]
    >>> tuple(image.shape), label, len(digits)
    ((1, 8, 8), 0, 3)
    >>> import torch
    >>> batches = torch.utils.data.DataLoader(digits, batch_size=2)
    >>> [labels.tolist() for images, labels in batches]
    [[0, 1], [2]]
    """

    def __init__(
        self,
        source: AnyPath,
        transform_param: str = "",
        phase: Literal["TRAIN", "TEST"] = "TEST",
        *,
        backend: Literal["LMDB", "LEVELDB"] = "LMDB",
        random_seed: int | None = None,
    ) -> None:
        if phase not in ("TRAIN", "TEST"):
            raise DataError(f"phase must be TRAIN or TEST, got {phase!r}")
        if backend not in ("LMDB", "LEVELDB"):
            raise DataError(f"backend must be LMDB or LEVELDB, got {backend!r}")
        self.source = os.fspath(source)
        self.param = LayerParameter(
            name="data",
            type="Data",
            top=["data", "label"],
            phase=TRAIN if phase == "TRAIN" else TEST,
            # One image at a time, and no thread: the workers of a DataLoader are what reads ahead.
            data_param=DataParameter(source=self.source, batch_size=1, prefetch=0, backend=backend),
            transform_param=parse_text(transform_param, TransformationParameter, "transform_param"),
        )
        self.seed = CaffeRandom(random_seed).seed
        self._layer: Data | None = None
        self._process = 0
        self._size = len(self._opened().source)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        if not -self._size <= place < self._size:
            raise IndexError(f"record {place} of {self._size}")
        layer = self._opened()
        layer.order = _One(place % self._size)
        images, labels = layer.next_batch()
        return images[0], int(labels[0])

    def __getstate__(self) -> State:
        """Without the opened database, for the processes of a DataLoader."""
        return {**self.__dict__, "_layer": None}

    def _opened(self) -> Data:
        """The layer that reads, opened in this process."""
        if self._layer is None or self._process != os.getpid():
            worker = torch.utils.data.get_worker_info()
            # A loader starts its workers anew in each epoch, with other seeds.
            random = CaffeRandom(self.seed + (0 if worker is None else worker.seed))
            layer = Data(self.param)
            layer.build([], Run(random, data_resources=DataResources(0, 1)))
            self._layer, self._process = layer, os.getpid()
        return self._layer


class _One:
    """An order of records that has one."""

    def __init__(self, place: int) -> None:
        self.place = place

    def next_rows(self, count: int) -> NDArray[np.int64]:
        return np.full(count, self.place)

    def get_state(self) -> State:
        return {"place": self.place}

    def set_state(self, state: State) -> None:
        self.place = state["place"]
