"""What YOLO's layers have in common: boxes out of a map, overlaps, and the rows of a detection output.

A box is (centre x, centre y, width, height) on its last axis, in parts of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, pi
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from imae.files.errors import ExportError
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.precision import at_least_single

COORDS = 4  # x, y, width, height; then the object's score, then the classes'


class Scale(NamedTuple):
    """One map of predictions: its height and width, and the anchors of its boxes.

    anchors  (boxes of a cell, 2): width and height, in units of which the image has `units` (width, height)
    """

    height: int
    width: int
    anchors: Tensor
    units: tuple[int, int]


def anchors_of(layer: Layer, biases: Sequence[float], indices: Sequence[int]) -> Tensor:
    """The pairs of `biases` with these indices, (len(indices), 2)."""
    # A range is not looked through: a prototxt may ask for 2^31 boxes.
    last = indices[-1] if indices and isinstance(indices, range) else max(indices, default=0)
    if not indices or last >= len(biases) // 2:
        raise layer.error(
            f"biases must have a width and a height for each anchor, {2 * (last + 1)} "
            f"numbers or more; got {len(biases)}"
        )
    return torch.tensor([biases[2 * index : 2 * index + 2] for index in indices])


def check_map(layer: Layer, name: str, shape: Shape, boxes: int, classes: int) -> None:
    """LayerError unless a map has the numbers of `boxes` boxes in each cell."""
    channels = boxes * (COORDS + 1 + classes)
    if len(shape) != 4 or shape[1] != channels:
        raise layer.error(
            f"{name} must be (N, {channels}, H, W), for {boxes} boxes of {COORDS} coordinates, an object and "
            f"{classes} classes; got {shape}"
        )


def cells_of(x: Tensor, boxes: int) -> Tensor:
    """A map (N, boxes numbers, H, W) as (N, H, W, boxes, numbers), in single precision at least."""
    n, numbers, height, width = x.shape
    return at_least_single(x).reshape(n, boxes, numbers // boxes, height, width).permute(0, 3, 4, 1, 2)


def decoded(cells: Tensor, scale: Scale) -> Tensor:
    """The boxes (N, H, W, anchors, 4) of a map's `cells_of`.

    The first two numbers give the centre's place in its cell, by the logistic function. The exponential of
    the next two is the size in anchors.
    """
    height, width, anchors, units = scale
    xy, wh = cells[..., :2].sigmoid(), cells[..., 2:COORDS]
    rows, columns = (torch.arange(size, dtype=xy.dtype, device=xy.device) for size in (height, width))
    return torch.stack(
        (
            (columns.view(1, 1, -1, 1) + xy[..., 0]) / width,
            (rows.view(1, -1, 1, 1) + xy[..., 1]) / height,
            wh[..., 0].exp() * anchors[:, 0] / units[0],
            wh[..., 1].exp() * anchors[:, 1] / units[1],
        ),
        -1,
    )


def _common_and_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The areas of two boxes' intersection and union."""
    centre, other, size, size_of_other = a[..., :2], b[..., :2], a[..., 2:], b[..., 2:]
    low = torch.maximum(centre - size / 2, other - size_of_other / 2)
    high = torch.minimum(centre + size / 2, other + size_of_other / 2)
    sides = high - low
    common = torch.where((sides < 0).any(-1), 0, sides[..., 0] * sides[..., 1])
    return common, size[..., 0] * size[..., 1] + size_of_other[..., 0] * size_of_other[..., 1] - common


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection by union; NaN for two boxes without an area."""
    common, union = _common_and_union(a, b)
    return common / union


def penalised_overlap(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """The overlap, minus what `kind` (GIOU, DIOU, CIOU; others: nothing) subtracts for the distance."""
    common, union = _common_and_union(a, b)
    iou = common / union
    if kind not in ("GIOU", "DIOU", "CIOU"):
        return iou
    low = torch.minimum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = torch.maximum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    hull = high - low
    if kind == "GIOU":
        around = hull[..., 0] * hull[..., 1]
        penalty = (around - union) / around
    else:
        around = (hull * hull).sum(-1)
        distance = ((a[..., :2] - b[..., :2]) ** 2).sum(-1) / around
        if kind == "DIOU":
            penalty = distance**0.6
        else:
            shape = aspect_loss(a, b)
            penalty = distance + shape / (1 - iou + shape + 1e-6) * shape
    return torch.where(around == 0, iou, iou - penalty)


def aspect_loss(a: Tensor, b: Tensor) -> Tensor:
    """How far two boxes' ratios of width to height are apart."""
    angle = torch.atan(b[..., 2] / b[..., 3]) - torch.atan(a[..., 2] / a[..., 3])
    return 4 / pi**2 * angle * angle


