"""Batches of bytes (N, H, W, C), for models that prepare images themselves (embed.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imae.files.errors import DataError
from imae.layers.data.transformer import DataTransformer, Size

Array = NDArray[Any]


class ByteTransformer:
    """Has DataTransformer's methods; a batch holds the bytes of the images, (N, H, W, C).

    transformer   does what is left to do: nothing, or a resizing
    reverses      whether the order of the channels is reversed
    """

    def __init__(self, transformer: DataTransformer, reverses: bool) -> None:
        self.transformer, self.reverses = transformer, reverses

    def output_size(self, size: Size, name: str) -> Size:
        """(C, h, w) of a record of `size` (C, H, W)."""
        return self.transformer.output_size(size, name)

    def transform_rows(self, images: Array, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """images[rows] of an array (K, C, H, W)."""
        return self._bytes(self.transformer.transform_rows(images, rows))

    def transform_list(self, images: Sequence[Array], name_of: Callable[[int], str]) -> NDArray[np.uint8]:
        """Images (C, H, W) of one size; `name_of(i)` is the name of images[i] in errors."""
        return self._bytes(self.transformer.transform_list(images, name_of))

    def transform_made(
        self, make: Callable[[int], Array], count: int, name_of: Callable[[int], str]
    ) -> NDArray[np.uint8]:
        """The same for the images make(0), .., make(count - 1)."""
        return self._bytes(self.transformer.transform_made(make, count, name_of))

    def _bytes(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        if not ((values >= 0) & (values <= 255) & (values == np.floor(values))).all():
            raise DataError(
                f"{self.transformer.name}: the model takes bytes, whole numbers from 0 to 255, and there are "
                "other values; export it without --embed-preprocess"
            )
        images = values.astype(np.uint8).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images[..., ::-1] if self.reverses else images)


def runs_of_one_size(images: Sequence[Array]) -> Iterator[range]:
    """The places of images that follow each other and have one size: a batch has one."""
    begin = 0
    for _, run in groupby(images, lambda image: image.shape):
        end = begin + len(list(run))
        yield range(begin, end)
        begin = end
