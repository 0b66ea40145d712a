"""Data: images and labels from an LMDB or a LevelDB of Datums.

top[0]  (batch_size, C, H, W), or (.., crop_size, crop_size); float32; images are BGR, 0-255 before the
        transformation (transformer.py)
top[1]  (batch_size,), optional: the labels

Records are read in byte order of their keys; the first one follows the last one, also within a batch. Every
layer has its own position in the database. The first record of a batch gives the batch its size.
data_order_param chooses another order, as does data_param.shuffle of Intel's and NVIDIA's forks
(record_order.py). Where several ranks train together, rank r of N reads records r, r + N, ...

If all images fit into the free part of a budget (data_resources.py), every image is decoded once and kept.
Otherwise records are read and decoded anew each time. Both ways give the same batches.

Caffe: data_layer.cpp, db_lmdb.cpp, db_leveldb.cpp. Differs: a database without records, or a Datum that
contradicts itself, is an error; data_order_param. rand_skip does nothing, as in Caffe 1.0.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from torch import Tensor

from imae.files.caffe_log import log_line
from imae.files.errors import DataError, SnapshotError
from imae.files.limits import bytes_text
from imae.layers.data.base_data import (
    Batch,
    PrefetchingLayer,
    checked_batch_size,
    note_fields_of_annotations,
    note_moved_fields,
    output_data_size,
)
from imae.layers.data.data_resources import DataResources, KeptRecords, MapIndices, map_in_order
from imae.layers.data.datum import array_from_datum, is_interleaved, parse_datum, planes
from imae.layers.data.image_transform import FIELDS
from imae.layers.data.leveldb_source import LeveldbSource, open_leveldb
from imae.layers.data.lmdb_source import LmdbSource, open_lmdb
from imae.layers.data.record_order import check_order, make_order, shuffles
from imae.layers.data.resident import ResidentRecords
from imae.layers.data.saved_state import State
from imae.layers.registry import register_layer
from imae.prototxt import Datum, LayerParameter

logger = logging.getLogger(__name__)

READ_AT_ONCE = 1024  # records

Source = LmdbSource | LeveldbSource
# An array, or a function that makes the i-th image, in any thread.
Images = NDArray[np.uint8] | Callable[[int], NDArray[Any]]


@register_layer("Data")
class Data(PrefetchingLayer):
    """Batches of a database's records.

    noted_rows   where the records of each batch are noted, for a caller that pops them batch by batch; None:
                 nowhere
    """

    min_tops, max_tops = 1, 2
    large_images_go_on = True
    image_word = "datum"
    reads = ("data_order_param", *PrefetchingLayer.reads)

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        note_fields_of_annotations(self)
        self.batch_size, self.source = open_source(self)
        self.noted_rows: deque[NDArray[np.int64]] | None = None

    def data_setup(self) -> None:
        transform = self.param.transform_param
        self.reader = DatumReader(
            self.source,
            transform.force_color,
            transform.force_gray,
            self.data_resources,
            self.transformer.keeps_interleaved,
        )
        logger.info("layer '%s' (Data): %s", self.name, self.reader.storage)
        if self.reader.first_is_encoded:
            self.transformer.image_word = "img"
        elif transform.force_color or transform.force_gray:
            log_line(
                "data_transformer.cpp:152", "force_color and force_gray only for encoded datum", logging.ERROR
            )
        if self.transformer.images is not None and not self.reader.first_is_encoded:
            raise self.error(
                f"{', '.join(FIELDS[:-1])} and {FIELDS[-1]} are for encoded images, and "
                f"{self.reader.first_name} is raw; encode the images, or use crop_size"
            )
        self.record_size = self.reader.first_size[1:]
        size = self.transformer.output_size(self.reader.first_size, self.reader.first_name)
        self.shapes = [(self.batch_size, *size), (self.batch_size,)]
        self.order = make_order(
            self.param, len(self.source), self.reader.read_labels, self.random, self.ranks
        )
        self.resident: ResidentRecords | None = None
        log_line("data_layer.cpp:45", output_data_size(self.shapes[0]))

    def load_batch(self) -> Batch:
        rows = self.order.next_rows(self.batch_size)
        if self.noted_rows is not None:
            self.noted_rows.append(rows)
        if self.resident is not None:
            return (self.resident.draw(rows),)
        images, places, labels = self.reader.read(rows)
        if isinstance(images, np.ndarray):
            values = self.transformer.transform_rows(images, places)
        else:
            values = self.transformer.transform_made(images, len(rows), self.reader.names(rows))
        batch = torch.from_numpy(values), torch.from_numpy(labels.astype(np.float32))
        return batch[: len(self.param.top)]

    def make_resident(self, device: torch.device, budget: int) -> bool:
        sized_one_by_one = self.transformer.images is not None or self.transformer.resize is not None
        if self.reader.bytes_needed > budget or sized_one_by_one:
            return False
        state = self.get_state()
        self.stop()  # the thread reads from the same file, and its batches were made otherwise
        images_and_labels = self.reader.read_all()
        if images_and_labels is not None:
            self.resident = ResidentRecords(*images_and_labels, self.transformer, device)
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
        if self.noted_rows is not None:
            self.noted_rows.clear()  # of batches that were made and are discarded
        if state["records"] != len(self.source):
            raise SnapshotError(
                f"database '{self.source.path}' has {len(self.source)} records; it had {state['records']} "
                "when the snapshot was made; use the same database"
            )
        self.order.set_state(state)

    def close(self) -> None:
        super().close()
        self.source.close()


def open_source(layer: PrefetchingLayer) -> tuple[int, Source]:
    """The batch size and the opened database of a layer with data_param; its fields are checked."""
    data = layer.param.data_param
    moved = ("scale", "mean_file", "crop_size", "mirror", "force_encoded_color")
    note_moved_fields(layer, "data_param", moved)
    batch_size = checked_batch_size(layer.param, data.batch_size)
    check_order(layer.param)
    if data.rand_skip:
        layer.note_leftover("data_param.rand_skip")
    if data.shuffle and not shuffles(layer.param):
        layer.note_leftover("data_param.shuffle")
    if not data.source:
        raise layer.error("data_param.source is not set; give it the path of an LMDB")
    source: Source
    if data.backend == data.LMDB:
        source = open_lmdb(data.source)
        log_line("db_lmdb.cpp:35", f"Opened lmdb {data.source}")
    else:
        source = open_leveldb(data.source)
        log_line("db_leveldb.cpp:18", f"Opened leveldb {data.source}")
    return batch_size, source


class DatumReader:
    """Decodes records; keeps the images in one uint8 array, if all have one size and the array fits.

    resources    memory for the array, and threads that decode images
    interleaved  whether an image of these sizes is kept in the order in memory in which it is decoded
    first_size   (C, H, W) of record 0; first_name is its name in errors
    storage      whether the images are kept, in words
    """

    def __init__(
        self,
        source: Source,
        force_color: bool,
        force_gray: bool,
        resources: DataResources,
        interleaved: Callable[[NDArray[Any]], bool] = lambda image: False,
    ) -> None:
        self.source, self.resources = source, resources
        self._forced = force_color, force_gray
        self._raw: RawFormat | None = None
        value = source.value(0)
        self.first_name = self.name(0)
        datum = parse_datum(value, self.first_name)
        first = array_from_datum(datum, self.first_name, *self._forced)
        channels, height, width = first.shape
        self.first_is_encoded, self.first_size = datum.encoded, (channels, height, width)
        # Threads help only where images are decoded.
        self._map_indices: MapIndices = resources.map_indices if datum.encoded else map_in_order
        if not datum.encoded and first.dtype == np.uint8:
            self._raw = RawFormat(datum)
        shape = (len(source), *first.shape)
        as_decoded = interleaved(first)
        key = (source.identity, *self._forced, as_decoded)
        shared = resources.kept(key)
        budget = f"{bytes_text(resources.free)} are free of a budget of {bytes_text(resources.budget)}"
        self._kept: KeptRecords | None = None
        if first.dtype == np.uint8:
            self._kept = shared or resources.keep(key, shape, as_decoded)
        size = f"{len(source)} records, {bytes_text(first.nbytes * len(source))} decoded,"
        if first.dtype != np.uint8:
            self.storage = f"{size} are read anew each time: their values are no bytes"
        elif shared is not None:
            self.storage = f"{size} are kept in memory, where another layer has them, too"
        elif self._kept is not None:
            self.storage = f"{size} stay in memory once they are read; {budget}"
        else:
            self.storage = f"{size} are read anew each time; {budget} (--data-cache)"

    def read(self, rows: NDArray[np.int64]) -> tuple[Images, NDArray[np.int64], NDArray[np.int64]]:
        """(images, places, labels): record rows[i] is images[places[i]], or images(places[i]), and labels[i].

        The images are the array of all records, an array of these records, or a function that decodes them.
        """
        if self._kept is not None and self._ensure_kept(self._kept, rows):
            return self._kept.images, rows, self._kept.labels[rows]
        images, labels = self._decoded(rows)
        return images, np.arange(len(rows)), labels

    @property
    def bytes_needed(self) -> int:
        """Size of the array of all images, if all are like the first one."""
        return prod(self.first_size) * len(self.source)

    def read_all(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]] | None:
        """All images (K, C, H, W) and labels; None where they are not kept in one array."""
        rows, kept = np.arange(len(self.source)), self._kept
        if kept is None:
            return None
        parts = np.split(rows, rows[READ_AT_ONCE::READ_AT_ONCE])
        if not all(self._ensure_kept(kept, part) for part in parts):
            return None
        return kept.images, kept.labels

    def read_labels(self) -> NDArray[np.int64]:
        """The labels of all records."""
        named = ((self.source.record_name(key), value) for key, value in self.source.records())
        return np.fromiter((parse_datum(value, name).label for name, value in named), np.int64)

    def _ensure_kept(self, kept: KeptRecords, rows: NDArray[np.int64]) -> bool:
        """Make sure that the array holds these records; False if one has another size or dtype."""
        missing = rows[~kept.is_filled[rows]]
        if not len(missing):
            return True
        images, kept.labels[missing] = self._decoded(missing)
        if isinstance(images, np.ndarray):
            kept.images[missing] = images
        elif not all(self._map_indices(partial(self._store, kept, missing, images), len(missing))):
            self._kept = None
            logger.info("'%s' has images of several sizes, so they are read anew each time", self.source.path)
            return False
        kept.is_filled[missing] = True
        return True

    def _store(
        self, kept: KeptRecords, rows: NDArray[np.int64], make: Callable[[int], NDArray[Any]], i: int
    ) -> bool:
        """Decode one image into the array; False if it has another size or dtype."""
        image = make(i)
        if image.shape != self.first_size or image.dtype != np.uint8:
            return False
        place = kept.images[rows[i]]
        if is_interleaved(place):
            np.copyto(place, image)
        else:
            for plane, values in zip(place, planes(image), strict=True):
                np.copyto(plane, values)
        return True

    def _decoded(self, rows: NDArray[np.int64]) -> tuple[Images, NDArray[np.int64]]:
        """(images, labels) of these records."""
        values = self.source.values(rows)
        if self._raw is not None and (images_and_labels := self._raw.read(values)) is not None:
            return images_and_labels
        datums = [self._parsed(value, row) for value, row in zip(values, rows.tolist(), strict=True)]

        def make(i: int) -> NDArray[Any]:
            try:
                return array_from_datum(datums[i], "", *self._forced)
            except DataError:  # again, for an error that names the record
                return array_from_datum(datums[i], self.name(int(rows[i])), *self._forced)

        return make, np.array([datum.label for datum in datums], np.int64)

    def _parsed(self, value: bytes, row: int) -> Datum:
        try:
            return parse_datum(value, "")
        except DataError:  # again, for an error that names the record
            return parse_datum(value, self.name(row))

    def name(self, row: int) -> str:
        """What errors call a record."""
        return self.source.record_name(self.source.key(row))

    def names(self, rows: NDArray[np.int64]) -> Callable[[int], str]:
        """What errors call the i-th of these records."""
        return lambda i: self.name(int(rows[i]))


class RawFormat:
    """Reads raw records of the same format as a first one, without parsing their fields one by one.

    The records of most databases differ only in pixels and label. The bytes of a Datum are its fields in a
    row. So if a record begins with the same bytes as the first one, the pixels follow, and then the label.
    """

    MAX_LABELS = 10000  # label fields whose parsed value is cached
    SMALL = 1 << 16  # bytes of an image; smaller ones are merged into one array

    def __init__(self, first: Datum) -> None:
        self.shape = first.channels, first.height, first.width
        head = Datum(channels=first.channels, height=first.height, width=first.width, data=first.data)
        count = len(first.data)
        self.head = head.SerializeToString()[:-count]
        self.size = len(self.head) + count
        self._labels: dict[bytes, int] = {}

    def read(self, values: list[bytes]) -> tuple[Images, NDArray[np.int64]] | None:
        """(images, labels); None if one of the records has another format."""
        begin, size, labels = len(self.head), self.size, []
        for value in values:
            if len(value) < size or not value.startswith(self.head):
                return None
            rest = value[size:]
            label = self._labels.get(rest)
            if label is None:
                label = self._label(rest)
                if label is None:
                    return None
            labels.append(label)
        if size <= self.SMALL:
            pixels = b"".join([value[begin:size] for value in values])
            images = np.frombuffer(pixels, np.uint8).reshape(len(values), *self.shape)
            return images, np.array(labels, np.int64)
        return lambda i: np.ndarray(self.shape, np.uint8, values[i], begin), np.array(labels, np.int64)

    def _label(self, rest: bytes) -> int | None:
        """The label in the bytes after the pixels; None if they hold anything else."""
        try:
            datum = Datum.FromString(rest)
        except DecodeError:
            return None
        label = datum.label
        datum.ClearField("label")
        if not datum.encoded:
            datum.ClearField("encoded")
        if datum.ByteSize():
            return None
        if len(self._labels) < self.MAX_LABELS:
            self._labels[rest] = label
        return label
