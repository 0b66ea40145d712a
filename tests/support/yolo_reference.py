"""Slow references for YOLO's layers: numpy in double precision, one cell, box and class after the other.

Nothing of these layers is recorded. This is written from what the sources of eric612/MobileNet-YOLO (and,
where said, of intel/caffe) compute, independent of the layers, and computes all that is there in the same
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import atan, exp, pi

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Box = tuple[float, float, float, float]  # centre x, centre y, width, height


def logistic(x: float) -> float:
    return 1 / (1 + exp(-x))


def softmax(values: Array) -> Array:
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum(), np.float64)


def corners(box: Box) -> Box:
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def intersection(a: Box, b: Box) -> float:
    left, top, right, bottom = corners(a)
    other_left, other_top, other_right, other_bottom = corners(b)
    width = min(right, other_right) - max(left, other_left)
    height = min(bottom, other_bottom) - max(top, other_top)
    return 0 if width < 0 or height < 0 else width * height


def iou(a: Box, b: Box, kind: str = "IOU") -> float:
    common = intersection(a, b)
    union = a[2] * a[3] + b[2] * b[3] - common
    plain = common / union if union else float("nan")
    if kind in ("IOU", "MSE"):
        return plain
    left, top, right, bottom = corners(a)
    other_left, other_top, other_right, other_bottom = corners(b)
    width = max(right, other_right) - min(left, other_left)
    height = max(bottom, other_bottom) - min(top, other_top)
    if kind == "GIOU":
        hull = width * height
        return plain - (hull - union) / hull if hull else plain
    diagonal = width**2 + height**2
    if diagonal == 0:
        return plain
    distance = ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / diagonal
    if kind == "DIOU":
        return float(plain - distance**0.6)
    shape = 4 / pi**2 * (atan(b[2] / b[3]) - atan(a[2] / a[3])) ** 2
    return plain - distance - shape / (1 - plain + shape + 1e-6) * shape


def detections(candidates: list[tuple[float, int, Box]], threshold: float, images: int) -> Array:
    """The rows of (score, class, box): sorted, and without those that a better one covers."""
    candidates = sorted(candidates, key=lambda candidate: -candidate[0])
    removed = [False] * len(candidates)
    for i in range(len(candidates)):
        for j in range(i + 1, len(candidates)):
            if not removed[i] and iou(candidates[i][2], candidates[j][2]) >= threshold:
                removed[j] = True
    rows = [
        [0, label + 1, score, *corners(box)]
        for (score, label, box), gone in zip(candidates, removed, strict=True)
        if not gone
    ]
    return np.array(rows or [[image, *[-1] * 6] for image in range(images)], np.float64).reshape(1, 1, -1, 7)


def detections_v2(
    maps: Sequence[Array], biases: Sequence[float], classes: int, confidence: float, threshold: float
) -> Array:
    candidates: list[tuple[float, int, Box]] = []
    boxes = len(biases) // 2
    for x in maps:
        side = x.shape[3]
        for image, row, column, n in np.ndindex(len(x), side, side, boxes):
            values = x[image, n * (5 + classes) : (n + 1) * (5 + classes), row, column]
            box = (
                (column + logistic(values[0])) / side,
                (row + logistic(values[1])) / side,
                exp(values[2]) * biases[2 * n] / side,
                exp(values[3]) * biases[2 * n + 1] / side,
            )
            probabilities = softmax(values[5:])
            label = int(probabilities.argmax())
            score = logistic(values[4]) * float(probabilities[label])
            if score >= confidence:
                candidates.append((score, label, box))
    return detections(candidates, threshold, len(maps[0]))


def detections_v3(
    maps: Sequence[Array],
    biases: Sequence[float],
    masks: Sequence[Sequence[int]],
    scales: Sequence[int],
    classes: int,
    confidence: float,
    threshold: float,
) -> Array:
    candidates: list[tuple[float, int, Box]] = []
    for x, mask, scale in zip(maps, masks, scales, strict=True):
        height, width = x.shape[2:]
        for image, row, column, n in np.ndindex(len(x), height, width, len(mask)):
            values = x[image, n * (5 + classes) : (n + 1) * (5 + classes), row, column]
            box = (
                (column + logistic(values[0])) / width,
                (row + logistic(values[1])) / height,
                exp(values[2]) * biases[2 * mask[n]] / (width * scale),
                exp(values[3]) * biases[2 * mask[n] + 1] / (height * scale),
            )
            for label in range(classes):
                score = logistic(values[5 + label]) * logistic(values[4])
                if score > confidence:
                    candidates.append((score, label, box))
    return detections(candidates, threshold, len(maps[0]))
