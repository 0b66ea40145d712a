"""Values of the run's random stream, drawn before their turn, while the net computes.

The stream is shared: between two passes of one layer others draw from it, such as Dropout, and most often as
many words each time. So where the stream will be can be foreseen. A thread draws from a copy that is put
there. When the layer's turn comes, the stream's state is compared with the one that was foreseen, all of it.
If they are equal, the values are those that would be drawn now, and the stream goes on after them. If not
(after a test, a resume, a batch of another size) they are discarded, and the stream is drawn from as if there
were no thread. So Caffe's order holds, and a snapshot holds no more than the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imae.layers.caffe_random import BLOCK, CaffeRandom
from imae.layers.filler import fill
from imae.layers.layer import Shape
from imae.prototxt import FillerParameter

Values = list[NDArray[np.float32]]


class Foreseen(NamedTuple):
    """Values for a stream in the state `start`, how many words they use up, and the state after them."""

    start: bytes
    values: Values
    words: int
    end: bytes


class DrawnAhead:
    """Arrays of these shapes, filled by these fillers, one after the other.

    used   how often values that were drawn ahead have been used
    """

    WORTHWHILE = 1 << 16  # values; fewer are drawn sooner than a thread is told to

    def __init__(self, shapes: Sequence[Shape], fillers: Sequence[FillerParameter]) -> None:
        self.shapes, self.fillers = shapes, fillers
        self.used = 0
        self._executor: ThreadPoolExecutor | None = None
        self._next: Future[Foreseen] | None = None
        self._foreseen = -1  # `drawn` of the stream when the next values will be drawn
        self._left = -1  # and after the last ones; -1: there were none
        self._between = -1  # words that others draw between two calls, as far as known
        self._candidate = -1  # what they drew last time, if that was another number

    def __reduce__(self) -> tuple[type[DrawnAhead], tuple[Sequence[Shape], Sequence[FillerParameter]]]:
        """A copy has drawn nothing ahead: threads cannot be copied."""
        return DrawnAhead, (self.shapes, self.fillers)

    def draw(self, random: CaffeRandom) -> Values:
        """The next values of the stream."""
        if sum(map(prod, self.shapes)) < self.WORTHWHILE:
            return self._drawn(random)
        self._learn(random.drawn)
        values = self._foreseen_values(random)
        if values is None:
            values = self._drawn(random)
        self._left = random.drawn
        if self._between >= 0:
            self._draw_ahead(random)
        return values

    def _drawn(self, random: CaffeRandom) -> Values:
        return [fill(shape, filler, random) for shape, filler in zip(self.shapes, self.fillers, strict=True)]

    def _learn(self, drawn: int) -> None:
        """Note how many words others have drawn; another number than before counts the second time."""
        if self._left < 0:
            return
        between = drawn - self._left
        if self._between < 0 or between == self._candidate:
            self._between = between
        self._candidate = between

    def _foreseen_values(self, random: CaffeRandom) -> Values | None:
        """The values that were drawn ahead, if the stream is where it was foreseen; it is moved on."""
        future, self._next = self._next, None
        if future is None:
            return None
        if random.drawn != self._foreseen:
            future.cancel()
            return None
        foreseen = future.result()
        if foreseen.start != random.get_state():
            return None
        random.set_state(foreseen.end)
        random.drawn += foreseen.words
        self.used += 1
        return foreseen.values

    def _draw_ahead(self, random: CaffeRandom) -> None:
        """Let the thread draw what the next call will want if others draw as much as before."""
        copy = CaffeRandom(0)
        copy.set_state(random.get_state())
        self._foreseen = random.drawn + self._between
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "draw ahead")
        self._next = self._executor.submit(_foresee, copy, self._between, self.shapes, self.fillers)


def _foresee(
    random: CaffeRandom, words: int, shapes: Sequence[Shape], fillers: Sequence[FillerParameter]
) -> Foreseen:
    """The thread's work; it does not keep the layer alive."""
    while words:
        part = min(words, BLOCK)
        random.words(part)
        words -= part
    start, drawn = random.get_state(), random.drawn
    values = DrawnAhead(shapes, fillers)._drawn(random)
    return Foreseen(start, values, random.drawn - drawn, random.get_state())
