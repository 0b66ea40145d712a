"""Proposal: the regions of interest (ROIs) that a region proposal network finds in an image.

At each cell of the map lie A anchors, a box for each ratio and scale around the cell's place in the image.
Each is moved and scaled by the predictions:

    centre = anchor's centre + (dx, dy) * anchor's size       size = x2 - x1 + 1, and so on
    size   = anchor's size * exp(dw, dh)
    box    = centre -+ size / 2, limited to 0 .. image's size - 1

The pre_nms_topn boxes with the largest scores go on. From the largest score down, a box is taken unless it
overlaps one that was taken before by more than nms_thresh (intersection by union, with sizes as above),
until post_nms_topn boxes are taken.

bottom[0]  (N, 2 A, H, W): scores, of which the last A count; anchors are ratio by ratio, then scale by scale
bottom[1]  (N, 4 A, H, W): dx, dy, dw, dh of each anchor
bottom[2]  the image's height and width, and its scale
top[0]     (R, 5): image, x1, y1, x2, y2
top[1]     (R), optional: scores

No bottom gets a gradient. The host reads the boxes, so on a GPU it waits here. Variants:

    type Proposal, source PVANET
        PVANET's and mini-caffe's. `scale` counts base_size. A box smaller than min_size times the image's
        scale has the score 0. One image.
    type Proposal, source CAFFE_WINDOWS
        The same with `scale` in pixels, and for any number of images, all of the size of the first.
    type Python, module rpn.proposal_layer, layer ProposalLayer
        That of py-faster-rcnn, py-R-FCN and pva-faster-rcnn. base_size is 16. A box smaller than min_size
        times the image's scale is left out. One image. top[1] is (R, 1).

bottom[2] tells whose Proposal is meant if it has three numbers: mini-caffe's, as the others read a fourth
one, the width's scale. If it has more, and no `source` is given, a `scale` below base_size tells PVANET's,
with a warning: in pixels such a box is smaller than the one that the anchors are made from. Else it is an
error.

The Python layer's param_str has feat_stride, scales (by default 8, 16, 32) and ratios (0.5, 1, 2). What these
projects have in their configuration may stand there, too, by its name; the defaults are py-faster-rcnn's:

    RPN_PRE_NMS_TOP_N      pre_nms_topn: 6000 in TEST, 12000 in TRAIN; 0 or less: all
    RPN_POST_NMS_TOP_N     post_nms_topn: 300 in TEST, 2000 in TRAIN; 0 or less: all
    RPN_NMS_THRESH         nms_thresh: 0.7
    RPN_MIN_SIZE           min_size: 16
    RPN_NORMALIZE_STDS, RPN_NORMALIZE_MEANS
                           four numbers each, for py-R-FCN's RPN_NORMALIZE_TARGETS: in TRAIN the predictions
                           are multiplied by the first four, and the other four are added

PVANET (sanghoon/caffe, branch dev_pvanet), caffe-windows (happynear), mini-caffe (luoyetx):
proposal_layer.cpp; py-faster-rcnn (rbgirshick): lib/rpn/proposal_layer.py, with suppression as on the GPU,
its default. Differs: equal scores keep the order of rows, columns and anchors; the forks' order is
undefined.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imae.files.errors import ExportError
from imae.layers.forks.rois import number
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.onnx_sizes import counted, reshaped
from imae.layers.precision import at_least_single
from imae.layers.registry import register_layer, register_python_layer
from imae.prototxt import TRAIN, LayerParameter
from imae.prototxt.caffe_pb2 import ProposalParameter

logger = logging.getLogger(__name__)

Array = NDArray[np.floating]


class RegionProposals(Layer):
    """Base of both types.

    anchors       (A, 4), around the cell at 0, 0
    leaves_out    whether small boxes are left out; else they have the score 0
    """

    num_bottoms = 3
    min_tops, max_tops = 1, 2
    in_place = False
    open_axes = (0,)

    anchors: Array
    feat_stride: int
    min_size: float
    pre_nms_topn: int
    post_nms_topn: int
    nms_thresh: float
    leaves_out: bool
    one_image = True

    @property
    def capturable(self) -> bool:
        return False

    def check_bottoms(self, bottom_shapes: Sequence[Shape]) -> None:
        """LayerError unless the bottoms fit the anchors and each other."""
        scores, deltas, info = bottom_shapes
        count = len(self.anchors)
        if len(scores) != 4 or scores[1] != 2 * count:
            raise self.error(
                f"bottom[0] must be (N, {2 * count}, H, W), two scores for each of {count} anchors; "
                f"got {scores}"
            )
        if deltas != (scores[0], 4 * count, *scores[2:]):
            raise self.error(
                f"bottom[1] must be {(scores[0], 4 * count, *scores[2:])}, four numbers for each of {count} "
                f"anchors; got {deltas}"
            )
        if self.one_image and scores[0] != 1:
            raise self.error(f"Only single item batches are supported; got {scores[0]}")
        if numbers_of_info(info) < 3 or not prod(info):
            raise self.error(f"bottom[2] must have the image's height, width and scale; got the shape {info}")

    def allows_force_backward(self, bottom_index: int) -> bool:
        return False

    def forward(self, scores: Tensor, deltas: Tensor, info: Tensor) -> tuple[Tensor, ...]:
        rois, best = [], []
        with torch.no_grad():
            numbers = info.detach().flatten()[: numbers_of_info(tuple(info.shape))]
            scores, deltas = at_least_single(scores.detach()), at_least_single(deltas.detach())
            for image, (of_image, changes) in enumerate(zip(scores, deltas, strict=True)):
                boxes, values = self._candidates(of_image, changes, numbers)
                order = values.argsort(descending=True, stable=True)[: self.pre_nms_topn]
                boxes, values = boxes[order], values[order]
                kept = suppress(boxes.cpu().numpy(), self.nms_thresh, self.post_nms_topn)
                places = torch.from_numpy(kept).to(boxes.device)
                boxes = boxes[places]
                rois.append(torch.cat([boxes.new_full((len(boxes), 1), image), boxes], 1))
                best.append(values[places])
            tops = torch.cat(rois), self.of_scores(torch.cat(best))
        return tops[: len(self.param.top)]

    def of_scores(self, scores: Tensor) -> Tensor:
        """The scores in the shape of top[1]."""
        return scores

    def changes(self, deltas: Tensor) -> Tensor:
        """dx, dy, dw, dh of the predictions, by row."""
        return deltas

    def smallest(self, info: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest width and height."""
        return self.min_size * info[2], self.min_size * info[2]

    def _candidates(self, scores: Tensor, deltas: Tensor, info: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes of an image, by row, column and anchor, and their scores."""
        count = len(self.anchors)
        centres, sizes = (
            torch.from_numpy(part).to(deltas) for part in self._anchors(tuple(deltas.shape[1:]))
        )
        values = scores[count:].permute(1, 2, 0).flatten()
        deltas = self.changes(deltas.permute(1, 2, 0).reshape(-1, 4))
        centres = deltas[:, :2] * sizes + centres
        halves = 0.5 * (deltas[:, 2:].exp() * sizes)
        limit = (info[[1, 0]] - 1).repeat(2)
        boxes = torch.cat([centres - halves, centres + halves], 1).minimum(limit).clamp(min=0)
        width, height = self.smallest(info)
        sizes = boxes[:, 2:] - boxes[:, :2] + 1
        large = (sizes[:, 0] >= width) & (sizes[:, 1] >= height)
        if self.leaves_out:
            return boxes[large], values[large]
        return boxes, values * large

    def _anchors(self, cells: Shape) -> tuple[Array, Array]:
        """The centres (x, y) and sizes of all anchors on a map of this height and width."""
        sizes = self.anchors[:, 2:] - self.anchors[:, :2] + 1
        rows, columns = np.indices(cells) * self.feat_stride
        corners = np.stack([columns, rows], 2)[:, :, None] + self.anchors[:, :2]
        sizes = np.zeros_like(corners) + sizes
        return (corners + 0.5 * sizes).reshape(-1, 2), sizes.reshape(-1, 2)

    def example(self, bottom_index: int, bottom_shapes: Sequence[Shape]) -> NDArray[np.float32] | None:
        if bottom_index != 2:
            return None
        _, _, height, width = bottom_shapes[0]
        shape = bottom_shapes[2]
        values = np.ones(numbers_of_info(shape), np.float32)
        values[:2] = height * self.feat_stride, width * self.feat_stride
        return np.broadcast_to(values, (prod(shape) // len(values), len(values))).reshape(shape).copy()

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        from onnx import TensorProto  # here, because it is slow to import

        if not self.one_image and graph.shape(bottoms[0])[0] != 1:
            raise ExportError(f"layer {self.name!r}: {self.type} is exported for one image only")
        node = graph.node
        count = len(self.anchors)

        def integers(*values: int) -> str:
            return graph.constant(np.array(values, np.int64))

        def columns(value: str, start: int, end: int) -> str:
            return node("Slice", [value, integers(start), integers(end), integers(1)])

        if graph.free_axes(bottoms[0]):
            centres, sizes = self._anchors_to_onnx(graph, bottoms[0])
        else:
            parts = self._anchors(graph.shape(bottoms[0])[2:])
            centres, sizes = (graph.constant(part.astype(np.float32)) for part in parts)
        scores = node("Transpose", [columns(bottoms[0], count, 2 * count)], perm=[0, 2, 3, 1])
        scores = node("Reshape", [scores, integers(-1)])
        deltas = node("Reshape", [node("Transpose", [bottoms[1]], perm=[0, 2, 3, 1]), integers(-1, 4)])
        centres = node("Add", [node("Mul", [columns(deltas, 0, 2), sizes]), centres])
        scaled = node("Mul", [node("Exp", [columns(deltas, 2, 4)]), sizes])
        halves = node("Mul", [number(graph, 0.5), scaled])
        corners = [node(operator, [centres, halves]) for operator in ("Sub", "Add")]
        info = node("Reshape", [bottoms[2], integers(-1)])
        limit = node("Sub", [node("Gather", [info, integers(1, 0, 1, 0)]), number(graph, 1)])
        boxes = node("Min", [node("Concat", corners, axis=1), limit])
        boxes = node("Max", [boxes, number(graph, 0)])
        size = node("Sub", [columns(boxes, 2, 4), columns(boxes, 0, 2)])
        size = node("Add", [size, number(graph, 1)])
        scale = node("Gather", [info, integers(*self.places_of_scale(graph.shape(bottoms[2])))])
        large = node("GreaterOrEqual", [size, node("Mul", [number(graph, self.min_size), scale])])
        large = node("And", [columns(large, 0, 1), columns(large, 1, 2)])
        large = node("Reshape", [large, integers(-1)])
        if self.leaves_out:
            boxes = node("Compress", [boxes, large], axis=0)
            scores = node("Compress", [scores, large], axis=0)
        else:
            scores = node("Mul", [scores, node("Cast", [large], to=TensorProto.FLOAT)])
        left = node("Min", [node("Shape", [scores]), integers(self.pre_nms_topn)])
        best, order = graph.value("best"), graph.value("order")
        node("TopK", [scores, left], [best, order], axis=0)
        boxes = node("Gather", [boxes, order])
        # The operator's sizes are x2 - x1. Its scores are ranks: the order of equal ones is undefined there.
        grown = node("Add", [boxes, graph.constant(np.array([0, 0, 1, 1], np.float32))])
        ranks = node(
            "Range", [node("Squeeze", [left]), graph.constant(np.array(0)), graph.constant(np.array(-1))]
        )
        ranks = node("Reshape", [node("Cast", [ranks], to=TensorProto.FLOAT), integers(1, 1, -1)])
        chosen = node(
            "NonMaxSuppression",
            [
                node("Unsqueeze", [grown, integers(0)]),
                ranks,
                integers(self.post_nms_topn),
                graph.constant(np.array([min(self.nms_thresh, 1)], np.float32)),
            ],
        )
        chosen = node("Reshape", [columns(chosen, 2, 3), integers(-1)])
        node("Pad", [node("Gather", [boxes, chosen]), integers(0, 1, 0, 0)], [tops[0]])
        if len(tops) > 1:
            shape = integers(-1, *self.of_scores(torch.empty(2)).shape[1:])
            node("Reshape", [node("Gather", [best, chosen]), shape], [tops[1]])

    def _anchors_to_onnx(self, graph: OnnxGraph, scores: str) -> tuple[str, str]:
        """As `_anchors`, on a map of free height and width: that of the scores."""
        node = graph.node
        sizes = (self.anchors[:, 2:] - self.anchors[:, :2] + 1).astype(np.float32)
        centres = (self.anchors[:, :2] + 0.5 * sizes).astype(np.float32)

        def places(axis: int, shape: Sequence[int], direction: Sequence[int]) -> str:
            cells = reshaped(graph, counted(graph, scores, axis), shape)
            steps = self.feat_stride * np.array(direction, np.float32)
            return node("Mul", [cells, graph.constant(steps)])

        grid = node("Add", [places(3, [1, -1, 1, 1], [1, 0]), places(2, [-1, 1, 1, 1], [0, 1])])
        of_all = (
            node("Add", [grid, graph.constant(centres)]),
            node("Add", [node("Mul", [grid, number(graph, 0)]), graph.constant(sizes)]),
        )
        return reshaped(graph, of_all[0], [-1, 2]), reshaped(graph, of_all[1], [-1, 2])

    def places_of_scale(self, info: Shape) -> tuple[int, int]:
        """Where bottom[2] has the scale of the width, and that of the height."""
        return 2, 2


@register_layer("Proposal")
class Proposal(RegionProposals):
    leaves_out = False

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        proposal = param.proposal_param
        for field in ("ratio", "scale"):
            values = getattr(proposal, field)
            if not values or not all(0 < value < math.inf for value in values):
                raise self.error(f"proposal_param.{field} must have values, all above 0; got {list(values)}")
        for field in ("feat_stride", "base_size", "post_nms_topn"):
            if not getattr(proposal, field):
                raise self.error(f"proposal_param.{field} must be > 0")
        if not proposal.nms_thresh >= 0:
            raise self.error(f"proposal_param.nms_thresh must be 0 or more, got {proposal.nms_thresh:g}")
        self.in_pixels = proposal.source == ProposalParameter.CAFFE_WINDOWS
        self.one_image = not self.in_pixels
        sizes = proposal.base_size, list(proposal.ratio), list(proposal.scale)
        self.anchors = anchors_in_pixels(*sizes) if self.in_pixels else anchors_by_base(*sizes, _half_up)
        self.feat_stride, self.min_size = proposal.feat_stride, proposal.min_size
        self.pre_nms_topn, self.post_nms_topn = proposal.pre_nms_topn, proposal.post_nms_topn
        self.nms_thresh = proposal.nms_thresh

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        proposal = self.param.proposal_param
        numbers = numbers_of_info(bottom_shapes[2])
        if numbers < 4 or proposal.HasField("source"):
            return
        if min(proposal.scale) >= proposal.base_size:
            raise self.error(
                f"bottom[2] has {numbers} numbers, which PVANET's Proposal reads (scale counts base_size) "
                "and that of caffe-windows (scale in pixels); give proposal_param { source: PVANET } or "
                "{ source: CAFFE_WINDOWS }"
            )
        logger.warning(
            "layer %r: taken as PVANET's Proposal, whose scale counts base_size, as scale %g is below it; "
            "for that of caffe-windows, in pixels, give proposal_param { source: CAFFE_WINDOWS }",
            self.name,
            min(proposal.scale),
        )

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        self.check_bottoms(bottom_shapes)
        if numbers_of_info(bottom_shapes[2]) == 3 and self.in_pixels:
            raise self.error("the Proposal of caffe-windows reads four numbers of bottom[2]; got 3")
        most = bottom_shapes[0][0] * self.post_nms_topn
        tops: list[Shape] = [(most, 5), (most,)]
        return tops[: len(self.param.top)]

    def smallest(self, info: Tensor) -> tuple[Tensor, Tensor]:
        return self.min_size * info[3 if len(info) > 3 else 2], self.min_size * info[2]

    def places_of_scale(self, info: Shape) -> tuple[int, int]:
        return 3 if numbers_of_info(info) > 3 else 2, 2


@register_python_layer("rpn.proposal_layer", "ProposalLayer")
class ProposalLayer(RegionProposals):
    leaves_out = True

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        in_train = self.phase == TRAIN
        fields = self._fields(param.python_param.param_str)
        self.pre_nms_topn = self._count(fields, "RPN_PRE_NMS_TOP_N", 12000 if in_train else 6000)
        self.post_nms_topn = self._count(fields, "RPN_POST_NMS_TOP_N", 2000 if in_train else 300)
        (self.nms_thresh,) = self._numbers(fields, "RPN_NMS_THRESH", [0.7])
        (self.min_size,) = self._numbers(fields, "RPN_MIN_SIZE", [16.0])
        stds = self._numbers(fields, "RPN_NORMALIZE_STDS", [1.0] * 4)
        means = self._numbers(fields, "RPN_NORMALIZE_MEANS", [0.0] * 4)
        self.stds, self.means = (stds, means) if in_train else ([1.0] * 4, [0.0] * 4)
        strides = fields.pop("feat_stride", [])
        scales = fields.pop("scales", [8.0, 16.0, 32.0])
        ratios = fields.pop("ratios", [0.5, 1.0, 2.0])
        if fields:
            raise self.error(f"python_param.param_str: unknown field {next(iter(fields))!r}")
        if len(strides) != 1 or not strides[0].is_integer() or strides[0] < 1:
            raise self.error("python_param.param_str must give feat_stride, a whole number above 0")
        for name, values in (("scales", scales), ("ratios", ratios)):
            if not values or not all(0 < value < math.inf for value in values):
                raise self.error(
                    f"python_param.param_str: {name} must have values, all above 0; got {values}"
                )
        self.feat_stride = int(strides[0])
        self.anchors = anchors_by_base(16, ratios, scales, np.round)  # halves to the even neighbour
        logger.warning(
            "layer %r: built in, in place of the module %s, which is not imported, nor is its configuration: "
            "RPN_PRE_NMS_TOP_N %d, RPN_POST_NMS_TOP_N %d, RPN_NMS_THRESH %g, RPN_MIN_SIZE %g, "
            "RPN_NORMALIZE_STDS %s, RPN_NORMALIZE_MEANS %s; param_str may give others, by these names",
            self.name,
            param.python_param.module,
            self.pre_nms_topn,
            self.post_nms_topn,
            self.nms_thresh,
            self.min_size,
            self.stds,
            self.means,
        )

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        self.check_bottoms(bottom_shapes)
        tops: list[Shape] = [(1, 5), (1, 1)]
        return tops[: len(self.param.top)]  # one ROI until the first pass, as in the module

    def of_scores(self, scores: Tensor) -> Tensor:
        return scores[:, None]

    def changes(self, deltas: Tensor) -> Tensor:
        return deltas * deltas.new_tensor(self.stds) + deltas.new_tensor(self.means)

    def _numbers(self, fields: dict[str, list[float]], name: str, default: list[float]) -> list[float]:
        values = fields.pop(name, default)
        if len(values) != len(default):
            raise self.error(f"python_param.param_str: {name} must have {len(default)} numbers; got {values}")
        return values

    def _count(self, fields: dict[str, list[float]], name: str, default: int) -> int:
        (value,) = self._numbers(fields, name, [default])
        return int(value) if value > 0 else ALL

    def _fields(self, text: str) -> dict[str, list[float]]:
        """The numbers of each field of a param_str, a mapping in YAML or Python."""
        rest = text.strip()
        if rest[:1] == "{" and rest[-1:] == "}":
            rest = rest[1:-1].strip()
        fields: dict[str, list[float]] = {}
        while rest:
            entry = ENTRY.match(rest)
            if entry is None:
                raise self.error(
                    "python_param.param_str must be like \"'feat_stride': 16\", with numbers and lists of "
                    f"them; cannot read {rest!r}"
                )
            fields[entry["key"]] = [float(value) for value in NUMBER.findall(entry["value"])]
            rest = rest[entry.end() :].strip()
        return fields


ALL = 2**31 - 1  # of the boxes
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
LIST = rf"\s*(?:{NUMBER.pattern}\s*(?:,\s*|(?=[\])])))*"
ENTRY = re.compile(
    rf"""(?P<quote>['"]?)(?P<key>\w+)(?P=quote)\s*:\s*(?:!!python/tuple\s*)?
    (?P<value>\[{LIST}\]|\({LIST}\)|(?:-\s+{NUMBER.pattern}\s*)+|{NUMBER.pattern})\s*(?:,|(?=\s)|$)""",
    re.VERBOSE,
)


def numbers_of_info(shape: Shape) -> int:
    """The numbers that bottom[2] has for an image."""
    return prod(shape[1:]) if len(shape) > 1 else prod(shape)


def anchors_by_base(
    base_size: int, ratios: Sequence[float], scales: Sequence[float], to_whole: Callable[[float], float]
) -> Array:
    """Boxes of base_size * scale; their sizes at scale 1 are whole numbers."""
    boxes = []
    for ratio in ratios:
        width = to_whole(math.sqrt(base_size**2 / ratio))
        height = to_whole(width * ratio)
        boxes += [_around(base_size, width * scale - 1, height * scale - 1) for scale in scales]
    return np.array(boxes)


def anchors_in_pixels(base_size: int, ratios: Sequence[float], scales: Sequence[float]) -> Array:
    """Boxes whose area is scale^2; one less than their sizes are whole numbers."""
    boxes = []
    for ratio in ratios:
        width = math.sqrt(base_size**2 / ratio)
        for scale in scales:
            sides = (math.trunc(side * scale / base_size - 0.5) for side in (width, width * ratio))
            boxes.append(_around(base_size, *sides))
    return np.array(boxes)


def _half_up(value: float) -> float:
    return math.floor(value + 0.5)


def _around(base_size: int, width: float, height: float) -> list[float]:
    """The box from -width/2 to width/2, and so on, around the middle of 0 .. base_size - 1."""
    middle = 0.5 * (base_size - 1)
    x, y = 0.5 * width, 0.5 * height
    return [middle - x, middle - y, middle + x, middle + y]


def suppress(boxes: Array, threshold: float, most: int) -> NDArray[np.int64]:
    """The places of the boxes that are taken, which come with falling scores."""
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    limit = boxes.dtype.type(threshold)
    left = np.arange(len(boxes))
    taken: list[int] = []
    while len(left) and len(taken) < most:
        first, left = left[0], left[1:]
        taken.append(first)
        width = np.maximum(np.minimum(x2[first], x2[left]) - np.maximum(x1[first], x1[left]) + 1, 0)
        height = np.maximum(np.minimum(y2[first], y2[left]) - np.maximum(y1[first], y1[left]) + 1, 0)
        shared = width * height
        left = left[~(shared / (areas[first] + areas[left] - shared) > limit)]
    return np.array(taken, np.int64)
