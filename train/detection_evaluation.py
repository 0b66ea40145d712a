"""eval_type: "detection": the mean average precision of a test net, from the rows of DetectionEvaluate.

An output of the test net is (1, 1, N, 5), and its rows are of two kinds:

    -1  label  objects  -1  -1        how many objects of this class the batch has
    image  label  score  tp  fp       a detection: true positive (1, 0), false positive (0, 1), or one that
                                      does not count (0, 0)

The rows of all batches are collected. For each class the detections are sorted by score, the first of equal
ones first. After each of them, with t true and f false positives so far of n objects, the precision is
t / (t + f) and the recall t / n. The average precision is by ap_version

    11point      the mean over the recalls 0, 0.1, .. 1 of the largest precision at that recall or beyond
    MaxIntegral  the integral over the recall of the largest precision at that recall or beyond
    Integral     the integral over the recall of the precision

and 0 for a class without detections or without objects. The mean is over all classes, these included.

SSD (weiliu89/caffe): solver.cpp, TestDetection; bbox_util.cpp, ComputeAP. Products are computed in double
precision and added in single, as with the C library's fabs. Differs: the fork logs nothing of an output
without any detection, and ends where another output has some; here a warning says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imae.files.caffe_log import number
from imae.files.errors import DataError
from imae.train.from_device import Array

logger = logging.getLogger(__name__)

f32 = np.float32
EPS = f32(1e-6)
EVAL_TYPES = ("classification", "detection")
AP_VERSIONS = ("11point", "MaxIntegral", "Integral")
COLUMNS = 5


class ClassRows(NamedTuple):
    """The detections of one class: their scores, and which are true positives."""

    scores: NDArray[np.float32]
    hits: NDArray[np.bool_]


class Precisions(NamedTuple):
    """The average precision of each class, by label; None: it has no detections. And their mean."""

    of_class: dict[int, np.float32 | None]
    mean: np.float32


class DetectionEvaluation:
    """Collects the outputs of a test's batches.

    objects      by output, by label: how many objects there were
    detections   by output: the rows of detections that count
    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[int, int]] = {}
        self.detections: dict[str, list[NDArray[np.float32]]] = {}

    def add(self, outputs: Mapping[str, Array]) -> None:
        """Add the outputs of a batch; DataError for one that is not DetectionEvaluate's."""
        for name, blob in outputs.items():
            if blob.ndim != 4 or blob.shape[:2] != (1, 1) or blob.shape[3] != COLUMNS:
                raise DataError(
                    f'output {name} has the shape {blob.shape}; eval_type: "detection" needs (1, 1, N, '
                    f"{COLUMNS}), as DetectionEvaluate makes it; silence other outputs of the test net"
                )
            rows = blob[0, 0].astype(f32)
            if not np.isfinite(rows[:, [0, 1, 3, 4]]).all():
                raise DataError(
                    f"output {name} has rows that are no numbers; expected those of DetectionEvaluate"
                )
            whole = np.trunc(rows)
            is_detection = whole[:, 0] != -1
            objects = self.objects.setdefault(name, {})
            for label, count in whole[~is_detection, 1:3].tolist():
                objects[int(label)] = objects.get(int(label), 0) + int(count)
            counts = is_detection & ((whole[:, 3] != 0) | (whole[:, 4] != 0))
            if not np.array_equal(whole[counts, 3], 1 - whole[counts, 4]):
                raise DataError(f"output {name} has a row that is a true and a false positive at once")
            self.detections.setdefault(name, []).append(rows[counts])

    def precisions(self, name: str, ap_version: str) -> Precisions | None:
        """The average precisions of an output; None where there is no detection at all."""
        rows = np.concatenate(self.detections[name])
        objects = self.objects[name]
        if not len(rows):
            return None
        if not objects:
            raise DataError(f"output {name} has no rows with the numbers of objects")
        labels = np.trunc(rows[:, 1])
        of_class: dict[int, np.float32 | None] = {}
        total = f32(0)
        for label in sorted(objects):
            mine = rows[labels == label]
            of_class[label] = None
            if len(mine):
                found = ClassRows(mine[:, 2], mine[:, 3] != 0)
                value = average_precision(found, objects[label], ap_version)
                of_class[label] = value
                total = total + value
        return Precisions(of_class, total / f32(len(objects)))


def average_precision(rows: ClassRows, objects: int, ap_version: str) -> np.float32:
    """The average precision of a class with so many objects; DataError for more hits than objects."""
    if objects == 0 or not len(rows.scores):
        return f32(0)
    order = np.argsort(-rows.scores, kind="stable")
    hits = np.cumsum(rows.hits[order])
    if hits[-1] > objects:
        raise DataError(f"{hits[-1]} true positives of {objects} objects")
    true: NDArray[np.float32] = hits.astype(f32)
    precision = np.divide(true, np.arange(1, len(hits) + 1, dtype=f32), dtype=f32)
    recall = np.divide(true, f32(objects), dtype=f32)
    return METHODS[ap_version](precision, recall)


def _eleven_points(precision: NDArray[np.float32], recall: NDArray[np.float32]) -> np.float32:
    best, total = _best_from_here(precision), f32(0)
    for point in range(10, -1, -1):
        beyond = np.flatnonzero(recall.astype(np.float64) >= point / 10)
        if len(beyond):
            total += best[beyond[0]] / f32(11)
    return total


def _max_integral(precision: NDArray[np.float32], recall: NDArray[np.float32]) -> np.float32:
    best, total = _best_from_here(precision), f32(0)
    for i in np.flatnonzero(recall[1:] - recall[:-1] > EPS)[::-1].tolist():
        total = _plus(total, best[i], recall[i + 1] - recall[i])
    return f32(total + recall[0] * best[0])


def _integral(precision: NDArray[np.float32], recall: NDArray[np.float32]) -> np.float32:
    total, before = f32(0), np.concatenate([np.zeros(1, f32), recall[:-1]])
    for i in np.flatnonzero(recall - before > EPS).tolist():
        total = _plus(total, precision[i], recall[i] - before[i])
    return total


def _best_from_here(precision: NDArray[np.float32]) -> NDArray[np.float32]:
    best: NDArray[np.float32] = np.maximum.accumulate(precision[::-1])[::-1]
    return best


def _plus(total: np.float32, precision: np.float32, width: np.float32) -> np.float32:
    return f32(float(total) + float(precision) * float(width))


METHODS: dict[str, Callable[[NDArray[np.float32], NDArray[np.float32]], np.float32]] = dict(
    zip(AP_VERSIONS, (_eleven_points, _max_integral, _integral), strict=True)
)


def log_precisions(
    log_line: Callable[[str, str], None], found: DetectionEvaluation, ap_version: str, per_class: bool
) -> dict[str, Array]:
    """Log the mean average precision of each output, after that of each class if asked; return the means."""
    means: dict[str, Array] = {}
    for index, name in enumerate(found.detections):
        precisions = found.precisions(name, ap_version)
        if precisions is None:
            logger.warning("Test net output %s has no detection, so it has no mean average precision", name)
            continue
        for label, value in precisions.of_class.items():
            if value is None:
                logger.warning("Missing true_pos for label: %d", label)
            elif per_class:
                log_line("solver.cpp:540", f"class{label}: {number(value)}")
        log_line("solver.cpp:546", f"    Test net output #{index}: {name} = {number(precisions.mean)}")
        means[name] = np.array(precisions.mean)
    return means
