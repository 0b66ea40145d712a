"""DetectionOutput: SSD's boxes from predictions, the overlapping ones suppressed.

Of each image and class but the background: the top_k best of the scores above confidence_threshold (equal
ones: the lower prior first); of them the boxes that overlap no better one that stays by more than
nms_threshold; of all classes together the keep_top_k best.

bottom[0]  (N, 4 L P) codes of boxes (boxes.py); L is 1, or num_classes with share_location: false
bottom[1]  (N, C P) probabilities, C = num_classes
bottom[2]  (1, 2, 4 P) priors and their variances
bottom[3]  optional: the images, for `visualize`
top[0]     (1, 1, K, 7): image, label, score, xmin, ymin, xmax, ymax; images and labels ascend, scores fall.
           Without a box in the whole batch: K = N rows of the image and six times -1. (1, 1, 1, 7) until the
           first forward pass

No backward pass. save_output_param: see detection_files.py; `visualize` is not available.

SSD (weiliu89/caffe, branch ssd): detection_output_layer.cpp. Differs: of equal scores at keep_top_k the lower
label stays (the fork: any); background_label_id: -1, no background, works with share_location (the fork's CPU
code aborts); a prior without area is an error for the codes that divide by its size also on a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor

from imae.files.errors import ExportError
from imae.layers.data.saved_state import State, check_state
from imae.layers.forks.boxes import decode, suppress
from imae.layers.forks.detection_files import DetectionFiles
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter
from imae.prototxt.caffe_pb2 import PriorBoxParameter

logger = logging.getLogger(__name__)

# The threshold where none is given: every finite score is above it.
LOWEST = -float(torch.finfo(torch.float32).max)


@register_layer("DetectionOutput")
class DetectionOutput(Layer):
    min_bottoms, max_bottoms, num_tops = 3, 4, 1
    in_place = False
    open_axes = (2,)
    suppress: Callable[[Tensor, float, float], Tensor] = staticmethod(suppress)  # net/ has a faster one
    undeployed_fields = ("detection_output_param.save_output_param", "detection_output_param.visualize")

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        fields = param.detection_output_param
        if not fields.num_classes:
            raise self.error("Must specify num_classes, larger than 0")
        nms = fields.nms_param
        if not nms.nms_threshold >= 0:
            raise self.error(f"nms_threshold must be non negative.; got {nms.nms_threshold}")
        if not 0 < nms.eta <= 1:
            raise self.error(f"eta must be larger than 0, and at most 1; got {nms.eta}")
        self.top_k = nms.top_k if nms.HasField("top_k") else -1
        self.lowest = fields.confidence_threshold if fields.HasField("confidence_threshold") else LOWEST
        self.loc_classes = 1 if fields.share_location else fields.num_classes
        self.files = DetectionFiles.of(
            self, fields.save_output_param, fields.num_classes, fields.background_label_id
        )
        if fields.visualize:
            logger.warning("layer %r: visualize: no window shows the detections", self.name)

    @cached_property
    def labels(self) -> list[int]:
        """All but the background; made when the bottoms' shapes are known to fit their number."""
        fields = self.param.detection_output_param
        return [label for label in range(fields.num_classes) if label != fields.background_label_id]

    def get_state(self) -> State:
        return {} if self.files is None else self.files.get_state()

    def set_state(self, state: State) -> None:
        if self.files is not None:
            check_state(self, state, self.files.get_state())
            self.files.set_state(state)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        num_classes = self.param.detection_output_param.num_classes
        check_predictions(self, bottom_shapes, self.loc_classes, num_classes)
        return [(1, 1, 1, 7)]

    @property
    def capturable(self) -> bool:
        return False

    @torch.no_grad()
    def forward(self, loc: Tensor, conf: Tensor, prior: Tensor, image: Tensor | None = None) -> Tensor:
        boxes = self._decoded(loc, prior)
        scores = conf.reshape(len(conf), boxes.shape[2], self.param.detection_output_param.num_classes)
        scores = scores.transpose(1, 2)
        rows = [self._detect(index, boxes[index], scores[index]) for index in range(len(scores))]
        if self.files is not None:
            for image_rows in rows:
                self.files.add(image_rows)
        if not sum(map(len, rows)):
            nothing = torch.full((len(scores), 7), -1.0, dtype=loc.dtype, device=loc.device)
            nothing[:, 0] = torch.arange(len(scores), device=loc.device)
            rows = [nothing]
        return torch.cat(rows).reshape(1, 1, -1, 7)

    def _decoded(self, loc: Tensor, prior: Tensor) -> Tensor:
        """(N, L, P, 4)."""
        fields = self.param.detection_output_param
        priors, variances = split_priors(prior)
        check_priors(self, fields.code_type, priors)
        coded = loc.reshape(len(loc), len(priors), self.loc_classes, 4).transpose(1, 2)
        used = None if fields.variance_encoded_in_target else variances
        return decode(fields.code_type, priors, used, coded)

    def _detect(self, image: int, boxes: Tensor, scores: Tensor) -> Tensor:
        """The rows of an image, from its boxes (L, P, 4) and scores (C, P)."""
        fields = self.param.detection_output_param
        rows = [boxes.new_zeros(0, 7)]
        above = scores > self.lowest
        if not above.numel():  # no priors: then num_classes may be any number
            return rows[0]
        for label in self.labels:
            index = above[label].nonzero().squeeze(1)
            if not len(index):
                continue
            order = scores[label, index].sort(descending=True, stable=True).indices
            index = index[order[: self.top_k] if self.top_k > -1 else order]
            candidates = boxes[label if self.loc_classes > 1 else 0, index]
            stays = self.suppress(candidates, fields.nms_param.nms_threshold, fields.nms_param.eta)
            kept = candidates[stays]
            head = kept.new_tensor([image, label]).expand(len(kept), 2)
            rows.append(torch.cat([head, scores[label, index[stays], None], kept], 1))
        merged = torch.cat(rows)
        if -1 < fields.keep_top_k < len(merged):
            best = merged[:, 2].sort(descending=True, stable=True).indices[: fields.keep_top_k]
            merged = merged[best.sort().values]
        return merged

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        if self.param.detection_output_param.nms_param.eta < 1:
            raise ExportError(
                f"layer {self.name!r}: nms_param {{ eta }} below 1 has no ONNX form: NonMaxSuppression has "
                "one threshold; remove eta"
            )
        _Export(self, graph).add(bottoms, tops[0])


