"""The order in which a Data layer reads its records: Caffe's order, and two that Caffe lacks.

    SEQUENTIAL      by key, round after round: Caffe's order, and the default without data_order_param
    SHUFFLED        each round in a new random order; a batch may hold the end of one and the start of another
    CLASS_BALANCED  a batch is classes_per_batch x images_per_class records, class by class. Classes are taken
                    from a shuffled list, which is shuffled anew when too few are left for a batch. Images are
                    drawn within the class; none comes twice in a batch unless the class has fewer than
                    images_per_class. The class is the label in the database, even if that is noisy. There
                    are no rounds.

Where several ranks train together, rank r of N takes positions r, r + N, ... of the first two orders, as in
Caffe's Data layer. SHUFFLED is one order for all ranks, seeded by rank 0's random number. In CLASS_BALANCED
every rank draws its own batches, balanced in the same way, from its own stream.

data_param.shuffle is a field of two forks. Intel's, in a message without `cache`, is SHUFFLED. NVIDIA's,
with `cache: true`, is by key in the first round and SHUFFLED from the second on, in phase TRAIN; with
`cache: false` or in TEST it does nothing.

CLASS_BALANCED with 32 x 8 is how the authors of IMAE trained on CIFAR-100. The order's random numbers come
from its own stream. As in ImageData, its seed is one word of the run's stream, between the two seeds of the
transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from imae.files.caffe_log import log_line
from imae.files.errors import LayerError, SnapshotError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.saved_state import State, check_index
from imae.layers.ranks import ALONE, Ranks
from imae.prototxt import TRAIN, LayerParameter

Rows = NDArray[np.int64]
FIELDS = ("classes_per_batch", "images_per_class")


class RecordOrder(Protocol):
    """The order of the records, and its state for a resume."""

    def next_rows(self, count: int) -> Rows:
        """The records of the next batch of `count`."""

    def get_state(self) -> State:
        """What `set_state` needs; its values never change later."""

    def set_state(self, state: State) -> None:
        """Continue where `get_state` was called."""


class Sequential:
    """One record after another; the first one follows the last one.

    index   the position of rank 0's next record
    """

    def __init__(self, records: int, ranks: Ranks = ALONE) -> None:
        self.records, self.ranks, self.index = records, ranks, 0

    def next_rows(self, count: int) -> Rows:
        rank, size = self.ranks.rank, self.ranks.size
        rows = (self.index + rank + size * np.arange(count)) % self.records
        rounds, self.index = divmod(self.index + size * count, self.records)
        for _ in range(rounds):
            _log_restart()
        return rows

    def get_state(self) -> State:
        return {"index": self.index}

    def set_state(self, state: State) -> None:
        check_index("index", state["index"], self.records)
        self.index = state["index"]


class Shuffled:
    """All records in a random order, then all records in another one.

    index   the position of this rank's next record
    """

    def __init__(self, records: int, random: CaffeRandom, ranks: Ranks = ALONE) -> None:
        self.records, self.random, self.ranks = records, random, ranks
        self.index = ranks.rank
        self._start_round()
        self._end_rounds()

    def _start_round(self) -> None:
        self.start = self.random.get_state()  # saved instead of the order itself, which may be long
        self.order = self.random.shuffle(self.records)

    def _end_rounds(self) -> None:
        while self.index >= self.records:
            _log_restart()
            self._start_round()
            self.index -= self.records

    def next_rows(self, count: int) -> Rows:
        parts: list[Rows] = []
        while count:
            parts.append(self.order[self.index :: self.ranks.size][:count])
            self.index += self.ranks.size * len(parts[-1])
            count -= len(parts[-1])
            self._end_rounds()
        return np.concatenate(parts)

    def get_state(self) -> State:
        return {"index": self.index, "round": self.start}

    def set_state(self, state: State) -> None:
        self.random.set_state(state["round"])
        self._start_round()
        check_index("index", state["index"], self.records)
        self.index = state["index"]


class ShuffledLater(Shuffled):
    """All records in their order, and after that as Shuffled. NVIDIA's cache shuffles what it has cached."""

    is_first = True

    def _start_round(self) -> None:
        super()._start_round()
        if self.is_first:
            self.order = np.arange(self.records)

    def _end_rounds(self) -> None:
        if self.index >= self.records:
            self.is_first = False
        super()._end_rounds()

    def get_state(self) -> State:
        return {**super().get_state(), "is_first": self.is_first}

    def set_state(self, state: State) -> None:
        self.is_first = state["is_first"]
        super().set_state(state)


