"""SSD's matching, mining, loss, suppression and evaluation in loops over single boxes, in double precision.

For what no case records: written from the description of the fork's results, independent of layers/forks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Box = Sequence[float]


def area(box: Box) -> float:
    width, height = box[2] - box[0], box[3] - box[1]
    return 0.0 if width < 0 or height < 0 else width * height


def overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (area(a) + area(b) - width * height)


def decode(code: str, prior: Box, variance: Box, t: Box) -> list[float]:
    t = [v * x for v, x in zip(variance, t, strict=True)]
    width, height = prior[2] - prior[0], prior[3] - prior[1]
    if code == "CORNER":
        return [p + x for p, x in zip(prior, t, strict=True)]
    if code == "CORNER_SIZE":
        return [p + x * size for p, x, size in zip(prior, t, [width, height] * 2, strict=True)]
    x, y = (prior[0] + prior[2]) / 2 + t[0] * width, (prior[1] + prior[3]) / 2 + t[1] * height
    w, h = width * math.exp(t[2]), height * math.exp(t[3])
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def encode(code: str, prior: Box, variance: Box, box: Box) -> list[float]:
    width, height = prior[2] - prior[0], prior[3] - prior[1]
    if code == "CENTER_SIZE":
        t = [((box[0] + box[2]) - (prior[0] + prior[2])) / 2 / width,
             ((box[1] + box[3]) - (prior[1] + prior[3])) / 2 / height,
             math.log((box[2] - box[0]) / width), math.log((box[3] - box[1]) / height)]  # fmt: skip
    else:
        t = [b - p for b, p in zip(box, prior, strict=True)]
        if code == "CORNER_SIZE":
            t = [x / size for x, size in zip(t, [width, height] * 2, strict=True)]
    return [x / v for x, v in zip(t, variance, strict=True)]


def crosses(box: Box) -> bool:
    return any(x < 0 or x > 1 for x in box)


def suppress(boxes: Sequence[Box], threshold: float, eta: float = 1.0) -> list[int]:
    """Indices of those that stay; the best comes first."""
    kept: list[int] = []
    for index, box in enumerate(boxes):
        if all(overlap(box, boxes[other]) <= threshold for other in kept):
            kept.append(index)
            if threshold > 0.5:
                threshold *= eta
    return kept


def match(
    boxes: Sequence[Box], truths: Sequence[Box], bipartite: bool, threshold: float, ignore: bool
) -> tuple[list[int], list[float]]:
    index, largest = [-1] * len(boxes), [0.0] * len(boxes)
    if not truths:
        return index, largest
    pairs: dict[tuple[int, int], float] = {}
    for i, box in enumerate(boxes):
        if ignore and crosses(box):
            index[i] = -2
            continue
        for j, truth in enumerate(truths):
            if (value := overlap(box, truth)) > 1e-6:
                pairs[i, j] = value
                largest[i] = max(largest[i], value)
    free = set(range(len(truths)))
    while True:
        left = [(-value, i, j) for (i, j), value in pairs.items() if index[i] == -1 and j in free]
        if not left:
            break
        value, i, j = min(left)
        index[i], largest[i] = j, -value
        free.remove(j)
    if not bipartite:
        for i in range(len(boxes)):
            own = [(-value, j) for (k, j), value in pairs.items() if k == i and value >= threshold]
            if index[i] == -1 and own:
                value, index[i] = min(own)
                largest[i] = -value
    return index, largest


def smooth_l1(d: float) -> float:
    return 0.5 * d * d if abs(d) < 1 else abs(d) - 0.5


def cross_entropy(scores: Any, label: int) -> float:
    scores = np.asarray(scores, np.float64)
    top = scores.max()
    return float(np.log(np.exp(scores - top).sum()) - (scores[label] - top))


def logistic(x: float, t: float) -> float:
    return math.log1p(math.exp(-abs(x))) - x * (t - (x >= 0))


def multibox_loss(options: dict[str, Any], loc: Any, conf: Any, prior: Any, truth: Any) -> float:
    """The loss; options by the names of the fields, all of them."""
    o = options
    classes, background = o["num_classes"], o["background_label_id"]
    share, code = o["share_location"], o["code_type"]
    num = len(loc)
    priors, variances = (part.reshape(-1, 4).tolist() for part in prior.reshape(2, -1))
    count = len(priors)
    loc_labels = [-1] if share else list(range(classes))
    loc = loc.reshape(num, count, len(loc_labels), 4)
    conf = conf.reshape(num, count, classes)
    ones = [[1.0] * 4] * count
    in_code = ones if o["encode_variance_in_target"] else variances
    truths: list[list[tuple[int, list[float]]]] = [[] for _ in range(num)]
    for row in truth.reshape(-1, 8).tolist():
        if row[0] != -1 and (o["use_difficult_gt"] or not row[7]):
            truths[int(row[0])].append((int(row[1]), row[3:7]))

    def predicted(image: int, position: int) -> list[list[float]]:
        return [decode(code, priors[p], in_code[p], loc[image, p, position].tolist()) for p in range(count)]

    def codes(image: int, position: int, p: int, j: int) -> tuple[list[float], list[float]]:
        target = encode(code, priors[p], in_code[p], truths[image][j][1])
        got = loc[image, p, position].tolist()
        if o["bp_inside"]:
            ends = priors[p] if o["use_prior_for_matching"] else predicted(image, position)[p]
            got = [t if e < 0 or e > 1 else g for g, t, e in zip(got, target, ends, strict=True)]
        if o["encode_variance_in_target"]:
            got = [g / v for g, v in zip(got, variances[p], strict=True)]
            target = [t / v for t, v in zip(target, variances[p], strict=True)]
        return got, target

    def loc_loss(image: int, position: int, p: int, j: int) -> float:
        got, target = codes(image, position, p, j)
        differences = [g - t for g, t in zip(got, target, strict=True)]
        if o["loc_loss_type"] == "L2":
            return sum(d * d for d in differences) / 2
        return sum(map(smooth_l1, differences))

    def conf_loss(image: int, p: int, label: int) -> float:
        if o["conf_loss_type"] == "SOFTMAX":
            return cross_entropy(conf[image, p], label)
        return sum(logistic(float(conf[image, p, c]), float(c == label)) for c in range(classes))

    # matches[image][label]: index of each prior's truth, and the overlaps
    bipartite = o["match_type"] == "BIPARTITE"
    matches: list[dict[int, tuple[list[int], list[float]]]] = []
    for image in range(num):
        own: dict[int, tuple[list[int], list[float]]] = {}
        boxes = [box for _, box in truths[image]]
        rest = (bipartite, o["overlap_threshold"], o["ignore_cross_boundary_bbox"])
        if truths[image] and o["use_prior_for_matching"]:
            index, largest = match(priors, boxes, *rest)
            for label in loc_labels:
                if share:
                    own[label] = index, largest
                elif label != background:
                    of_class = [i if i > -1 and truths[image][i][0] == label else -1 for i in index]
                    own[label] = of_class, largest
        elif truths[image]:
            for position, label in enumerate(loc_labels):
                if share:
                    own[label] = match(predicted(image, position), boxes, *rest)
                elif label != background:
                    chosen = [j for j, (c, _) in enumerate(truths[image]) if c == label]
                    index, largest = match(predicted(image, position), [boxes[j] for j in chosen], *rest)
                    own[label] = [chosen[i] if i > -1 else i for i in index], largest
        matches.append(own)

    negatives: list[list[int]] = [[] for _ in range(num)]
    mining = o["mining_type"]
    if mining != "NONE":
        for image in range(num):
            for index, largest in matches[image].values():
                loss = [conf_loss(image, p, truths[image][index[p]][0] if index[p] > -1 else background)
                        for p in range(count)]  # fmt: skip
                if mining == "HARD_EXAMPLE":
                    loss = [v + (loc_loss(image, 0, p, index[p]) if index[p] > -1 else 0)
                            for p, v in enumerate(loss)]  # fmt: skip
                    eligible = list(range(count))
                    wanted = o["sample_size"]
                else:
                    eligible = [p for p in range(count) if index[p] == -1 and largest[p] < o["neg_overlap"]]
                    wanted = int(sum(i > -1 for i in index) * o["neg_pos_ratio"])
                order = sorted(eligible, key=lambda p: (-loss[p], p))
                if o.get("nms_threshold"):
                    boxes = priors if o["use_prior_for_nms"] else predicted(image, 0)
                    if o["nms_top_k"] > -1:
                        order = order[: o["nms_top_k"]]
                    order = [p for p in order if area(boxes[p]) >= 1e-5]
                    order = [order[i] for i in suppress([boxes[p] for p in order], o["nms_threshold"])]
                chosen = set(order[: min(wanted, len(eligible))])
                for p in range(count):
                    if index[p] > -1 and mining == "HARD_EXAMPLE" and p not in chosen:
                        index[p] = -3  # dropped
                    elif index[p] == -1 and p in chosen:
                        negatives[image].append(p)

    positives = [(image, position, label, p, own[label][0][p])
                 for image, own in enumerate(matches) for position, label in enumerate(loc_labels)
                 if label in own for p in range(count) if own[label][0][p] > -1]  # fmt: skip
    loc_total = sum(loc_loss(image, position, p, j) for image, position, _, p, j in positives)

    def label_of(image: int, j: int) -> int:
        return background + 1 if o["map_object_to_agnostic"] else truths[image][j][0]

    conf_total = 0.0
    softmax = o["conf_loss_type"] == "SOFTMAX"
    if mining != "NONE":
        rows = [(image, p, label_of(image, j)) for image, _, _, p, j in positives]
        rows += [(image, p, background) for image in range(num) for p in negatives[image]]
        for image, p, label in rows:
            if softmax:
                conf_total += cross_entropy(conf[image, p], label)
            else:
                for c in range(classes):
                    target = 1.0 if c == label else float(background)
                    conf_total += logistic(float(conf[image, p, c]), target)
    elif softmax:
        labels = np.full((num, count), background)
        for image, _, _, p, j in positives:
            labels[image, p] = label_of(image, j)
        conf_total = sum(cross_entropy(conf[i, p], labels[i, p]) for i in range(num) for p in range(count))
    else:
        targets = np.full(num * count * classes, float(background))
        for image, _, _, p, j in positives:
            targets[image * count + p * classes + label_of(image, j)] = 1
        conf_total = sum(map(logistic, conf.ravel().tolist(), targets.tolist()))
    divisor = {"VALID": len(positives), "BATCH_SIZE": num, "FULL": num * count, "NONE": 1}[o["normalization"]]
    return (o["loc_weight"] * loc_total + conf_total) / max(divisor, 1)


def detections(options: dict[str, Any], loc: Any, conf: Any, prior: Any) -> list[list[float]]:
    """The rows of DetectionOutput."""
    o = options
    num, classes = len(loc), o["num_classes"]
    priors, variances = (part.reshape(-1, 4).tolist() for part in prior.reshape(2, -1))
    count = len(priors)
    loc = loc.reshape(num, count, 1 if o["share_location"] else classes, 4)
    conf = conf.reshape(num, count, classes)
    rows: list[list[float]] = []
    for image in range(num):
        own: list[list[float]] = []
        for label in range(classes):
            if label == o["background_label_id"]:
                continue
            order = sorted((p for p in range(count) if conf[image, p, label] > o["confidence_threshold"]),
                           key=lambda p: (-conf[image, p, label], p))  # fmt: skip
            if o["top_k"] > -1:
                order = order[: o["top_k"]]
            boxes = []
            for p in order:
                variance = [1.0] * 4 if o["variance_encoded_in_target"] else variances[p]
                t = loc[image, p, 0 if o["share_location"] else label].tolist()
                boxes.append(decode(o["code_type"], priors[p], variance, t))
            for i in suppress(boxes, o["nms_threshold"], o["eta"]):
                own.append([image, label, float(conf[image, order[i], label]), *boxes[i]])
        if -1 < o["keep_top_k"] < len(own):
            best = sorted(range(len(own)), key=lambda i: (-own[i][2], i))[: o["keep_top_k"]]
            own = [own[i] for i in sorted(best)]
        rows += own
    return rows or [[image, *[-1.0] * 6] for image in range(num)]
