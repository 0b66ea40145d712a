"""What DenseImageData and ImageSegData share: a list of images with their labels, its order, its files."""

from __future__ import annotations

from typing import Any, ClassVar

import cv2
import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from imae.files.caffe_log import log_line
from imae.files.errors import DataError
from imae.files.limits import blob_problem
from imae.layers.data.base_data import PrefetchingLayer, checked_batch_size
from imae.layers.data.datum import read_image
from imae.layers.data.list_order import ListOrder, read_list_file
from imae.layers.data.saved_state import State
from imae.prototxt import LayerParameter

Picture = NDArray[np.uint8]


class ImagePairs(PrefetchingLayer):
    """A type gives the name of its message, reads its list, and makes a batch of its next lines.

    message_name   the field of LayerParameter with source, batch_size, rand_skip, shuffle, new_height,
                   new_width, is_color, root_folder
    log_places     file, and the lines in it that log: opening, shuffling, the count, skipping
    entries        of the list, in the order of the file
    """

    message_name: ClassVar[str]
    log_places: ClassVar[tuple[str, int, int, int, int]]
    word: ClassVar[str] = "images"  # what the log calls the entries
    entries: list[tuple[str, str]]

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.message: Any = getattr(param, self.message_name)
        self.check_both("new_height", "new_width", self.message)
        self.batch_size = checked_batch_size(param, self.message.batch_size)

    def check_both(self, height_name: str, width_name: str, message: Message) -> None:
        """LayerError unless both are set or none."""
        height, width = getattr(message, height_name), getattr(message, width_name)
        if (height > 0) != (width > 0):
            raise self.error(
                f"Current implementation requires {height_name} and {width_name} to be set at the same "
                f"time.; got {height} and {width}"
            )
        if height and (problem := blob_problem((3, height, width))):
            raise self.error(f"{height_name}, {width_name}: {problem}")

    def read_entries(self, source: str, root_folder: str) -> list[tuple[str, str]]:
        """The entries of the list."""
        raise self.error(f"{self.type} defines no read_entries")

    def set_up_order(self) -> None:
        """Read the list; shuffle it and skip entries, if that is asked for."""
        file, opening, shuffling, count, skipping = self.log_places
        log_line(f"{file}:{opening}", f"Opening file {self.message.source}")
        self.entries = self.read_entries(self.message.source, self.message.root_folder)
        self.order = ListOrder(self.message.source, len(self.entries))
        if self.message.shuffle:
            log_line(f"{file}:{shuffling}", "Shuffling data")
            self.order.shuffle(self.random)
        log_line(f"{file}:{count}", f"A total of {len(self.entries)} {self.word}.")
        if self.message.rand_skip:
            self.order.skip(self, self.message.rand_skip, f"{file}:{skipping}")

    def read_image(self, line: int) -> Picture:
        """The entry's image, (H, W, C), resized."""
        flag = cv2.IMREAD_COLOR if self.message.is_color else cv2.IMREAD_GRAYSCALE
        size = (self.message.new_height, self.message.new_width)
        return read_image(self.entries[line][0], flag, size, cv2.INTER_LINEAR)

    def position(self) -> State:
        return self.order.position("entries")

    def seek(self, state: State) -> None:
        self.order.seek(state, "entries")


def read_text(source: str, field: str, content: str) -> bytes:
    """The bytes of a list of files; DataError where it is missing, empty, or not `content`."""
    data = read_list_file(source, field, content)
    if not data.strip():
        raise DataError(f"image list '{source}': File is empty")
    return data
