"""AnnotatedData: images and the boxes of their objects, from an LMDB or a LevelDB of AnnotatedDatums.

top[0]  (batch_size, C, H, W): the images, as in Data
top[1]  (1, 1, G, 8), optional: a row for each object of the batch, with the number of its image in the batch,
        label, instance, xmin, ymin, xmax, ymax (shares of the image's sides) and difficult (0 or 1). Without
        any object there is one row of -1. Where the records have no annotation type, the label of each
        image: (batch_size, 1, 1, 1)

Each record is changed in this order; the boxes follow, and what is outside of the image is cut off:

    distort_param   changes of colour (distortion.py)
    expand_param    with probability prob the image is put at random on a canvas up to max_expand_ratio times
                    larger, of the colour of mean_value, or black
    batch_sampler   windows are drawn (batch_sampler.py); the image is cut to one of those that are kept
    resize_param, noise_param, crop, mirror
                    as in Data (image_transform.py)

emit_constraint says which boxes are kept where an image is expanded or cut: those whose centre is inside, or
of which more than emit_overlap is; without it, those of which any part is. After each of the first three
steps the fork stores the image as a JPEG file of OpenCV's own quality and decodes it, and so it is here.
A raw record is not distorted, its canvas has the value 32, and it is neither resized nor disturbed.

Records come in the order of Data, with data_order_param, too; ranks divide them as there. The random numbers
come from the stream of the thread that makes the batches; mirror and the last crop from the transformer's. At
set-up the fork draws one word more than Data, for the thread that reads the database; on rank 0 alone, whose
thread serves all.

label_map_file is for people: the fork reads it nowhere.

SSD (weiliu89/caffe): annotated_data_layer.cpp, data_transformer.cpp. Differs: what ends the fork's process is
an error; a record without a type among those that have one always is. Where two layers of a process have one
name and one source, the second one draws a word less in the fork, which then stops.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from imae.files.caffe_log import log_line
from imae.files.errors import DataError, SnapshotError
from imae.files.limits import blob_problem
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.base_data import Batch, PrefetchingLayer, note_unused_probabilities, output_data_size
from imae.layers.data.c_rand import GlibcRand
from imae.layers.data.data import open_source
from imae.layers.data.datum import array_from_datum, size_text
from imae.layers.data.image_transform import ImageTransform, Plan, of_image, through_jpeg
from imae.layers.data.record_order import make_order
from imae.layers.data.saved_state import State
from imae.layers.forks.annotations import Box, Group, boxes_of, clipped, groups_of, transformed
from imae.layers.forks.batch_sampler import sampled_windows, sampler_problem
from imae.layers.forks.distortion import Change, distorted, distortion_problem, draw_changes
from imae.layers.layer import Shape
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter
from imae.prototxt.caffe_pb2 import AnnotatedDatum, ResizeParameter

f32 = np.float32
# The fields that SSD's fork has, and exclude_last_crop, which is refused in other words.
KNOWN = {
    "transform_param": "scale mirror crop_size mean_file mean_value force_color force_gray exclude_last_crop "
    "crop_h crop_w resize_param noise_param distort_param expand_param emit_constraint",
    "data_param": "source batch_size rand_skip backend scale mean_file crop_size mirror force_encoded_color "
    "prefetch",
}
RAW_CANVAS = 32  # a blank: the fork fills the bytes of an expanded raw record with it


@dataclass(frozen=True)
class Canvas:
    """A larger image, (height, width), and where in it the first pixel of the old one lies."""

    height: int
    width: int
    top: int
    left: int


@dataclass(frozen=True)
class Window:
    """The part of an image that is cut out."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Steps:
    """What is done to a record; None: that step is left out."""

    changes: list[Change] | None
    canvas: Canvas | None
    window: Window | None
    plan: Plan


class Record:
    """A parsed record.

    datum    its message
    image    (C, H, W)
    is_raw   whether it is stored without an encoding
    """

    def __init__(self, value: bytes, force_color: bool, force_gray: bool) -> None:
        try:
            self.datum = AnnotatedDatum.FromString(value)
        except DecodeError:
            raise DataError(
                f"{len(value)} bytes that are not an AnnotatedDatum; the record is damaged"
            ) from None
        if not self.datum.HasField("datum"):
            raise DataError("an AnnotatedDatum without an image; Datums are for a layer of type Data")
        self.image = array_from_datum(self.datum.datum, "its image", force_color, force_gray)
        self.is_raw = not self.datum.datum.encoded


