"""Images resized, as (H, W, C) bytes.

    bilinear  OpenCV's, as in Caffe's tools: between the four nearest pixels, without antialiasing
    bicubic   MATLAB's imresize with its default method: the cubic kernel with a = -0.5 (Keys 1981); where the
              image shrinks, the kernel is wider by the same factor; beyond its edges the image is mirrored

The authors of IMAE resized CIFAR's images to 36 x 36 by MATLAB's imresize, in single precision; here the
result is rounded to 0 .. 255, since it is stored as bytes.
"""

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


def resize_bilinear(pixels: Image, height: int, width: int) -> Image:
    """Pixels (height, width, C)."""
    resized = cv2.resize(pixels, (width, height))  # it drops a channel axis of size 1
    return np.asarray(resized, np.uint8).reshape(height, width, -1)


def resize_bicubic(pixels: Image, height: int, width: int) -> Image:
    """Pixels (height, width, C)."""
    rows, columns = cubic_weights(pixels.shape[0], height), cubic_weights(pixels.shape[1], width)
    values = columns @ np.tensordot(rows, pixels, 1)
    return np.rint(values).clip(0, 255).astype(np.uint8)


@lru_cache(16)
def cubic_weights(size: int, new_size: int) -> NDArray[np.float64]:
    """(new_size, size): the weight of each old pixel in each new one."""
    width = max(1.0, size / new_size)  # of the kernel
    centers = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    reach = int(np.ceil(2 * width)) + 1
    places = np.floor(centers).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
    shares = _cubic((centers[:, None] - places) / width)
    shares /= shares.sum(1, keepdims=True)
    mirrored = places % (2 * size)
    mirrored = np.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)
    weights = np.zeros((new_size, size))
    np.add.at(weights, (np.arange(new_size)[:, None], mirrored), shares)
    return weights


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


BILINEAR = "bilinear"
INTERPOLATIONS: dict[str, Callable[[Image, int, int], Image]] = {
    BILINEAR: resize_bilinear,
    "bicubic": resize_bicubic,
}
