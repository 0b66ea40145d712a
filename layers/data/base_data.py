"""What the data layers share: set-up in Caffe's order of random draws, and prefetched batches.

Caffe: base_data_layer.cpp.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray
from torch import Tensor

from imae.files.errors import ImaeError, LayerError
from imae.layers.data.data_resources import DataResources, Started
from imae.layers.data.pixels import plan_windows
from imae.layers.data.saved_state import State, check_state
from imae.layers.data.transformer import DataTransformer
from imae.layers.layer import DataLayer, Layer, Shape
from imae.layers.run import Run
from imae.prototxt import LayerParameter

Batch = tuple[Tensor, ...]


# More batches than this bring no gain, and a file may ask for four billion.
MAX_PREFETCH = 64


# Fields of transform_param that only DeepLab's and PSPNet's layer has (layers/forks/image_seg_data.py).
OF_LABEL_IMAGES = ("scale_factors", "crop_width", "crop_height")


class Buffers:
    """Arrays for batches. The memory of a batch that is no longer referenced is reused for a later one.

    Otherwise the system takes large blocks back and clears new pages, which takes as long as filling them.
    Each batch begins with a line of the cache, so that whole lines are written (pixels.h).
    """

    MAX_WAITING = 2  # blocks that wait to be used again
    LINE = 64  # bytes

    def __init__(self) -> None:
        self._waiting: list[NDArray[np.uint8]] = []

    def new(self, shape: Shape) -> NDArray[np.float32]:
        """An array with arbitrary content."""
        size = 4 * math.prod(shape)
        try:
            block = self._waiting.pop()
        except IndexError:
            block = np.empty(0, np.uint8)
        if len(block) != size + self.LINE:
            block = np.empty(size + self.LINE, np.uint8)
        begin = -block.ctypes.data % self.LINE
        # All users of the memory keep `whole` alive, not the block: numpy's chain of views ends at the
        # memoryview between them. So `whole` is finalized when the last user is gone.
        whole = np.frombuffer(memoryview(block.data)[begin : begin + size], np.float32)
        weakref.finalize(whole, self._take_back, self._waiting, block).atexit = False
        return whole.reshape(shape)

    @classmethod
    def _take_back(cls, waiting: list[NDArray[np.uint8]], block: NDArray[np.uint8]) -> None:
        if len(waiting) < cls.MAX_WAITING:
            waiting.append(block)


@dataclass(frozen=True)
class Made:
    """A batch, the layer's state after it, and the work of threads that its values still need."""

    batch: Batch
    state: State
    unfinished: Sequence[Started[None]] = ()


class AheadLayer(DataLayer):
    """A data layer whose batches a single thread makes, strictly in order, while the net computes.

    A type defines `load_batch`, `position` and `seek`; its `setup` ends with `begin`.

    prefetch   number of batches that may wait; 0: no thread, a batch is made when it is requested
    """

    prefetches = True
    prefetch = 0

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self._pending: deque[Future[Made]] = deque()
        self._executor: ThreadPoolExecutor | None = None
        self._state: State = {}
        self._is_lost = False  # since a seek has failed
        self._last_unfinished: Sequence[Started[None]] = ()

    def __getstate__(self) -> State:
        """A copy has made no batch ahead: threads cannot be copied. So this layer makes its own again."""
        if self._pending:
            self.set_state(self._state)
        return {**self.__dict__, "_executor": None}

    def begin(self) -> None:
        """Note the state before the first batch."""
        self._state = self._state_now()

    def load_batch(self) -> Batch:
        """Make the next batch; runs in the thread."""
        raise self.error(f"{self.type} defines no load_batch")

    def unfinished(self) -> Sequence[Started[None]]:
        """The work that the last `load_batch` has left to other threads; it is asked for once."""
        return ()

    def position(self) -> State:
        """What the next `load_batch` depends on; its values never change later."""
        raise self.error(f"{self.type} defines no position")

    def seek(self, state: State) -> None:
        """Continue where `position` was called."""
        raise self.error(f"{self.type} defines no seek")

    def next_batch(self) -> Batch:
        begun = perf_counter()
        try:
            return self._next_batch()
        finally:
            self.waited += perf_counter() - begun

    def _next_batch(self) -> Batch:
        if self._is_lost:
            self.set_state(self._state)
        if self.prefetch == 0 and not self._pending:
            try:
                made = self._produce()
            except ImaeError:
                self.set_state(self._state)  # the next call tries the same batch
                raise
        else:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, f"prefetch {self.name}")
            while len(self._pending) < self.prefetch + 1:
                self._pending.append(self._executor.submit(_produce_for, weakref.ref(self)))
            future = self._pending[0]  # until all of it is there: a wait may be interrupted
            if future.exception() is not None:
                self.set_state(self._state)
            made = future.result()
        if any(work.failed() for work in made.unfinished):
            self.set_state(self._state)
        for work in made.unfinished:
            work.results()
        if self._pending:
            self._pending.popleft()
        self._state = made.state
        return made.batch

    def get_state(self) -> State:
        """The state after the last batch that was returned, however many batches wait."""
        return dict(self._state)

    def set_state(self, state: State) -> None:
        check_state(self, state, self._state)
        self.stop()
        self._is_lost = True
        self._seek(state)
        self._is_lost = False
        self._state = self._state_now()

    def close(self) -> None:
        """Stop the thread. It also stops when the layer is no longer referenced."""
        self.stop()
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def _state_now(self) -> State:
        return self.position()

    def _seek(self, state: State) -> None:
        self.seek(state)

    def _produce(self) -> Made:
        """Make the next batch, while threads still work on the one before, but on none before that."""
        batch = self.load_batch()
        made = Made(batch, self._state_now(), self.unfinished())
        for work in self._last_unfinished:
            work.settle()
        self._last_unfinished = made.unfinished
        return made

    def stop(self) -> None:
        """Wait for the threads and discard the batches that wait; continue with `set_state`."""
        for future in self._pending:
            future.cancel()
        wait(self._pending)
        self._pending.clear()
        for work in (*self._last_unfinished, *self.unfinished()):
            work.abandon()
        self._last_unfinished = ()