@register_layer("AnnotatedData")
class AnnotatedData(PrefetchingLayer):
    min_tops, max_tops = 1, 2
    reads = ("data_param", "data_order_param", "transform_param")

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        transform, annotated = param.transform_param, param.annotated_data_param
        note_unused_probabilities(self)
        for name, known in KNOWN.items():
            for field, _ in getattr(param, name).ListFields():
                if field.name not in known.split():
                    raise self.error(f"{name}.{field.name} is of another fork than SSD's; remove it")
        self.samplers = list(annotated.batch_sampler)
        for index, sampler in enumerate(self.samplers):
            if problem := sampler_problem(sampler):
                raise self.error(f"batch_sampler {index} needs {problem}")
        if problem := distortion_problem(transform.distort_param):
            raise self.error(f"distort_param: {problem}")
        self.expand = transform.expand_param if transform.HasField("expand_param") else None
        if self.expand is not None and not 1 < self.expand.max_expand_ratio < math.inf:
            raise self.error(f"expand_param needs max_expand_ratio > 1; got {self.expand.max_expand_ratio:g}")
        if self.expand is not None and transform.HasField("mean_file"):
            raise self.error(
                "expand_param makes images of all sizes, and mean_file has one; write mean_value instead"
            )
        self.resize = transform.resize_param if transform.HasField("resize_param") else None
        self.constraint = transform.emit_constraint if transform.HasField("emit_constraint") else None
        self.batch_size, self.source = open_source(self)
        changes_shape = self.resize is not None and self.resize.resize_mode == ResizeParameter.FIT_SMALL_SIZE
        if changes_shape and self.batch_size != 1:
            raise self.error(f"Only support batch size of 1 for FIT_SMALL_SIZE.; got {self.batch_size}")

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        if self.ranks.rank == 0:
            self.random.word()  # the fork: the seed of the thread that reads the database
        super().setup(bottom_shapes)

    def data_setup(self) -> None:
        param, transform = self.param.annotated_data_param, self.param.transform_param
        means = self.transformer.mean, self.transformer.mean_values
        owner = f"layer '{self.name}' ({self.type})"
        self.images = ImageTransform(transform, self.phase, owner, *means)
        self.transformer.draws_from_thread = True
        self.rand = GlibcRand(1)
        self.reported_raw = False
        first = self._record(0)
        with of_image(partial(self._name, 0)):
            size = self.images.output_size(first.image.shape, first.is_raw)
        self.shapes = [(self.batch_size, *size)]
        log_line("annotated_data_layer.cpp:63", output_data_size(self.shapes[0]))
        self.has_type = first.datum.HasField("type") or param.HasField("anno_type")
        if not self.has_type:
            self.shapes.append((self.batch_size, 1, 1, 1))
        elif len(self.param.top) > 1:
            if param.HasField("anno_type"):
                log_line(
                    "annotated_data_layer.cpp:75",
                    "type stored in AnnotatedDatum is shadowed.",
                    logging.WARNING,
                )
            objects = sum(len(group.annotation) for group in first.datum.annotation_group)
            self.shapes.append((1, 1, max(objects, 1), 8))
        self.order = make_order(self.param, len(self.source), self._labels, self.random, self.ranks)

    def load_batch(self) -> Batch:
        rows = self.order.next_rows(self.batch_size).tolist()
        values = self.source.values(np.array(rows))

        def read(i: int) -> Record:
            with of_image(partial(self._name, rows[i])):
                return self._parsed(values[i])

        records = self.data_resources.map_indices(read, len(rows))
        steps, groups = list[Steps](), list[list[Group]]()
        with np.errstate(all="ignore"):
            for row, record in zip(rows, records, strict=True):
                with of_image(partial(self._name, row)):
                    done = self._draw(record)
                steps.append(done[0])
                groups.append(done[1])
        with of_image(partial(self._name, rows[0])):
            top = self.images.output_size(records[0].image.shape, records[0].is_raw)
        if self._fits_small:
            (plan,) = (step.plan for step in steps)
            top = (top[0], *plan.window)
        data = self.arrays.new((len(rows), *top))

        def apply(i: int) -> None:
            with of_image(partial(self._name, rows[i])):
                self._make(records[i], steps[i], data[i])

        self.data_resources.map_indices(apply, len(rows))
        batch = torch.from_numpy(data), torch.from_numpy(self._label(records, groups))
        return batch[: len(self.param.top)]

    def position(self) -> State:
        return {
            **self.order.get_state(),
            "records": len(self.source),
            "rand": np.array(self.rand.words, np.uint32),
        }

    def seek(self, state: State) -> None:
        if state["records"] != len(self.source):
            raise SnapshotError(
                f"database '{self.source.path}' has {len(self.source)} records; it had {state['records']} "
                "when the snapshot was made; use the same database"
            )
        if len(state["rand"]) != len(self.rand.words):
            raise SnapshotError(f"rand has {len(self.rand.words)} words, the snapshot {len(state['rand'])}")
        self.order.set_state(state)
        self.rand.words.extend(state["rand"].tolist())

    def close(self) -> None:
        super().close()
        self.source.close()

    @property
    def _fits_small(self) -> bool:
        return self.resize is not None and self.resize.resize_mode == ResizeParameter.FIT_SMALL_SIZE

    # -- records ----------------------------------------------------------------------------------------

    def _name(self, row: int) -> str:
        """What errors call a record."""
        return self.source.record_name(self.source.key(row))

    def _parsed(self, value: bytes) -> Record:
        transform = self.param.transform_param
        return Record(value, transform.force_color, transform.force_gray)

    def _record(self, row: int) -> Record:
        with of_image(partial(self._name, row)):
            return self._parsed(self.source.value(row))

    def _labels(self) -> NDArray[np.int64]:
        """The labels of all records' images, for data_order_param."""
        labels = []
        for key, value in self.source.records():
            with of_image(partial(self.source.record_name, key)):
                try:
                    labels.append(AnnotatedDatum.FromString(value).datum.label)
                except DecodeError:
                    raise DataError("not an AnnotatedDatum; the record is damaged") from None
        return np.array(labels, np.int64)

    # -- drawing: in the order of the records -----------------------------------------------------------

    def _draw(self, record: Record) -> tuple[Steps, list[Group]]:
        """What is done to the next record, and its annotations after that."""
        thread, transform = self._thread_stream, self.param.transform_param
        channels, height, width = record.image.shape
        groups = groups_of(record.datum)
        # The sizes that the boxes are resized with: the record's own, until the image is stored anew.
        stored = record.datum.datum.height, record.datum.datum.width
        changes = canvas = window = None
        if transform.HasField("distort_param"):
            if record.is_raw:
                self._report_raw()
            else:
                changes = draw_changes(transform.distort_param, thread, self.rand)
                stored = height, width
        if self.expand is not None and (drawn := self._draw_canvas(height, width, thread)):
            canvas, place = drawn
            height, width = stored = canvas.height, canvas.width
            if problem := blob_problem((1, channels, height, width)):
                raise DataError(f"expanded: {problem}")
            groups = transformed(groups, place, self.constraint)
        if self.samplers and (windows := sampled_windows(self.samplers, boxes_of(groups), thread)):
            chosen = clipped(windows[thread.modulo(len(windows))])
            window = _window(chosen, height, width)
            height, width = stored = window.height, window.width
            groups = transformed(groups, chosen, self.constraint)
        plan = self.images.plan((channels, height, width), self.transformer.random, thread, record.is_raw)
        if len(self.param.top) > 1 and self.has_type:
            if not record.datum.HasField("type"):
                raise DataError("Some datum misses AnnotationType.")
            groups = transformed(
                groups, _seen(plan), self.constraint, resize=self.resize, size=stored, flip=plan.flip
            )
        return Steps(changes, canvas, window, plan), groups

    @property
    def _thread_stream(self) -> CaffeRandom:
        assert self.transformer.thread is not None, "seed_thread() comes first"
        return self.transformer.thread

    def _draw_canvas(self, height: int, width: int, thread: CaffeRandom) -> tuple[Canvas, Box] | None:
        """A canvas for an image, and its place as a box of the image; None: it is not expanded."""
        assert self.expand is not None
        most = f32(self.expand.max_expand_ratio)
        if thread.uniform_value(0, 1) > f32(self.expand.prob) or abs(float(most) - 1) < 1e-2:
            return None
        ratio = thread.uniform_value(1, float(most))
        tall, wide = int(f32(height) * ratio), int(f32(width) * ratio)
        top = np.floor(thread.uniform_value(0, tall - height))
        left = np.floor(thread.uniform_value(0, wide - width))
        place = Box(
            -left / f32(width),
            -top / f32(height),
            (f32(wide) - left) / f32(width),
            (f32(tall) - top) / f32(height),
        )
        return Canvas(tall, wide, int(top), int(left)), place

    def _report_raw(self) -> None:
        if not self.reported_raw:
            log_line("data_transformer.cpp:565", "Only support encoded datum now", logging.ERROR)
            self.reported_raw = True

    # -- pixels: in any order ---------------------------------------------------------------------------

    def _make(self, record: Record, steps: Steps, top: NDArray[np.float32]) -> None:
        """Write the image of a record into its place in the batch."""
        transform = self.param.transform_param
        forced = cv2.IMREAD_COLOR if transform.force_color else cv2.IMREAD_GRAYSCALE
        flag = forced if transform.force_color or transform.force_gray else cv2.IMREAD_UNCHANGED
        image = record.image

        def stored(pixels: NDArray[Any]) -> NDArray[Any]:
            """(C, H, W) of pixels (H, W, C) that the fork stores as a record again."""
            if not record.is_raw:
                pixels = through_jpeg(np.ascontiguousarray(pixels), flag)
            return pixels.transpose(2, 0, 1)

        if (steps.canvas or steps.window) and image.dtype != np.uint8:
            raise DataError(
                "expand_param and batch_sampler are for images of bytes; this one has real numbers"
            )
        if steps.changes is not None:
            image = stored(distorted(np.ascontiguousarray(image.transpose(1, 2, 0)), steps.changes))
        if steps.canvas is not None:
            image = stored(self._expanded(image.transpose(1, 2, 0), steps.canvas, record.is_raw))
        if steps.window is not None:
            w = steps.window
            cut = image[:, w.top : w.top + w.height, w.left : w.left + w.width]
            image = stored(cut.transpose(1, 2, 0))
        self.images.apply(image, steps.plan, top)

    def _expanded(self, pixels: NDArray[np.uint8], canvas: Canvas, is_raw: bool) -> NDArray[np.uint8]:
        height, width, channels = pixels.shape
        colour = np.full(channels, RAW_CANVAS) if is_raw else np.zeros(channels)
        means = self.transformer.mean_values
        if len(means) and not is_raw:
            colour = np.rint(np.broadcast_to(means, channels)).clip(0, 255)
        large = np.empty((canvas.height, canvas.width, channels), np.uint8)
        large[:] = colour.astype(np.uint8)
        large[canvas.top : canvas.top + height, canvas.left : canvas.left + width] = pixels
        return large

    def _label(self, records: Sequence[Record], groups: Sequence[Sequence[Group]]) -> NDArray[np.float32]:
        """top[1]"""
        if not self.has_type:
            labels = [record.datum.datum.label for record in records]
            return np.array(labels, f32).reshape(-1, 1, 1, 1)
        rows: list[tuple[float, ...]] = [
            (item, group.label, instance, *map(float, box[:4]), box.difficult)
            for item, of_item in enumerate(groups)
            for group in of_item
            for instance, box in group.annotations
        ]
        return np.array(rows or [(-1,) * 8], f32).reshape(1, 1, -1, 8)


def _window(box: Box, height: int, width: int) -> Window:
    """The pixels of a clipped box of an image; DataError where it has none."""
    sides = (f32(width), f32(height), f32(width), f32(height))
    left, top, right, bottom = (side * whole for side, whole in zip(box[:4], sides, strict=True))
    window = Window(int(top), int(left), int(bottom - top), int(right - left))
    if not (window.height and window.width):
        raise DataError(
            f"a window of batch_sampler leaves nothing of an image of {size_text((height, width))}"
        )
    return window


def _seen(plan: Plan) -> Box:
    """The window of a plan as a box of the resized image."""
    height, width = (f32(side) for side in plan.size)
    return Box(
        f32(plan.left) / width,
        f32(plan.top) / height,
        f32(plan.left + plan.window[1]) / width,
        f32(plan.top + plan.window[0]) / height,
    )
