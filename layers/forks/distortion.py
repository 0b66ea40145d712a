"""Random changes of an image's colours (SSD's distort_param).

A first uniform value above 0.5 puts contrast after brightness, another puts it after hue; saturation and hue
come between, a shuffle of the channels last. Each change takes one uniform value, and a second one for its
strength where the first is below the change's prob. The shuffle uses the C library's rand(), which starts as
with srand(1) whatever random_seed is.

    brightness   pixel + delta of -brightness_delta to brightness_delta
    contrast     pixel * factor of contrast_lower to contrast_upper; not within 0.001 of 1
    saturation   the S of HSV * factor of saturation_lower to saturation_upper
    hue          the H of HSV, 0 to 179, + delta of -hue_delta to hue_delta, cut at 0 and 255

SSD (weiliu89/caffe): im_transforms.cpp. Differs: what the fork checks when a change is drawn is checked at
set-up; in the fork all code of the process shares one rand().
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from imae.files.errors import DataError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.c_rand import GlibcRand
from imae.prototxt.caffe_pb2 import DistortionParameter

f32 = np.float32
Image = NDArray[np.uint8]


class Change(NamedTuple):
    """A change that was drawn: its kind, and its strength or the order of the channels."""

    kind: str
    strength: np.float32 = f32(0)
    order: tuple[int, ...] = ()


def distortion_problem(param: DistortionParameter) -> str | None:
    """What is wrong with the changes that may be drawn, or None."""
    numbers = {field.name: value for field, value in param.ListFields()}
    if not all(map(math.isfinite, numbers.values())):
        return f"all numbers must be finite; got {numbers}"
    for kind in ("brightness", "hue"):
        if numbers.get(f"{kind}_prob", 0) > 0 and numbers.get(f"{kind}_delta", 0) < 0:
            return f"{kind}_delta must be non-negative.; got {numbers[f'{kind}_delta']:g}"
    for kind in ("contrast", "saturation"):
        low, high = (numbers.get(f"{kind}_{side}", 0) for side in ("lower", "upper"))
        if numbers.get(f"{kind}_prob", 0) > 0 and not 0 <= low <= high:
            return f"0 <= {kind}_lower <= {kind}_upper; got {low:g} and {high:g}"
    return None


def draw_changes(param: DistortionParameter, random: CaffeRandom, rand: GlibcRand) -> list[Change]:
    """The changes of the next image, in their order."""

    def happens(prob: float) -> bool:
        return bool(random.uniform_value(0, 1) < f32(prob))

    def around_0(kind: str, prob: float, delta: float) -> list[Change]:
        return [Change(kind, random.uniform_value(-delta, delta))] if happens(prob) else []

    def between(kind: str, prob: float, low: float, high: float) -> list[Change]:
        return [Change(kind, random.uniform_value(low, high))] if happens(prob) else []

    def contrast() -> list[Change]:
        return between("contrast", param.contrast_prob, param.contrast_lower, param.contrast_upper)

    contrast_first = random.uniform_value(0, 1) > 0.5
    changes = around_0("brightness", param.brightness_prob, param.brightness_delta)
    if contrast_first:
        changes += contrast()
    changes += between("saturation", param.saturation_prob, param.saturation_lower, param.saturation_upper)
    changes += around_0("hue", param.hue_prob, param.hue_delta)
    if not contrast_first:
        changes += contrast()
    if happens(param.random_order_prob):
        order = [0, 1, 2]
        for i in (1, 2):
            j = rand.draw() % (i + 1)
            order[i], order[j] = order[j], order[i]
        changes.append(Change("order", order=tuple(order)))
    return changes


def distorted(image: Image, changes: list[Change]) -> Image:
    """Pixels (H, W, C) with these changes; DataError where they need three channels, BGR."""
    for change in changes:
        if change.kind not in ("brightness", "contrast") and image.shape[2] != 3:
            raise DataError(
                f"distort_param needs 3 channels for saturation, hue and order; the image has "
                f"{image.shape[2]}; see force_color"
            )
        image = APPLY[change.kind](image, change)
    return image


def _brightness(image: Image, change: Change) -> Image:
    return scaled(image, f32(1), change.strength) if change.strength else image


def _contrast(image: Image, change: Change) -> Image:
    return scaled(image, change.strength, f32(0)) if float(abs(change.strength - f32(1))) > 1e-3 else image


def _saturation(image: Image, change: Change) -> Image:
    return _in_hsv(image, 1, lambda plane: scaled(plane, change.strength, f32(0)))


def _hue(image: Image, change: Change) -> Image:
    if not change.strength:
        return image
    return _in_hsv(image, 0, lambda plane: scaled(plane, f32(1), change.strength))


def _order(image: Image, change: Change) -> Image:
    return np.ascontiguousarray(image[:, :, list(change.order)])


APPLY: dict[str, Callable[[Image, Change], Image]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
    "order": _order,
}


def scaled(pixels: Image, factor: np.float32, addend: np.float32) -> Image:
    """pixel * factor + addend, rounded to the nearest number of 0 to 255, halves to the even one."""
    with np.errstate(over="ignore"):
        table = np.rint(np.arange(256, dtype=f32) * factor + addend).clip(0, 255).astype(np.uint8)
    changed: Image = table[pixels]
    return changed


def _in_hsv(image: Image, channel: int, change: Callable[[Any], Image]) -> Image:
    planes = list(cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV)))
    planes[channel] = change(planes[channel])
    return np.asarray(cv2.cvtColor(cv2.merge(planes), cv2.COLOR_HSV2BGR), np.uint8)
