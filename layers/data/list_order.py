"""A list of files, and the order in which a layer goes through its lines, as Caffe's ImageData does.

At its end the list begins again; with `shuffle` its current order, not that of the file, is shuffled first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from imae.files.caffe_log import log_line
from imae.files.errors import DataError, SnapshotError
from imae.files.file_kinds import mistaken_for
from imae.files.read import read_bytes
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.saved_state import check_index, check_permutation
from imae.layers.layer import Layer


class ListOrder:
    """Line numbers, batch by batch.

    source   the list, as errors name it
    lines    how many it has
    """

    def __init__(self, source: str, lines: int) -> None:
        self.source, self.lines = source, lines
        self.index = 0
        self._order = np.arange(lines)
        self._shuffler: CaffeRandom | None = None

    def shuffle(self, random: CaffeRandom) -> None:
        """Shuffle now and at each end of the list, by a stream of its own that `random` seeds."""
        self._shuffler = random.fork()
        self._order = self._shuffler.shuffle(self.lines)

    def skip(self, layer: Layer, rand_skip: int, place: str) -> None:
        """Begin up to `rand_skip` lines later and log it as `place`; LayerError if there are too few."""
        self.index = layer.random.modulo(rand_skip)
        log_line(place, f"Skipping first {self.index} data points.")
        if self.index >= self.lines:
            raise layer.error(f"Not enough points to skip: {self.index} of {self.lines}; lower rand_skip")

    @property
    def current(self) -> int:
        """The line that comes next."""
        return int(self._order[self.index])

    def next_lines(self, count: int) -> list[int]:
        """The next lines."""
        lines: list[int] = []
        for _ in range(count):
            lines.append(self.current)
            self.index += 1
            if self.index == self.lines:
                self.index = 0
                if self._shuffler is not None:
                    self._order = self._order[self._shuffler.shuffle(self.lines)]
        return lines

    def position(self, lines_key: str) -> dict[str, Any]:
        """What the next lines depend on, for a snapshot; `lines_key` names the number of lines there."""
        is_shuffled = self._shuffler is not None
        return {
            "index": self.index,
            lines_key: self.lines,
            "order": self._order if is_shuffled else np.zeros(0, np.int64),
            "shuffler": self._shuffler.get_state() if self._shuffler is not None else b"",
        }

    def seek(self, state: dict[str, Any], lines_key: str) -> None:
        """Go on where `position` was called; SnapshotError if the list had another number of lines."""
        if state[lines_key] != self.lines:
            raise SnapshotError(
                f"'{self.source}' lists {self.lines} images; it listed {state[lines_key]} when the snapshot "
                "was made; use the same list"
            )
        check_index("index", state["index"], self.lines)
        self.index = state["index"]
        if self._shuffler is not None:
            check_permutation("order", state["order"], self.lines)
            self._order = state["order"]
            self._shuffler.set_state(state["shuffler"])


def read_list_file(source: str, field: str, content: str) -> bytes:
    """The bytes of a list of files; DataError where it is missing, or another kind of file than `content`."""
    try:
        data = read_bytes(source)
    except OSError as error:
        raise DataError(f"image list '{source}': {error.strerror}; mend {field}") from None
    if mistaken := mistaken_for(data):
        raise DataError(f"image list '{source}': expected {content}{mistaken}")
    return data
