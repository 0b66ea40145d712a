"""Images with the boxes that a detector has found, and the maps of a segmentation in colours.

A file is named like its image, in the same subfolder. In maps a class has the colour that PASCAL VOC's label
maps give its number; the lines of boxes have brighter ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from imae.converters.detections import Box
from imae.converters.measures import class_text
from imae.converters.run_sources import ImageFile
from imae.files.atomic import write_atomically
from imae.files.errors import DataError, FileError
from imae.files.read import AnyPath

Image = NDArray[np.uint8]
ENCODED = (".jpg", ".jpeg", ".png")  # the others become .png
FONT = cv2.FONT_HERSHEY_SIMPLEX


def drawing_paths(images: Iterable[ImageFile], folder: AnyPath, suffix: str | None = None) -> dict[str, Path]:
    """Where the drawing of each image goes, by the image's path.

    suffix  of all drawings; None: that of the image, if it is one of ENCODED

    DataError where a drawing would replace one of the images.
    """
    images = list(images)
    sources = {os.path.realpath(image.path) for image in images}
    paths: dict[str, Path] = {}
    taken: set[Path] = set()
    for image in images:
        if image.path in paths:  # it was named twice
            continue
        inside = Path(image.inside)
        if not image.inside or inside.is_absolute() or ".." in inside.parts:
            inside = Path(Path(image.path).name)
        own = inside.suffix.lower() if inside.suffix.lower() in ENCODED else ".png"
        stem, number = inside.with_suffix(""), 1
        target = Path(folder, f"{stem}{suffix or own}")
        while target in taken:
            number += 1
            target = Path(folder, f"{stem}_{number}{suffix or own}")
        if os.path.realpath(target) in sources:
            raise DataError(f"--draw: '{target}' is one of the images, which are not changed; draw elsewhere")
        taken.add(target)
        paths[image.path] = target
    return paths


def write_drawing(path: Path, pixels: Image) -> None:
    """Write an image file, and make its folder; FileError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder '{path.parent}': {error.strerror}") from error
    write_atomically(path, cv2.imencode(path.suffix, pixels)[1].tobytes())


def draw_boxes(pixels: Image, boxes: Sequence[Box], names: Mapping[int, str]) -> Image:
    """A copy of an image (H, W, 3) with boxes, their names and scores; the best are on top."""
    drawn = pixels.copy()
    height, width = pixels.shape[:2]
    thick = max(1, round(min(height, width) / 160))
    scale = max(0.4, min(height, width) / 700)
    for box in reversed(boxes):
        colour = _bright(box.label)
        corners = [round(side) for side in box[2:]]
        left, top = min(corners[0], width - 1), min(corners[1], height - 1)
        right, bottom = min(corners[2], width - 1), min(corners[3], height - 1)
        cv2.rectangle(drawn, (left, top), (right, bottom), colour, thick)
        name = class_text(box.label, names).strip('"').encode("ascii", "replace").decode()
        text = f"{name} {box.score:.2f}"  # OpenCV's fonts have ASCII alone
        (text_width, text_height), below = cv2.getTextSize(text, FONT, scale, max(1, thick // 2))
        # Above the box, or inside where there is no room; within the image as far as it fits.
        x = max(0, min(left, width - text_width - 2))
        y = top - thick if top - thick - text_height - below >= 0 else top + text_height + below + thick
        cv2.rectangle(drawn, (x, y - text_height - below), (x + text_width + 2, y + below // 2), colour, -1)
        ink = (0, 0, 0) if 0.1 * colour[0] + 0.6 * colour[1] + 0.3 * colour[2] > 110 else (255, 255, 255)
        cv2.putText(drawn, text, (x + 1, y - below // 2), FONT, scale, ink, max(1, thick // 2), cv2.LINE_AA)
    return drawn


def _bright(label: int) -> tuple[int, int, int]:
    """A colour (BGR) that differs from those of the classes nearby."""
    hue = 49 * label % 180  # of OpenCV's 180; labels that are 1 to 10 apart differ by 16 or more
    blue, green, red = cv2.cvtColor(np.array([[[hue, 220, 255]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return blue, green, red


def classes_of_map(values: NDArray[Any]) -> NDArray[np.int64] | None:
    """(H, W): the class of each pixel of a map (C, H, W); None where it has one channel of other numbers.

    One channel of whole numbers, none below 0, holds classes.
    """
    if len(values) > 1:
        return np.asarray(values.argmax(0), np.int64)
    (channel,) = values
    whole = np.isfinite(channel).all() and (channel == channel.round()).all() and channel.min() >= 0
    return channel.astype(np.int64) if whole and channel.max() < 1 << 24 else None


def draw_map(values: NDArray[Any], size: tuple[int, int] | None) -> Image:
    """A map (C, H, W) in colours, of this size if one is given; one channel of other numbers in grey.

    Grey is from the smallest number, black, to the largest, white.
    """
    classes = classes_of_map(values)
    if classes is not None:
        drawn = palette(classes)
    else:
        channel = np.nan_to_num(values[0].astype(np.float64))
        low, high = channel.min(), channel.max()
        drawn = np.rint(255 * (channel - low) / max(high - low, np.finfo(np.float64).tiny)).astype(np.uint8)
    if size is not None:
        near = cv2.INTER_NEAREST if classes is not None else cv2.INTER_LINEAR
        drawn = np.asarray(cv2.resize(drawn, (size[1], size[0]), interpolation=near), np.uint8)
    return drawn


def palette(classes: NDArray[np.int64]) -> Image:
    """(..., 3), BGR: VOC's colour of each class. The bits of its number, in threes, are the high bits."""
    red, green, blue = (np.zeros(classes.shape, np.uint8) for _ in range(3))
    for place in range(8):
        bits = classes >> (3 * place)
        for shift, colour in enumerate((red, green, blue)):
            colour |= ((bits >> shift & 1) << (7 - place)).astype(np.uint8)
    return np.stack([blue, green, red], -1)
