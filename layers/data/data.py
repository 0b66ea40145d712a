"""Data: images and labels from an LMDB or a LevelDB of Datums.

top[0]  (batch_size, C, H, W), or (.., crop_size, crop_size); float32; pictures are BGR, 0-255 before the
        transformation (transformer.py)
top[1]  (batch_size,), optional: the labels

Records come in byte order of their keys; after the last one comes the first, also within a batch. Each layer
goes its own way through the database. The first record of a batch gives the batch its size.
data_order_param chooses another order than that of the keys (record_order.py). Where several ranks train
together, rank r of N takes records r, r + N, ...

Caffe: data_layer.cpp, db_lmdb.cpp, db_leveldb.cpp. Differs: a database without records, or a Datum that
contradicts itself, is an error; data_order_param. rand_skip does nothing, as in Caffe 1.0.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imae.layers.data.base_data import (
    Batch,
    PrefetchingLayer,
    State,
    checked_batch_size,
    log,
    output_data_size,
    refuse_moved_fields,
)
from imae.layers.data.datum import array_from_datum, parse_datum
from imae.layers.data.leveldb_source import LeveldbSource, open_leveldb
from imae.layers.data.lmdb_source import LmdbSource, open_lmdb
from imae.layers.data.record_order import check_order, make_order
from imae.layers.data.resident import ResidentRecords
from imae.layers.memory import total_memory
from imae.layers.registry import register_layer
from imae.prototxt import Datum, LayerParameter
from imae.prototxt.errors import SnapshotError

logger = logging.getLogger(__name__)

Source = LmdbSource | LeveldbSource


@register_layer("Data")
class Data(PrefetchingLayer):
    min_tops, max_tops = 1, 2
    what = "datum"
    reads = ("data_order_param", *PrefetchingLayer.reads)

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        data = param.data_param
        refuse_moved_fields(param, data, ("scale", "mean_file", "crop_size", "mirror", "force_encoded_color"))
        self.batch_size = checked_batch_size(param, data.batch_size)
        check_order(param)
        if data.rand_skip:
            logger.warning("layer '%s' (Data): rand_skip has no effect, as in Caffe 1.0", self.name)
        if not data.source:
            raise self.error("data_param.source is not set; give it the path of an LMDB")
        self.source: Source
        if data.backend == data.LMDB:
            self.source = open_lmdb(data.source)
            log(logger, "db_lmdb.cpp:35", f"Opened lmdb {data.source}")
        else:
            self.source = open_leveldb(data.source)
            log(logger, "db_leveldb.cpp:18", f"Opened leveldb {data.source}")

    def data_setup(self) -> None:
        transform = self.param.transform_param
        budget = memory_budget() // self.ranks.size
        self.reader = DatumReader(self.source, transform.force_color, transform.force_gray, budget)
        if self.reader.first_is_encoded:
            self.transformer.what = "img"
        elif transform.force_color or transform.force_gray:
            logger.error(
                "force_color and force_gray only for encoded datum",
                extra={"caffe": "data_transformer.cpp:152"},
            )
        size = self.transformer.output_size(self.reader.first_size, self.reader.first_name)
        self.shapes = [(self.batch_size, *size), (self.batch_size,)]
        self.order = make_order(
            self.param, len(self.source), self.reader.read_labels, self.random, self.ranks
        )
        self.resident: ResidentRecords | None = None
        log(logger, "data_layer.cpp:45", output_data_size(self.shapes[0]))

    def load_batch(self) -> Batch:
        rows = self.order.next_rows(self.batch_size)
        if self.resident is not None:
            return (self.resident.draw(rows),)
        images, labels = self.reader.read(rows)
        if isinstance(images, np.ndarray):
            values = self.transformer.transform_rows(images, rows)
        else:
            names, keys = self.source.record_name, self.source.keys  # asked in errors only
            values = self.transformer.transform_list(images, lambda i: names(keys()[rows[i]]))
        batch = torch.from_numpy(values), torch.from_numpy(labels.astype(np.float32))
        return batch[: len(self.param.top)]

    def reside(self, device: torch.device, budget: int) -> bool:
        if self.reader.bytes_needed > budget:
            return False
        state = self.get_state()
        self.stop()  # the thread reads from the same file; what it has made was made the other way
        whole = self.reader.read_all()
        if whole is not None:
            self.resident = ResidentRecords(*whole, self.transformer, device)
        self.set_state(state)
        return self.resident is not None

    def next_batch(self) -> Batch:
        return super().next_batch() if self.resident is None else self.assemble(self.next_draw())

    def next_draw(self) -> Tensor:
        if self.resident is None:
            return super().next_draw()
        (drawn,) = super().next_batch()
        return drawn

    def assemble(self, drawn: Tensor) -> Batch:
        if self.resident is None:
            return super().assemble(drawn)
        batch = self.resident.assemble(drawn.to(self.resident.images.device, non_blocking=True))
        return batch[: len(self.param.top)]

    def position(self) -> State:
        return {**self.order.get_state(), "records": len(self.source)}

    def seek(self, state: State) -> None:
        if state["records"] != len(self.source):
            raise SnapshotError(
                f"database '{self.source.path}' has {len(self.source)} records; it had {state['records']} "
                "when the snapshot was made; use the same database"
            )
        self.order.set_state(state)

    def close(self) -> None:
        super().close()
        self.source.close()


class DatumReader:
    """Decodes records; keeps the images in one uint8 array, if all are of one size and that fits.

    budget       bytes that the array may take
    first_size   (C, H, W) of record 0, first_name what errors call it
    """

    def __init__(self, source: Source, force_color: bool, force_gray: bool, budget: int) -> None:
        self.source = source
        self._forced = force_color, force_gray
        self._cursor: Iterator[tuple[bytes, bytes]] = iter(())
        self._cursor_at = -1
        self.first_name, datum = self._parse(0)
        first = array_from_datum(datum, self.first_name, *self._forced)
        self.first_is_encoded, self.first_size = datum.encoded, first.shape
        self._kept: NDArray[np.uint8] | None = None
        self._labels = np.zeros(len(source), np.int64)
        self._have = np.zeros(len(source), np.bool_)
        if first.dtype == np.uint8 and first.size * len(source) <= budget:
            self._kept = np.empty((len(source), *first.shape), np.uint8)

    def read(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8] | list[NDArray[Any]], NDArray[np.int64]]:
        """(images, labels) of the records `rows`: the array of all records, or a list of these ones."""
        if self._kept is not None and self._keep(self._kept, rows):
            return self._kept, self._labels[rows]
        self._kept = None
        decoded = [self._decode(row) for row in rows.tolist()]
        return [image for image, _ in decoded], np.array([label for _, label in decoded], np.int64)

    @property
    def bytes_needed(self) -> int:
        """What the array of all images takes, if they are all like the first one."""
        return prod(self.first_size) * len(self.source)

    def read_all(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """All images (K, C, H, W) and labels; None where they are not kept in one array."""
        if self._kept is None or not self._keep(self._kept, np.arange(len(self.source))):
            return None
        return self._kept, self._labels

    def read_labels(self) -> NDArray[np.int64]:
        """The labels of all records."""
        named = ((self.source.record_name(key), value) for key, value in self.source.records())
        return np.fromiter((parse_datum(value, name).label for name, value in named), np.int64)

    def _keep(self, kept: NDArray[np.uint8], rows: NDArray[np.int64]) -> bool:
        """Make sure that the array holds these records; False if one does not fit in."""
        for row in rows[~self._have[rows]].tolist():
            image, self._labels[row] = self._decode(row)
            if image.shape != self.first_size or image.dtype != np.uint8:
                return False
            kept[row], self._have[row] = image, True
        return True

    def _decode(self, row: int) -> tuple[NDArray[Any], int]:
        name, datum = self._parse(row)
        return array_from_datum(datum, name, *self._forced), datum.label

    def _parse(self, row: int) -> tuple[str, Datum]:
        """(name, Datum) of a record; the next one is at hand, others are sought."""
        if row != self._cursor_at:
            self._cursor = self.source.records(row)
        self._cursor_at = row + 1
        key, value = next(self._cursor)
        name = self.source.record_name(key)
        return name, parse_datum(value, name)


def memory_budget(share: float = 0.25) -> int:
    """Bytes that a layer may keep decoded: a share of the memory of the machine, or of the control group."""
    return int(total_memory() * share)