def _produce_for(layer: weakref.ref[AheadLayer]) -> Made:
    """The thread's work; it must not keep the layer alive."""
    live_layer = layer()
    return live_layer._produce() if live_layer is not None else Made((), {})


class PrefetchingLayer(AheadLayer):
    """One whose batches Caffe makes in advance, too: of images, which the transformer transforms.

    A type defines `data_setup`, `load_batch`, `position` and `seek`.

    prefetch        Caffe's `data_param.prefetch`
    transformer     for the pixels; its stream is seeded here
    data_resources  memory for decoded records, and decoding threads, which the data layers of the run share
    shapes          of data and label, for `top_shapes`
    arrays          makes the arrays of the batches
    """

    swaps_colours: ClassVar[bool] = False  # whether the type reads transform_param.bgr2rgb
    transforms_images: ClassVar[bool] = True  # False: the fields of image_transform.py do nothing
    # Whether `load_batch` leaves large images to threads, in the memory order in which they are decoded; the
    # next batch is then begun before they are done, so that no thread waits for the last ones of a batch.
    large_images_go_on: ClassVar[bool] = False
    image_word: ClassVar[str] = "img"  # what Caffe's messages call an image
    reads: ClassVar[tuple[str, ...]] = ("transform_param", "data_param.prefetch")

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        # Intel's fork reads these in other layers, or in none.
        for field in ("flow", *(() if self.swaps_colours else ("bgr2rgb",))):
            if getattr(param.transform_param, field):
                self.note_leftover(f"transform_param.{field}")
        for name in OF_LABEL_IMAGES if "transform_param" in self.reads else ():
            if getattr(param.transform_param, name):
                raise self.error(f"transform_param.{name} is for ImageSegData alone; remove it")
        self.prefetch: int = min(param.data_param.prefetch, MAX_PREFETCH)
        self.shapes: list[Shape] = []
        self.arrays = Buffers()

    def use_run(self, run: Run) -> None:
        super().use_run(run)
        self.data_resources = run.data_resources or DataResources(ranks=run.ranks.size)
        self.plan_windows = run.plan_windows or plan_windows

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        name = f"layer '{self.name}' ({self.type})"
        self.transformer = DataTransformer(
            self.param.transform_param,
            self.phase,
            name,
            self.image_word,
            self.arrays.new,
            self.data_resources.map_indices,
            self.transforms_images,
        )
        self.transformer.plan_windows = self.plan_windows
        if self.large_images_go_on:
            self.transformer.start_indices = self.data_resources.start_indices
            self.transformer.channels_last = True
        self.transformer.seed(self.random)
        self.data_setup()
        self.transformer.seed(self.random)  # Caffe: a second seed, which is the one in use
        self.seed_thread()
        self.begin()

    def seed_thread(self) -> None:
        """Seed the stream of the thread that makes the batches, which only the forks' fields draw from."""
        self.transformer.seed_thread(self.random)

    def data_setup(self) -> None:
        """Read the first image, set `shapes`; make the random draws of the type's set-up."""
        raise self.error(f"{self.type} defines no data_setup")

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return self.shapes[: len(self.param.top)]

    def unfinished(self) -> Sequence[Started[None]]:
        works, self.transformer.unfinished = self.transformer.unfinished, []
        return works

    def _state_now(self) -> State:
        return {**super()._state_now(), "transformer": self.transformer.get_state()}

    def _seek(self, state: State) -> None:
        super()._seek(state)
        self.transformer.set_state(state["transformer"])


def note_moved_fields(layer: Layer, message: str, fields: Iterable[str]) -> None:
    """Note set fields of a message that Caffe has moved to transform_param and now reads only there."""
    old_place: Message = getattr(layer.param, message)
    for field in fields:
        if getattr(old_place, field) != old_place.DESCRIPTOR.fields_by_name[field].default_value:
            new = "force_color" if field == "force_encoded_color" else field
            layer.note_leftover(f"{message}.{field}", f"transform_param {{ {new}: ... }}")


def note_fields_of_annotations(layer: Layer) -> None:
    """Note the set fields of transform_param that the SSD fork reads in AnnotatedData alone, or nowhere."""
    transform = layer.param.transform_param
    for field in ("distort_param", "expand_param", "emit_constraint"):
        if transform.HasField(field):
            layer.note_leftover(f"transform_param.{field}")
    for field in ("height_scale", "width_scale"):
        if getattr(transform.resize_param, field):
            layer.note_leftover(f"transform_param.resize_param.{field}")
    note_unused_probabilities(layer)


def note_unused_probabilities(layer: Layer) -> None:
    """Note the set fields of transform_param that the SSD fork reads nowhere."""
    transform = layer.param.transform_param
    if transform.resize_param.prob != 1:
        layer.note_leftover("transform_param.resize_param.prob")
    if transform.noise_param.prob:
        layer.note_leftover("transform_param.noise_param.prob")


def checked_batch_size(param: LayerParameter, batch_size: int) -> int:
    """The batch size, which must be set."""
    if batch_size == 0:
        raise LayerError(param, "Positive batch size required; set batch_size")
    return batch_size


def output_data_size(shape: Shape) -> str:
    """Caffe's line about the first top."""
    return "output data size: " + ",".join(map(str, shape))