def check_predictions(layer: Layer, shapes: Sequence[Shape], loc_classes: int, num_classes: int) -> None:
    """LayerError where predictions of boxes and classes do not fit the priors."""
    loc, conf, prior = (tuple(shape) for shape in shapes[:3])
    if loc[:1] != conf[:1]:
        raise layer.error(f"loc and conf must have as many images; got {loc} and {conf}")
    if len(prior) < 3 or prior[:2] != (1, 2) or prod(prior[3:]) != 1 or prior[2] % 4:
        raise layer.error(f"bottom[2] must be priors (1, 2, 4 P); got {prior}")
    count = prior[2] // 4
    if prod(loc[1:]) != count * loc_classes * 4:
        raise layer.error(
            "Number of priors must match number of location predictions.; "
            f"{count} priors and {loc_classes} classes of boxes need {count * loc_classes * 4}, got {loc}"
        )
    if prod(conf[1:]) != count * num_classes:
        raise layer.error(
            "Number of priors must match number of confidence predictions.; "
            f"{count} priors and {num_classes} classes need {count * num_classes}, got {conf}"
        )


def split_priors(prior: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes and variances (P, 4) of the blob (1, 2, 4 P)."""
    boxes, variances = prior.reshape(2, -1, 4)
    return boxes, variances


def check_priors(layer: Layer, code: PriorBoxParameter.CodeType, priors: Tensor) -> None:
    """LayerError for a prior without area, where the code divides by its size."""
    if code != PriorBoxParameter.CORNER and not bool((priors[:, 2:] > priors[:, :2]).all()):
        raise layer.error("a prior has no width or no height, by which its code divides; mend the priors")


class _Export:
    """The ONNX nodes of a DetectionOutput.

    TopK goes before NonMaxSuppression, because top_k is about scores and not about boxes that stay. So each
    image and class has K boxes of its own, sorted, and is an item of NonMaxSuppression's batch. What stays is
    put back to its place among these, so that the rows' order does not depend on NonMaxSuppression's.
    """

    def __init__(self, layer: DetectionOutput, graph: OnnxGraph) -> None:
        self.layer, self.graph = layer, graph
        self.fields = layer.param.detection_output_param

    def add(self, bottoms: Sequence[str], top: str) -> None:
        graph = self.graph
        num_priors = graph.shape(bottoms[2])[2] // 4
        k = num_priors if self.layer.top_k < 0 else min(self.layer.top_k, num_priors)
        if not k or not self.fields.keep_top_k or not self.layer.labels:
            raise ExportError(
                f"layer {self.layer.name!r}: it never finds a box: top_k, keep_top_k or the number of "
                "classes besides the background is 0"
            )
        labels = self.layer.labels
        boxes, scores = self._boxes(bottoms[0], bottoms[2], num_priors), self._scores(bottoms[1], num_priors)
        best, index = self._top(scores, k)
        all_best, all_boxes = self._flat(best), self._gathered(boxes, index, num_priors, k)
        stays = self._suppressed(all_boxes, best, k)
        count = len(labels) * k
        kept = self._scattered(all_best, stays, graph.node("Gather", [all_best, stays], axis=0), axis=0)
        kept = self._reshape(kept, [-1, count])
        if 0 < self.fields.keep_top_k < count:
            values, places = self._top(kept, self.fields.keep_top_k)
            kept = self._scattered(kept, places, values, axis=1)
        is_kept = graph.node("Greater", [kept, graph.constant(np.array(LOWEST, np.float32))])
        image, place = (self._column(graph.node("NonZero", [is_kept]), row) for row in (0, 1))
        flat = graph.node("Add", [graph.node("Mul", [image, self._ints(count)]), place])
        class_index = graph.node("Div", [place, self._ints(k)])
        columns = [
            self._upright(self._float(image)),
            self._upright(
                graph.node("Gather", [graph.constant(np.array(labels, np.float32)), class_index], axis=0)
            ),
            self._upright(graph.node("Gather", [self._flat(kept), flat], axis=0)),
            graph.node("Gather", [self._reshape(all_boxes, [-1, 4]), flat], axis=0),
        ]
        rows = graph.node("Concat", columns, axis=1)
        rows = graph.node("Concat", [rows, self._rows_of_nothing(bottoms[0], rows)], axis=0)
        graph.node("Reshape", [rows, self._ints(1, 1, -1, 7)], [top])

    def _boxes(self, loc: str, prior: str, num_priors: int) -> str:
        """(N, L, P, 4)."""
        graph = self.graph
        coded = self._reshape(loc, [-1, num_priors, self.layer.loc_classes, 4])
        both = self._reshape(prior, [2, num_priors, 1, 4])
        priors = self._slice(both, 0, 1, axis=0)
        if not self.fields.variance_encoded_in_target:
            coded = graph.node("Mul", [self._slice(both, 1, 2, axis=0), coded])
        low, high = self._slice(priors, 0, 2, axis=3), self._slice(priors, 2, 4, axis=3)
        size = graph.node("Sub", [high, low])
        if self.fields.code_type == PriorBoxParameter.CENTER_SIZE:
            half = graph.constant(np.array(0.5, np.float32))
            centre = graph.node("Mul", [graph.node("Add", [low, high]), half])
            shift = graph.node("Mul", [self._slice(coded, 0, 2, axis=3), size])
            centre = graph.node("Add", [shift, centre])
            grown = graph.node("Mul", [graph.node("Exp", [self._slice(coded, 2, 4, axis=3)]), size])
            grown = graph.node("Mul", [grown, half])
            corners = [graph.node("Sub", [centre, grown]), graph.node("Add", [centre, grown])]
            boxes = graph.node("Concat", corners, axis=3)
        else:
            if self.fields.code_type == PriorBoxParameter.CORNER_SIZE:
                coded = graph.node("Mul", [coded, graph.node("Concat", [size, size], axis=3)])
            boxes = graph.node("Add", [priors, coded])
        return graph.node("Transpose", [boxes], perm=[0, 2, 1, 3])

    def _scores(self, conf: str, num_priors: int) -> str:
        """(N, C, P) without the background."""
        graph = self.graph
        scores = self._reshape(conf, [-1, num_priors, self.fields.num_classes])
        scores = graph.node("Transpose", [scores], perm=[0, 2, 1])
        if len(self.layer.labels) < self.fields.num_classes:
            scores = graph.node("Gather", [scores, self._ints(*self.layer.labels)], axis=1)
        return scores

    def _gathered(self, boxes: str, index: str, num_priors: int, k: int) -> str:
        """(N C, K, 4): the boxes of each image and class that `index` (N, C, K) names."""
        graph, labels = self.graph, self.layer.labels
        if self.layer.loc_classes == 1:
            boxes = graph.node("Squeeze", [boxes, self._ints(1)])
            index = self._reshape(index, [-1, len(labels) * k, 1])
        else:
            if len(labels) < self.fields.num_classes:
                boxes = graph.node("Gather", [boxes, self._ints(*labels)], axis=1)
            boxes = self._reshape(boxes, [-1, num_priors, 4])
            index = self._reshape(index, [-1, k, 1])
        chosen = graph.node("GatherND", [boxes, index], batch_dims=1)
        return self._reshape(chosen, [-1, k, 4])

    def _suppressed(self, boxes: str, best: str, k: int) -> str:
        """The places, among all K of all images and classes, of the boxes that stay."""
        graph = self.graph
        low, high = self._slice(boxes, 0, 2, axis=2), self._slice(boxes, 2, 4, axis=2)
        # A box with a corner on the wrong side has no area; NonMaxSuppression would swap the corners.
        proper = graph.node("Concat", [low, graph.node("Max", [low, high])], axis=2)
        inputs = [proper, self._reshape(best, [-1, 1, k]), self._ints(k)]
        for value in (self.fields.nms_param.nms_threshold, self.layer.lowest):
            inputs.append(graph.constant(np.array([value], np.float32)))
        selected = graph.node("NonMaxSuppression", inputs)
        item, place = (
            self._reshape(self._slice(selected, column, column + 1, axis=1), [-1]) for column in (0, 2)
        )
        return graph.node("Add", [graph.node("Mul", [item, self._ints(k)]), place])

    def _rows_of_nothing(self, loc: str, rows: str) -> str:
        """A row for each image if there are no rows, else none."""
        from onnx import TensorProto, helper  # here, because it is slow to import

        graph = self.graph
        count = self._slice(graph.node("Shape", [loc]), 0, 1, axis=0)
        one = helper.make_tensor("", TensorProto.INT64, [1], [1])
        ones = graph.node("ConstantOfShape", [count], value=one)
        image = self._upright(self._float(self._column(graph.node("NonZero", [ones]), 0)))
        first = graph.constant(np.array([[1, 0, 0, 0, 0, 0, 0]], np.float32))
        others = graph.constant(np.array([[0, -1, -1, -1, -1, -1, -1]], np.float32))
        all_rows = graph.node("Add", [graph.node("Mul", [image, first]), others])
        found = self._slice(graph.node("Shape", [rows]), 0, 1, axis=0)
        nothing = graph.node("Cast", [graph.node("Equal", [found, self._ints(0)])], to=TensorProto.INT64)
        inputs = [all_rows, self._ints(0), graph.node("Mul", [count, nothing]), self._ints(0)]
        return graph.node("Slice", inputs)

    def _scattered(self, like: str, index: str, values: str, axis: int) -> str:
        """Values at their places, the lowest number elsewhere; the shape of `like`."""
        from onnx import TensorProto, helper

        lowest = helper.make_tensor("", TensorProto.FLOAT, [1], [LOWEST])
        empty = self.graph.node("ConstantOfShape", [self.graph.node("Shape", [like])], value=lowest)
        return self.graph.node("ScatterElements", [empty, index, values], axis=axis)

    def _top(self, values: str, count: int) -> tuple[str, str]:
        """The largest values of the last axis, sorted, and their indices."""
        best, index = self.graph.value("best"), self.graph.value("index")
        self.graph.node("TopK", [values, self._ints(count)], [best, index], axis=-1)
        return best, index

    def _slice(self, value: str, start: int, end: int, axis: int) -> str:
        return self.graph.node("Slice", [value, self._ints(start), self._ints(end), self._ints(axis)])

    def _column(self, matrix: str, row: int) -> str:
        """A row of a matrix, as a vector."""
        return self._reshape(self._slice(matrix, row, row + 1, axis=0), [-1])

    def _reshape(self, value: str, shape: Sequence[int]) -> str:
        return self.graph.node("Reshape", [value, self._ints(*shape)])

    def _flat(self, value: str) -> str:
        return self._reshape(value, [-1])

    def _upright(self, vector: str) -> str:
        return self._reshape(vector, [-1, 1])

    def _float(self, value: str) -> str:
        from onnx import TensorProto

        return self.graph.node("Cast", [value], to=TensorProto.FLOAT)

    def _ints(self, *values: int) -> str:
        return self.graph.constant(np.array(values))
