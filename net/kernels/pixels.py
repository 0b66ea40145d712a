"""The pixels of images as numbers of a batch, by a kernel in C (pixels.h) where it supports them."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from imae.net.kernels import native

if TYPE_CHECKING:
    from imae.layers.data.pixels import WriteWindow


def plan_windows(size: tuple[int, int, int], mean: NDArray[np.float32], scale: np.float32) -> WriteWindow:
    """As `imae.layers.data.pixels.plan_windows`, bit for bit."""
    from imae.layers.data.pixels import plan_windows as plan_by_numpy  # OpenCV: a net without images has none

    kernel, by_numpy = native.pixels_kernel(), plan_by_numpy(size, mean, scale)
    if kernel is None or min(size) < 1:
        return by_numpy
    mean = np.ascontiguousarray(mean)
    channels, factor, mean_address = size[2], float(scale), mean.ctypes.data
    mean_stride = 0 if mean.ndim == 1 else mean.shape[1] * channels
    in_order = [channels, 1][: min(2, channels)]

    def write(
        pixels: NDArray[Any], flip: bool, rows: slice, columns: slice, values: NDArray[np.float32]
    ) -> None:
        row_stride, *strides = pixels.strides
        if (
            pixels.dtype != np.uint8
            or not size == pixels.shape == values.shape
            or strides[: min(2, channels)] != in_order
            or not values.flags.carray
        ):
            by_numpy(pixels, flip, rows, columns, values)
            return
        address = mean_address
        if mean_stride:
            part = mean[rows, columns]
            if part.shape != size:
                raise ValueError(f"a mean image of {part.shape} for windows of {size}")
            address = part.ctypes.data
        sizes = (ctypes.c_int64 * 6)(*size, row_stride, mean_stride, flip)
        if kernel(pixels.ctypes.data, ctypes.addressof(sizes), address, factor, values.ctypes.data):
            raise MemoryError

    return write
