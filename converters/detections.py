"""SSD's rows as boxes in pixels of the image as it was before it was resized and cropped.

A row is image, label, score, xmin, ymin, xmax, ymax; the sides are shares of the prepared image's width and
height. A row of the label -1 says that nothing was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from imae.converters.preprocessing import Preprocessing, Size
from imae.files.errors import ExportError
from imae.layers.data.image_transform import new_size
from imae.layers.forks.boxes import output_boxes

ROW = 7


class Box(NamedTuple):
    """A box of an image; sides in pixels of the image, from 0 to its width and height."""

    label: int
    score: float
    xmin: float
    ymin: float
    xmax: float
    ymax: float


def are_rows(shape: Sequence[Any]) -> bool:
    """Whether an output of this shape holds SSD's rows: (1, 1, K, 7)."""
    return len(shape) == 4 and list(shape[:2]) == [1, 1] and shape[3] == ROW


def boxes_in_pixels(
    rows: NDArray[Any],
    size: Size,
    preprocessing: Preprocessing,
    input_shape: Sequence[int | str],
    threshold: float,
    where: str,
) -> list[Box]:
    """The boxes of one image of this size (height, width), the best first.

    rows         (..., 7)
    input_shape  of the model's input (N, C, H, W)
    threshold    the least score
    where        the image's name in errors

    ExportError for rows that are no boxes.
    """
    rows = rows.reshape(-1, ROW).astype(np.float32)
    rows = rows[rows[:, 1] >= 0]
    if not np.isfinite(rows[:, 2:]).all():
        raise ExportError(f"{where}: a box or its score is NaN or infinite; look at the model's weights")
    if not (rows[:, 1] == rows[:, 1].round()).all():
        raise ExportError(
            f"{where}: the output's rows of seven are no boxes: label {rows[:, 1].min():g} is no whole number"
        )
    rows = rows[rows[:, 2] >= threshold]
    rows = rows[np.argsort(-rows[:, 2], kind="stable")]
    sides = torch.from_numpy(_in_resized(rows[:, 3:], size, preprocessing, input_shape))
    resize = preprocessing.transform.resize_param if preprocessing.resizes_itself else None
    pixels, _ = output_boxes(sides, *size, resize)
    return [
        Box(int(label), float(score), *box)
        for label, score, box in zip(rows[:, 1], rows[:, 2], pixels.tolist(), strict=True)
    ]


def _in_resized(
    sides: NDArray[np.float32], size: Size, preprocessing: Preprocessing, input_shape: Sequence[int | str]
) -> NDArray[np.float32]:
    """Sides as shares of the resized image: the window that is cropped is in its centre."""
    crop = preprocessing.crop
    if crop is None:
        return sides
    if preprocessing.resizes_itself:
        resized = new_size(preprocessing.transform.resize_param, *size)
    else:
        resized = preprocessing.resize_for(input_shape) or size
    (height, width), (window_height, window_width) = resized, crop
    top, left = (height - window_height) // 2, (width - window_width) // 2
    factor = np.array([window_width / width, window_height / height] * 2, np.float32)
    return sides * factor + np.array([left / width, top / height] * 2, np.float32)
