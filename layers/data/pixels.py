"""How windows of images become numbers of a batch:  value = (pixel - mean) * scale, in single precision."""

from __future__ import annotations

from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray


class WriteWindow(Protocol):
    """Puts the numbers of a window into their place in a batch; may run in any thread."""

    def __call__(
        self, pixels: NDArray[Any], flip: bool, rows: slice, columns: slice, values: NDArray[np.float32]
    ) -> None:
        """values = (pixels - mean) * scale, both (h, w, C).

        flip            whether left and right are swapped, of pixels and mean
        rows, columns   where the window lies in the mean image
        """


class PlanWindows(Protocol):
    """Makes a function for the windows of a batch. All ways give the same bits."""

    def __call__(
        self, size: tuple[int, int, int], mean: NDArray[np.float32], scale: np.float32
    ) -> WriteWindow:
        """For windows of `size` (h, w, C); mean: (C), or of the uncropped images (H, W, C)."""


def plan_windows(size: tuple[int, int, int], mean: NDArray[np.float32], scale: np.float32) -> WriteWindow:
    """`PlanWindows` by OpenCV and numpy."""

    def write(
        pixels: NDArray[Any], flip: bool, rows: slice, columns: slice, values: NDArray[np.float32]
    ) -> None:
        if flip:
            pixels = mirror_columns(pixels)
        # A mean may hold anything. Set here, as threads do not inherit it.
        with np.errstate(over="ignore", invalid="ignore"):
            if mean.ndim == 1 and pixels.dtype == np.uint8 and 1 < len(mean) <= 4:
                # In one pass: OpenCV converts each byte to single precision, and subtracts in that.
                scalar: Any = (*mean.tolist(), 0, 0)[:4]  # Any: the stubs know of arrays alone
                cv2.subtract(pixels, scalar, values, None, cv2.CV_32F)
            else:
                np.copyto(values, pixels, "unsafe")
                if mean.ndim > 1:
                    part = mean[rows, columns]
                    values -= part[:, ::-1] if flip else part
                elif mean.any():
                    values -= mean
            if scale != 1:
                values *= scale

    return write


def mirror_columns(plane: NDArray[Any]) -> NDArray[Any]:
    """An image or a plane, (h, w) or (h, w, C), with left and right swapped."""
    if plane.dtype == np.uint8:  # OpenCV is many times faster
        return np.asarray(cv2.flip(plane, 1)).reshape(plane.shape)  # it drops an axis of one channel
    return plane[:, ::-1]
