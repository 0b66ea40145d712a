"""Slow references for YOLO's layers: numpy in double precision, one cell, box and class after the other.

Nothing of these layers is recorded. This is written from what the sources of eric612/MobileNet-YOLO (and,
where said, of intel/caffe) compute, independent of the layers, and computes all that is there in the same
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import atan, exp, pi
from typing import Any

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


# -- losses ------------------------------------------------------------------------------------------------


def logistic_slope(p: float) -> float:
    return p * (1 - p)


def region_loss(
    x: Array,
    label: Array,
    biases: Sequence[float],
    classes: int,
    *,
    intel: bool = False,
    bias_match: bool = True,
    rescore: bool = True,
    object_scale: float = 1,
    noobject_scale: float = 0.5,
    class_scale: float = 1,
    coord_scale: float = 5,
    thresh: float = 0.2,
) -> tuple[float, Array]:
    """The loss, and the gradient for a top diff of 1, of eric612's RegionLoss or Intel's."""
    count, _, side, _ = x.shape
    boxes, length = len(biases) // 2, 5 + classes
    diff = np.zeros_like(x)

    def predicted(image: int, n: int, row: int, column: int) -> Box:
        values = x[image, n * length : (n + 1) * length, row, column]
        return (
            (column + logistic(values[0])) / side,
            (row + logistic(values[1])) / side,
            exp(values[2]) * biases[2 * n] / side,
            exp(values[3]) * biases[2 * n + 1] / side,
        )

    def limited(error: float) -> float:
        return min(max(error, -1), 1) if intel else error

    for image in range(count):
        near: list[Box] = []
        targets: list[tuple[int, Box]] = []
        if intel:
            for item, name, _, left, top, right, bottom, _ in label.reshape(-1, 8):
                if int(item) == image:
                    box = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
                    near.append(box)
                    targets.append((int(name) - 1, box))
        else:
            for row in label[image, 0]:
                if row[1] == 0:
                    break
                near.append(tuple(row[1:]))
            for row in label[image, 0]:
                if row[3] == 0:
                    break
                targets.append((int(row[0]), tuple(row[1:])))
        for row, column, n in np.ndindex(side, side, boxes):
            p = logistic(x[image, n * length + 4, row, column])
            best = 0.0
            for box in near:
                best = max(best, iou(predicted(image, n, row, column), box))
            wrong = noobject_scale * p * logistic_slope(p)
            diff[image, n * length + 4, row, column] = 0 if best > thresh else wrong
        for name, box in targets:
            column, row = int(box[0] * side), int(box[1] * side)
            best, best_n = 0.0, 0
            for n in range(boxes):
                size = predicted(image, n, row, column)[2:]
                if bias_match:
                    size = biases[2 * n] / side, biases[2 * n + 1] / side
                if (found := iou((0, 0, *size), (0, 0, *box[2:]))) > best:
                    best, best_n = found, n
            values = x[image, best_n * length : (best_n + 1) * length, row, column]
            out = diff[image, best_n * length : (best_n + 1) * length, row, column]
            scale = coord_scale if rescore or intel else coord_scale * (2 - box[2] * box[3])
            for axis, cell in ((0, column), (1, row)):
                offset = logistic(values[axis])
                error = limited(box[axis] * side - cell - offset)
                out[axis] = -scale * error * logistic_slope(offset)
                error = np.log(box[2 + axis] * side / biases[2 * best_n + axis]) - values[2 + axis]
                out[2 + axis] = -scale * limited(error)
            p = logistic(values[4])
            target = 1.0
            if intel:
                out[4] = -object_scale * 2 * (1 - p) ** 3 * logistic_slope(p)
            else:
                if rescore:
                    target = iou(predicted(image, best_n, row, column), box)
                out[4] = -object_scale * (target - p) * logistic_slope(p)
            probabilities = softmax(values[5:])
            for c in range(classes):
                out[5 + c] = -class_scale * ((c == name) - probabilities[c])
    return float((diff**2).sum() / (1 if intel else count)), diff / count


def overlap_gradient(pred: Box, truth: Box, kind: str) -> tuple[float, float, float, float]:
    """Darknet's gradient of the overlap by x, y, width and height of `pred`, as eric612's copy has it."""
    (left, top, right, bottom), (tl, tt, tr, tb) = corners(pred), corners(truth)
    area, true_area = (bottom - top) * (right - left), (tb - tt) * (tr - tl)
    high, wide = min(bottom, tb) - max(top, tt), min(right, tr) - max(left, tl)
    common = high * wide
    union = area + true_area - common
    apart = high <= 0 or wide <= 0
    by_top = -wide if top > tt else 0.0
    by_bottom = wide if bottom < tb else 0.0
    by_left = -high if left > tl else 0.0
    by_right = high if right < tr else 0.0
    of_common = [by_top, by_bottom, by_left, by_right]
    of_area = [-(right - left), right - left, -(bottom - top), bottom - top]
    of_union = [a - c for a, c in zip(of_area, of_common, strict=True)]
    ratio = [
        (union * c - common * u) / union**2 if union > 0 else 0.0
        for c, u in zip(of_common, of_union, strict=True)
    ]
    hull_wide, hull_high = max(right, tr) - min(left, tl), max(bottom, tb) - min(top, tt)
    if kind == "GIOU":
        hull = hull_wide * hull_high
        of_hull = [
            -hull_wide if top < tt else 0.0,
            hull_wide if bottom > tb else 0.0,
            -hull_high if left < tl else 0.0,
            hull_high if right > tr else 0.0,
        ]
        more = [(hull * u - union * h) / hull**2 for u, h in zip(of_union, of_hull, strict=True)]
        ratio = more if apart else [r + m for r, m in zip(ratio, more, strict=True)]
    t, b, l, r = ratio  # noqa: E741
    gradient = [l + r, t + b, r - l, b - t]
    if kind in ("DIOU", "CIOU"):
        diagonal = hull_wide**2 + hull_high**2
        distance = (pred[0] - truth[0]) ** 2 + (pred[1] - truth[1]) ** 2
        wide_by_x = (1 if right > tr else 0) - (1 if left < tl else 0)
        wide_by_w = (0.5 if right > tr else 0) + (0.5 if left < tl else 0)
        high_by_y = (1 if bottom > tb else 0) - (1 if top < tt else 0)
        high_by_h = (0.5 if bottom > tb else 0) + (0.5 if top < tt else 0)
        more = [
            (2 * (truth[0] - pred[0]) * diagonal - 2 * hull_wide * wide_by_x * distance) / diagonal**2,
            (2 * (truth[1] - pred[1]) * diagonal - 2 * hull_high * high_by_y * distance) / diagonal**2,
            2 * hull_wide * wide_by_w * distance / diagonal**2,
            2 * hull_high * high_by_h * distance / diagonal**2,
        ]
        if kind == "CIOU":
            angle = atan(truth[2] / truth[3]) - atan(pred[2] / pred[3])
            shape = 4 / pi**2 * angle**2
            alpha = shape / (1 - common / union + shape + 1e-6)
            more[2] += alpha * 8 / pi**2 * angle * pred[3]
            more[3] += alpha * -8 / pi**2 * angle * pred[2]
        gradient = more if apart else [g + m for g, m in zip(gradient, more, strict=True)]
    return gradient[0], gradient[1], gradient[2], gradient[3]


class YoloV3:
    """eric612's Yolov3: the loss, and the gradient for a top diff of 1, of one call of `run`."""

    def __init__(self, biases: Sequence[float], mask: Sequence[int], classes: int, **fields: Any) -> None:
        self.biases, self.mask, self.classes, self.length = biases, mask, classes, 5 + classes
        defaults: dict[str, Any] = {
            "object_scale": 1.0, "class_scale": 1.0, "coord_scale": 5.0, "thresh": 0.2, "anchors_scale": 32,
            "use_logic_gradient": False, "use_focal_loss": False, "iou_loss": "MSE", "iou_normalizer": 0.25,
            "iou_thresh": 0.5, "max_delta": 10.0, "accumulate": True, "label_smooth_eps": 0.1,
        }  # fmt: skip
        assert fields.keys() <= defaults.keys()
        self.fields = defaults | fields

    def predicted(self, values: Array, place: int, row: int, column: int) -> Box:
        n, k = self.mask[place], self.fields["anchors_scale"]
        return (
            (column + logistic(values[0])) / self.width,
            (row + logistic(values[1])) / self.height,
            exp(values[2]) * self.biases[2 * n] / (self.width * k),
            exp(values[3]) * self.biases[2 * n + 1] / (self.height * k),
        )

    def assign(
        self, values: Array, out: Array, place: int, row: int, column: int, label: int, box: Box
    ) -> None:
        """One box of the label to one box of a cell, whose numbers are `values`; `out` is the diff so far."""
        fields, kind = self.fields, self.fields["iou_loss"]
        pred = self.predicted(values, place, row, column)
        if kind == "MSE":
            scale = fields["coord_scale"] * (2 - box[2] * box[3])
            units = self.width * fields["anchors_scale"], self.height * fields["anchors_scale"]
            for axis, (size, cell) in enumerate(((self.width, column), (self.height, row))):
                out[axis] = -scale * (box[axis] * size - cell - logistic(values[axis]))
                anchor = self.biases[2 * self.mask[place] + axis]
                out[2 + axis] = -scale * (np.log(box[2 + axis] * units[axis] / anchor) - values[2 + axis])
        else:
            step = list(overlap_gradient(pred, box, kind))
            step[2] *= exp(values[2])
            step[3] *= exp(values[3])
            limit = fields["max_delta"]
            for axis in range(4):
                change = -min(max(step[axis] * fields["iou_normalizer"], -limit), limit)
                out[axis] = change + (out[axis] if fields["accumulate"] else 0)
        self.lost += 1 - iou(pred, box, "DIOU" if kind == "IOU" else kind)
        self.count += 1
        out[4] = -(1 - logistic(values[4])) * (fields["object_scale"] if fields["use_logic_gradient"] else 1)
        self.assign_classes(values, out, label)

    def assign_classes(self, values: Array, out: Array, label: int) -> None:
        scale, eps = self.fields["class_scale"], self.fields["label_smooth_eps"]
        p = [logistic(value) for value in values[5:]]
        if out[5 + label] != 0:
            out[5 + label] = -scale * (1 - eps + 0.5 * eps - p[label])
            return
        for c in range(self.classes):
            target = 1 if c == label else 0
            if self.fields["use_focal_loss"]:
                q = p[label]
                grad = -(1 - q) * (2 * q * np.log(q) + q - 1)
                out[5 + c] = -scale * (target - p[c]) * 0.5 * grad
            else:
                out[5 + c] = -scale * (target * (1 - eps) + 0.5 * eps - p[c])

    def run(self, x: Array, label: Array) -> tuple[float, Array]:
        fields, kind, boxes = self.fields, self.fields["iou_loss"], len(self.mask)
        images, _, self.height, self.width = x.shape
        self.lost, self.count = 0.0, 0
        diff = np.zeros_like(x)

        def part(array: Array, image: int, place: int, row: int, column: int) -> Array:
            return array[image, place * self.length : (place + 1) * self.length, row, column]

        for image in range(images):
            near = []
            for line in label[image, 0]:
                if line[1] == 0:
                    break
                near.append(tuple(line[1:]))
            for row, column, place in np.ndindex(self.height, self.width, boxes):
                values = part(x, image, place, row, column)
                pred = self.predicted(values, place, row, column)
                best = max([iou(pred, box, kind) for box in near], default=0)
                part(diff, image, place, row, column)[4] = (
                    0 if best > fields["thresh"] else logistic(values[4])
                )
            for line in label[image, 0]:
                if line[3] == 0:
                    break
                name, box = int(line[0]), tuple(line[1:])
                row, column = int(box[1] * self.height), int(box[0] * self.width)
                found = []
                for n in range(len(self.biases) // 2):
                    k = fields["anchors_scale"]
                    size = self.biases[2 * n] / (self.width * k), self.biases[2 * n + 1] / (self.height * k)
                    found.append(iou((0, 0, *size), (0, 0, *box[2:]), kind))
                best_n = found.index(max(found)) if max(found) > 0 else -1
                if best_n in self.mask:
                    best_n = self.mask.index(best_n)  # from here on a place in the mask, not an anchor
                    self.assign(
                        part(x, image, best_n, row, column), part(diff, image, best_n, row, column),
                        best_n, row, column, name, box,
                    )  # fmt: skip
                for n, overlap in enumerate(found):
                    if n not in self.mask or n == best_n or fields["iou_thresh"] >= 1:
                        continue
                    if overlap > fields["iou_thresh"]:
                        place = self.mask.index(n)
                        self.assign(
                            part(x, image, place, row, column), part(diff, image, place, row, column),
                            place, row, column, name, box,
                        )  # fmt: skip
        split = diff.reshape(images, boxes, self.length, self.height, self.width)
        if kind == "MSE":
            loss = float((diff**2).sum())
        else:
            loss = float((split[:, :, 4:] ** 2).sum())
            loss += fields["iou_normalizer"] * self.lost / self.count if self.count else 0
        if fields["use_logic_gradient"]:
            values = x.reshape(split.shape)
            p = 1 / (1 + np.exp(-values))
            split[:, :, 4:] *= (p * (1 - p))[:, :, 4:]
            raw = p[:, :, :2] if kind == "MSE" else values[:, :, :2]
            split[:, :, :2] *= raw * (1 - raw)
        return loss / images, split.reshape(x.shape) / images


def evaluation(
    x: Array,
    label: Array,
    biases: Sequence[float],
    classes: int,
    *,
    score_type: str = "MULTIPLY",
    nms: float = -1,
    threshold: float = 0.5,
) -> Array:
    """The top of Intel's EvalDetection."""
    images, _, side, _ = x.shape
    top = np.zeros((images, classes + side * side * 5 * 4))
    for image in range(images):
        truths: dict[int, list[Box]] = {}
        for item, name, _, left, up, right, down, _ in label.reshape(-1, 8):
            if int(item) == image:
                truths.setdefault(int(name) - 1, []).append(
                    ((left + right) / 2, (up + down) / 2, right - left, down - up)
                )
        for name, boxes in truths.items():
            top[image, name] += len(boxes)
        candidates: list[tuple[float, int, Box]] = []
        for row, column, n in np.ndindex(side, side, 5):
            values = x[image, n * (5 + classes) : (n + 1) * (5 + classes), row, column]
            box = (
                (column + logistic(values[0])) / side,
                (row + logistic(values[1])) / side,
                exp(values[2]) * biases[2 * n] / side,
                exp(values[3]) * biases[2 * n + 1] / side,
            )
            probabilities = softmax(values[5:])
            best, score = int(probabilities.argmax()), logistic(values[4])
            if score_type == "PROB":
                score = float(probabilities[best])
            elif score_type == "MULTIPLY":
                score *= float(probabilities[best])
            candidates.append((score, best, box))
        candidates.sort(key=lambda candidate: -candidate[0])
        kept: list[tuple[float, int, Box]] = []
        if nms >= 0:
            for candidate in candidates:
                if all(iou(other[2], candidate[2]) < nms for other in kept):
                    kept.append(candidate)
        taken: set[tuple[int, int]] = set()
        place = classes
        for name in range(classes):
            for score, best, box in kept:
                if best != name or score < 0.005:
                    continue
                overlaps = [iou(box, truth) for truth in truths.get(name, [])]
                top[image, place : place + 2] = name, score
                if not overlaps:
                    top[image, place + 3] = 1
                elif max(overlaps) >= threshold:
                    match = name, overlaps.index(max(overlaps))
                    top[image, place + (3 if match in taken else 2)] = 1
                    taken.add(match)
                place += 4
    return top
