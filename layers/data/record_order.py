"""Which records the batches of a Data layer have: Caffe's order, and two that Caffe lacks.

    SEQUENTIAL      by key, round and round. Caffe's, and what a net without data_order_param gets
    SHUFFLED        each round in a new random order; a batch may hold the end of one and the start of another
    CLASS_BALANCED  classes_per_batch x images_per_class records, class by class. Classes come from a shuffled
                    list, which is shuffled anew when it has too few left for a batch; images are drawn within
                    the class, none twice in a batch unless the class has fewer than asked for. The class is
                    the label in the database, be it noisy. A round has no meaning here.

Where several ranks train together, rank r of N takes places r, r + N, ... of the first two, as Caffe's Data
does: SHUFFLED is one order for all of them, which rank 0's random number starts. In CLASS_BALANCED each draws
batches of its own, balanced as they are, from its own stream.

CLASS_BALANCED with 32 x 8 is how the authors of IMAE trained on CIFAR-100. The random numbers come from a
stream of its own, started with one word of the run's between the two of the transformer, as ImageData's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from imae.files.caffe_log import log_line
from imae.files.errors import LayerError, SnapshotError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.base_data import State, check_place
from imae.layers.ranks import ALONE, Ranks
from imae.prototxt import LayerParameter

Rows = NDArray[np.int64]
FIELDS = ("classes_per_batch", "images_per_class")


class RecordOrder(Protocol):
    """What comes next, and how to go on from here later."""

    def next_rows(self, count: int) -> Rows:
        """The records of the next batch of `count`."""

    def get_state(self) -> State:
        """What `set_state` needs; nothing in it is changed later."""

    def set_state(self, state: State) -> None:
        """Go on where `get_state` was called."""


class Sequential:
    """Record after record; after the last one comes the first.

    index   the place of rank 0's next record
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
        check_place("index", state["index"], self.records)
        self.index = state["index"]


class Shuffled:
    """All records in a random order, then all of them in another one.

    index   the place of this rank's next record
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
        check_place("index", state["index"], self.records)
        self.index = state["index"]


class ClassBalanced:
    """`images` records of each of `classes` classes; members[c] are the records of class c."""

    def __init__(self, members: Sequence[Rows], classes: int, images: int, random: CaffeRandom) -> None:
        self.members, self.classes, self.images, self.random = members, classes, images, random
        self.waiting = np.zeros(0, np.int64)  # classes in the order in which they are going to be taken

    def next_rows(self, count: int) -> Rows:
        if len(self.waiting) < self.classes:
            self.waiting = self.random.shuffle(len(self.members))
        chosen, self.waiting = np.split(self.waiting, [self.classes])
        members = [self.members[label] for label in chosen]
        return np.concatenate([rows[draw(len(rows), self.images, self.random)] for rows in members])

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


def draw(n: int, count: int, random: CaffeRandom) -> Rows:
    """`count` of the numbers 0 to n - 1 at random; if n < count, all of them, as equally often as can be."""
    if n < count:
        return random.shuffle(count) % n
    drawn, moved = np.zeros(count, np.int64), dict[int, int]()  # the numbers that are not in their own place
    for i in range(count):
        j = i + random.uniform_int(n - 1 - i)
        drawn[i] = moved.get(j, j)
        moved[j] = moved.get(i, i)
    return drawn


def check_order(param: LayerParameter) -> None:
    """LayerError where data_order_param contradicts itself or the batch size."""
    order = param.data_order_param
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


def make_order(
    param: LayerParameter,
    records: int,
    read_labels: Callable[[], Rows],
    random: CaffeRandom,
    ranks: Ranks = ALONE,
) -> RecordOrder:
    """The order of a layer that `check_order` has passed.

    records       in the database
    read_labels   reads all their labels, which takes a while
    random        the run's random numbers
    ranks         the processes that share the records out
    """
    order = param.data_order_param
    if order.order == order.SHUFFLED:
        return Shuffled(records, CaffeRandom(ranks.broadcast_int(random.word())), ranks)
    if order.order == order.CLASS_BALANCED:
        members = members_of_classes(param, read_labels())
        return ClassBalanced(members, order.classes_per_batch, order.images_per_class, random.fork())
    return Sequential(records, ranks)


def members_of_classes(param: LayerParameter, labels: Rows) -> list[Rows]:
    """The records of class 0, 1, ...; LayerError unless all have some and there are enough for a batch."""
    source, asked = f"database '{param.data_param.source}'", param.data_order_param.classes_per_batch
    found = np.unique(labels)
    first_gap = next((label for label, there in enumerate(found.tolist()) if label != there), None)
    if first_gap is not None:
        raise LayerError(
            param,
            f"{source} has labels from {found[0]} to {found[-1]}, but no record of class {first_gap}; "
            "order: CLASS_BALANCED needs some of every class from 0 on",
        )
    if len(found) < asked:
        raise LayerError(
            param, f"{source} has {len(found)} classes, fewer than classes_per_batch {asked}; lower that"
        )
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])


def _log_restart() -> None:
    log_line("data_layer.cpp:73", "Restarting data prefetching from start.")