def best_first(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels that remain, the best score first.

    A box is removed if it overlaps a better one that remains by `threshold` or more, whatever their classes.
    Equal scores keep their order.
    """
    order = scores.sort(descending=True, stable=True).indices
    chosen: list[Tensor] = []
    while len(order):
        first, order = order[:1], order[1:]
        chosen.append(first)
        removed = overlap(boxes[first], boxes[order]) >= threshold
        order = order[~removed]
    kept = torch.cat(chosen) if chosen else order
    return boxes[kept], scores[kept], labels[kept]


def rows_of(boxes: Tensor, scores: Tensor, labels: Tensor, images: int) -> Tensor:
    """(1, 1, K, 7): 0, label + 1, score, xmin, ymin, xmax, ymax; without a box (image, -1, ...) for each."""
    if not len(boxes):
        rows = boxes.new_full((images, 7), -1)
        rows[:, 0] = torch.arange(images, dtype=rows.dtype, device=rows.device)
        return rows.view(1, 1, -1, 7)
    half = boxes[:, 2:] / 2
    columns = (
        torch.zeros_like(scores).unsqueeze(1),
        labels.to(scores.dtype).unsqueeze(1) + 1,
        scores.unsqueeze(1),
        boxes[:, :2] - half,
        boxes[:, :2] + half,
    )
    return torch.cat(columns, 1).view(1, 1, -1, 7)


# -- ONNX --------------------------------------------------------------------------------------------------


class Values(NamedTuple):
    """Values of an ONNX graph: boxes (N, H, W, anchors, 4), scores and labels (N, H, W, anchors, 1)."""

    boxes: str
    scores: str
    labels: str


def add_cells(graph: OnnxGraph, bottom: str, scale: Scale, numbers: int) -> tuple[str, str, str]:
    """Add a map as (N, H, W, anchors, numbers): boxes, objects after the sigmoid, classes as they are."""
    height, width, anchors, units = scale
    shape = graph.constant(np.array([-1, len(anchors), numbers, height, width]))
    cells = graph.node("Transpose", [graph.node("Reshape", [bottom, shape])], perm=[0, 3, 4, 1, 2])

    def part(first: int, end: int) -> str:
        limits = (graph.constant(np.array([number])) for number in (first, end, 4))
        return graph.node("Slice", [cells, *limits])

    def constant(values: object) -> str:
        return graph.constant(np.asarray(values, np.float32))

    rows, columns = np.mgrid[:height, :width]
    places = np.stack([columns, rows], -1)[None, :, :, None]
    offsets = graph.node("Add", [constant(places), graph.node("Sigmoid", [part(0, 2)])])
    centres = graph.node("Div", [offsets, constant([width, height])])
    sizes = graph.node("Mul", [graph.node("Exp", [part(2, COORDS)]), graph.constant(anchors.float())])
    boxes = graph.node("Concat", [centres, graph.node("Div", [sizes, constant(units)])], axis=4)
    return boxes, graph.node("Sigmoid", [part(COORDS, COORDS + 1)]), part(COORDS + 1, numbers)


def add_best_class(graph: OnnxGraph, boxes: str, objects: str, classes: str) -> Values:
    """Add the best class of each box.

    The others need not be looked at: the same box overlaps itself wholly, so that the best one removes them.
    """
    best = graph.node("ArgMax", [classes], axis=4, keepdims=1)
    scores = graph.node("Mul", [graph.node("GatherElements", [classes, best], axis=4), objects])
    return Values(boxes, scores, best)


def add_rows(
    layer: Layer,
    graph: OnnxGraph,
    bottom: str,
    scales: Sequence[Values],
    top: str,
    above: float,
    threshold: float,
) -> None:
    """Add `best_first` of the scores > `above`, and `rows_of`; `bottom` has the images on axis 0."""
    from onnx import TensorProto  # here, because it is slow to import

    if not 0 < threshold < 1:
        raise ExportError(
            f"layer {layer.name!r}: nms_threshold must be above 0 and below 1 in ONNX; got {threshold:g}"
        )

    def integers(*values: int) -> str:
        return graph.constant(np.array(values))

    def flat(values: Sequence[str], shape: tuple[int, ...]) -> str:
        parts = [graph.node("Reshape", [value, integers(*shape)]) for value in values]
        return parts[0] if len(parts) == 1 else graph.node("Concat", parts, axis=shape.index(-1))

    boxes = flat([scale.boxes for scale in scales], (1, -1, 4))
    scores = flat([scale.scores for scale in scales], (1, 1, -1))
    labels = flat([scale.labels for scale in scales], (-1,))
    # The operator removes what overlaps by more than its threshold, not by as much.
    limits = np.nextafter(np.float32(threshold), np.float32(0)), np.float32(above)
    selected = graph.node(
        "NonMaxSuppression",
        [boxes, scores, integers(2**31 - 1), *(graph.constant(limit.reshape(1)) for limit in limits)],
        center_point_box=1,
    )
    kept = graph.node("Gather", [selected, graph.constant(np.array(2))], axis=1)

    def column(value: str, width: int = 1) -> str:
        chosen = graph.node("Gather", [graph.node("Reshape", [value, integers(-1, width)]), kept], axis=0)
        return chosen if width > 1 else graph.node("Cast", [chosen], to=TensorProto.FLOAT)

    def number(value: float) -> str:
        return graph.constant(np.array([[value]], np.float32))

    box, score = column(boxes, 4), column(scores)
    centre, size = (
        graph.node("Slice", [box, integers(first), integers(first + 2), integers(1)]) for first in (0, 2)
    )
    half = graph.node("Div", [size, number(2)])
    rows = graph.node(
        "Concat",
        [
            graph.node("Mul", [score, number(0)]),
            graph.node("Add", [column(labels), number(1)]),
            score,
            graph.node("Sub", [centre, half]),
            graph.node("Add", [centre, half]),
        ],
        axis=1,
    )
    # Below them the rows of images without a box. As many rows remain as there are boxes; of none, as images.
    images = graph.node("Gather", [graph.node("Shape", [bottom]), integers(0)], axis=0)
    found = graph.node("Gather", [graph.node("Shape", [rows]), integers(0)], axis=0)
    zero, one = (graph.constant(np.array(value)) for value in (0, 1))
    count = graph.node("Squeeze", [images, integers(0)])
    image = graph.node("Cast", [graph.node("Range", [zero, count, one])], to=TensorProto.FLOAT)
    image = graph.node("Reshape", [image, integers(-1, 1)])
    nothing = graph.node("Expand", [number(-1), graph.node("Concat", [images, integers(6)], axis=0)])
    everything = graph.node("Concat", [rows, graph.node("Concat", [image, nothing], axis=1)], axis=0)
    is_empty = graph.node("Equal", [found, integers(0)])
    remaining = graph.node("Where", [is_empty, images, found])
    result = graph.node("Slice", [everything, integers(0), remaining, integers(0)])
    graph.node("Reshape", [result, integers(1, 1, -1, 7)], [top])


def just_below(number: float) -> float:
    """The largest number in single precision that is less."""
    return float(np.nextafter(np.float32(number), np.float32(-inf)))
