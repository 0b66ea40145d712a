"""EvalDetection: the boxes of YOLO version 2 and whether each is right, to compute a mean average precision
from.

The boxes are those of RegionLoss, each with its best class; their score is that of the object (OBJ), the
softmax of the class (PROB), or their product (MULTIPLY). All boxes of an image are sorted by score, and one
that overlaps a better one by `nms` or more is removed, whatever their classes; so are scores below 0.005.
Without `nms`, or with one below 0, there are no boxes.

bottom[0]  (N, 5 (5 + num_class), side, side)
bottom[1]  (1, 1, G, 8), rows of image, class + 1, instance, xmin, ymin, xmax, ymax, difficult
top[0]     (N, num_class + 4 * 5 side^2): how many boxes of the label each class has, then four numbers for
           each box, by class and falling score: class, score, right, wrong; the rest is 0. A box is right if
           it overlaps one of its class by threshold or more, and no better box overlapped that one most. It
           is wrong if a better one did, or if its class is not in the image. Otherwise it is neither

The host must know how many boxes remain, so on a GPU it waits here.

intel/caffe: eval_detection_layer.cpp. sqrt and constriant do nothing. Differs: num_object other than 5, of
which the fork looks at five, too few biases, classes and images that do not exist are errors. Boxes of equal
score stay in the order row, column, box, which in the fork is undefined.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from imae.layers.forks.yolo_boxes import (
    COORDS,
    Scale,
    anchors_of,
    best_first,
    cells_of,
    check_map,
    decoded,
    overlap,
)
from imae.layers.forks.yolo_truths import TruthReader, Truths, ends_of_runs
from imae.layers.layer import Layer, Shape
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter
from imae.prototxt.caffe_pb2 import EvalDetectionParameter

BOXES = 5  # of each cell
LEAST_SCORE = 0.005


@register_layer("EvalDetection")
class EvalDetection(Layer):
    num_bottoms, num_tops = 2, 1
    deployed = False
    constant_buffers = ("anchors",)
    anchors: Tensor

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        own = param.eval_detection_param
        self.classes, self.side = own.num_class, own.side
        if own.num_object != BOXES:
            raise self.error(
                f"num_object must be {BOXES}, as in Intel's EvalDetection (yeahkun/caffe-yolo's is another "
                f"layer, which imae has not); got {own.num_object}"
            )
        if self.classes < 1:
            raise self.error(f"num_class must be at least 1; got {self.classes}")
        self.register_buffer("anchors", anchors_of(self, own.biases, range(BOXES)), persistent=False)
        for name in ("sqrt", "constriant"):
            if own.HasField(name):
                self.note_leftover(f"eval_detection_param.{name}")
        self.truths = TruthReader(self, self.classes)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        x, label = (tuple(shape) for shape in bottom_shapes)
        check_map(self, "bottom[0]", x, BOXES, self.classes)
        if x[2:] != (self.side, self.side):
            raise self.error(f"side must be height and width of bottom[0]; got {self.side} and {x}")
        if len(label) != 4 or label[:2] != (1, 1) or label[3] != 8:
            raise self.error(
                "bottom[1] must be (1, 1, G, 8), rows of image, class, instance, xmin, ymin, xmax, ymax, "
                f"difficult; got {label}"
            )
        return [(x[0], self.classes + 4 * BOXES * self.side**2)]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return False

    @property
    def capturable(self) -> bool:
        return False

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        own, x = self.param.eval_detection_param, x.detach()
        truths = self.truths.per_batch(label.detach(), len(x))
        cells = cells_of(x, BOXES)
        scale = Scale(self.side, self.side, self.anchors, (self.side, self.side))
        boxes = decoded(cells, scale).flatten(1, 3)
        scores, labels = cells[..., COORDS + 1 :].softmax(-1).max(-1)
        objects = cells[..., COORDS].sigmoid()
        if own.score_type == EvalDetectionParameter.OBJ:
            scores = objects
        elif own.score_type == EvalDetectionParameter.MULTIPLY:
            scores = objects * scores
        top = x.new_zeros(self.top_shapes([tuple(x.shape), tuple(label.shape)])[0])
        top[:, : self.classes].scatter_add_(1, truths.labels, truths.matched.to(top.dtype))
        for image in range(len(x) if own.nms >= 0 else 0):
            found = scores[image].flatten()
            counts = found >= LEAST_SCORE
            kept = best_first(boxes[image, counts], found[counts], labels[image].flatten()[counts], own.nms)
            rows = self._judged(*kept, Truths(*(part[image] for part in truths)))
            top[image, self.classes : self.classes + rows.numel()] = rows.flatten()
        return top

    def _judged(self, boxes: Tensor, scores: Tensor, labels: Tensor, truths: Truths) -> Tensor:
        """(K, 4): class, score, right, wrong, by class, of boxes sorted by score and truths of one image."""
        count = len(truths.boxes)
        order = labels.sort(stable=True).indices
        boxes, scores, labels = boxes[order], scores[order], labels[order]
        if not count:
            nothing = torch.zeros_like(scores)
            return torch.stack((labels.to(scores.dtype), scores, nothing, nothing + 1), 1)
        is_of_class = truths.matched & (truths.labels == labels.unsqueeze(1))
        overlaps = overlap(boxes.unsqueeze(1), truths.boxes).nan_to_num(-1)
        best, truth = torch.where(is_of_class, overlaps, -1).max(1)
        is_near = is_of_class.any(1) & (best >= self.param.eval_detection_param.threshold)
        right, _ = ends_of_runs(torch.where(is_near, truth, count), count)
        wrong = (is_near & ~right) | ~is_of_class.any(1)
        return torch.stack([part.to(scores.dtype) for part in (labels, scores, right, wrong)], 1)