class ClassBalanced:
    """`images` records of each of `classes` classes; members[c] are the records of class c."""

    def __init__(self, members: Sequence[Rows], classes: int, images: int, random: CaffeRandom) -> None:
        self.members, self.classes, self.images, self.random = members, classes, images, random
        self.waiting = np.zeros(0, np.int64)  # classes in the order in which they will be used

    def next_rows(self, count: int) -> Rows:
        if len(self.waiting) < self.classes:
            self.waiting = self.random.shuffle(len(self.members))
        chosen, self.waiting = np.split(self.waiting, [self.classes])
        members = [self.members[label] for label in chosen]
        return np.concatenate([rows[draw_rows(len(rows), self.images, self.random)] for rows in members])

    def get_state(self) -> State:
        return {"waiting": self.waiting, "draws": self.random.get_state()}

    def set_state(self, state: State) -> None:
        if not set(state["waiting"].tolist()) <= set(range(len(self.members))):
            raise SnapshotError(
                f"the database has {len(self.members)} classes, fewer than when the snapshot was made; "
                "use the same database"
            )
        self.waiting = state["waiting"]
        self.random.set_state(state["draws"])


def draw_rows(n: int, count: int, random: CaffeRandom) -> Rows:
    """`count` different numbers of 0 to n - 1 at random; if n < count, all, as equally often as possible."""
    if n < count:
        return random.shuffle(count) % n
    drawn, moved = np.zeros(count, np.int64), dict[int, int]()  # numbers that are not at their own index
    for i in range(count):
        j = i + random.uniform_int(n - 1 - i)
        drawn[i] = moved.get(j, j)
        moved[j] = moved.get(i, i)
    return drawn


def check_order(param: LayerParameter) -> None:
    """LayerError if data_order_param contradicts itself or the batch size."""
    order, data = param.data_order_param, param.data_param
    if data.shuffle and order.order != order.SEQUENTIAL:
        raise LayerError(param, "data_param.shuffle and data_order_param choose two orders; remove one")
    sizes = order.classes_per_batch, order.images_per_class
    if order.order != order.CLASS_BALANCED:
        for field in FIELDS:
            if order.HasField(field):
                raise LayerError(
                    param, f"{field} has no effect in this order; write order: CLASS_BALANCED, or remove it"
                )
    elif 0 in sizes:
        raise LayerError(
            param,
            f"order: CLASS_BALANCED needs {' and '.join(FIELDS)}, 1 or more; got {sizes[0]} and {sizes[1]}",
        )
    elif sizes[0] * sizes[1] != param.data_param.batch_size:
        raise LayerError(
            param,
            f"batch_size must be classes_per_batch * images_per_class = {sizes[0]} * {sizes[1]} = "
            f"{sizes[0] * sizes[1]}; got {param.data_param.batch_size}",
        )


def shuffles(param: LayerParameter) -> bool:
    """Whether data_param.shuffle does something; see above."""
    data = param.data_param
    of_nvidia = data.HasField("cache")
    return data.shuffle and (not of_nvidia or (data.cache and param.phase == TRAIN))


def make_order(
    param: LayerParameter,
    records: int,
    read_labels: Callable[[], Rows],
    random: CaffeRandom,
    ranks: Ranks = ALONE,
) -> RecordOrder:
    """The order of a layer that `check_order` has passed.

    records       number of records in the database
    read_labels   reads all their labels, which is slow
    random        the run's random numbers
    ranks         the processes among which the records are divided
    """
    order, data = param.data_order_param, param.data_param
    if shuffles(param):
        kind = ShuffledLater if data.cache else Shuffled
        return kind(records, CaffeRandom(ranks.broadcast_int(random.word())), ranks)
    if order.order == order.SHUFFLED:
        return Shuffled(records, CaffeRandom(ranks.broadcast_int(random.word())), ranks)
    if order.order == order.CLASS_BALANCED:
        members = members_of_classes(param, read_labels())
        return ClassBalanced(members, order.classes_per_batch, order.images_per_class, random.fork())
    return Sequential(records, ranks)


def members_of_classes(param: LayerParameter, labels: Rows) -> list[Rows]:
    """The records of class 0, 1, ...; LayerError unless all have some and there are enough for a batch."""
    source, needed = f"database '{param.data_param.source}'", param.data_order_param.classes_per_batch
    present = np.unique(labels)
    first_gap = next((i for i, label in enumerate(present.tolist()) if i != label), None)
    if first_gap is not None:
        raise LayerError(
            param,
            f"{source} has labels from {present[0]} to {present[-1]}, but no record of class {first_gap}; "
            "order: CLASS_BALANCED needs some of every class from 0 on",
        )
    if len(present) < needed:
        raise LayerError(
            param, f"{source} has {len(present)} classes, fewer than classes_per_batch {needed}; lower that"
        )
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])


def _log_restart() -> None:
    log_line("data_layer.cpp:73", "Restarting data prefetching from start.")
