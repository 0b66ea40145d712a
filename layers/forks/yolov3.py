"""Yolov3: the loss of YOLO version 3, on the map of one scale.

Each cell has boxes with an anchor a each: x, y, w, h, the object o, the classes c. With the logistic function
s, such a box has the centre ((column + s(x)) / W, (row + s(y)) / H) and the size (exp(w) a_w / (W k), exp(h)
a_h / (H k)), k anchors_scale. The anchors of this map are those of the biases that `mask` names. A box of the
label belongs to the cell of its centre. There it is assigned to the anchor, of all biases, that it overlaps
most, if this map has it; and to each other anchor of this map that it overlaps by more than iou_thresh. (The
fork compares that anchor's number with the place of the best one in the mask. So with another mask than 0, 1,
2, ... the best one is assigned again.) d is what the diff is made from:

    o                          0 - s(o); 0 if the overlap with any box of the label is above thresh
    o, assigned                1 - s(o), with use_logic_gradient times object_scale
    c, assigned                class_scale ([c is the class] - s(c)), [] smoothed to 1 - e / 2 and e / 2, e
                               being label_smooth_eps; a further box in this place sets its own class alone
    x, y, w, h, MSE            coord_scale (2 - width height) (t - s(x)), (t - w); the last box counts
    x, y, w, h, others         iou_normalizer times the gradient of the overlap (IOU, GIOU, DIOU, CIOU) as
                               in Darknet, limited to max_delta; with accumulate the sum of a place's boxes

Overlaps are those of iou_loss, but for IOU and MSE the plain one. The diff is -d / N, with use_logic_gradient
times s' in x, y, o, c (with an overlap as the loss, of x and y that is x (1 - x)). The loss is sum d^2 / N;
with an overlap, the sum over o and c alone, plus iou_normalizer times the mean of 1 - overlap of all that is
assigned, DIOU in the case of IOU, divided by N. With use_focal_loss the first assignment of a place
multiplies its d of c by -0.5 (1 - p) (2 p log p + p - 1), p being the score of the class, and smooths
nothing.

bottom[0]  (N, num (5 + num_class), H, W)
bottom[1]  (N, 1, B, 5), rows of class, centre x, centre y, width, height, until the first one with x 0 (for
           the overlap) or with width 0 (for the rest)
top[0]     (), the loss

eric612/MobileNet-YOLO: yolov3_layer.cpp. side and noobject_scale do nothing. Differs: too few masks or
biases, classes that do not exist, and centres outside of the image are errors. The fork takes a label as 300
boxes for each image, whatever its shape, and rounds overlaps to single precision. A score of exactly 0 or 1,
whose d is 0, is for further boxes like any other. The lines about the loss in the fork's log are not written.
"""

from collections.abc import Sequence
from math import pi
from typing import NamedTuple

import torch
from torch import Tensor

from imae.layers.forks.yolo_boxes import (
    COORDS,
    Scale,
    anchors_of,
    cells_of,
    check_map,
    decoded,
    penalised_overlap,
)
from imae.layers.forks.yolo_truths import (
    TruthReader,
    Truths,
    best_overlap,
    ends_of_runs,
    loss_with_gradient,
    one_hot,
)
from imae.layers.labels import refuse_gradient
from imae.layers.layer import LossLayer, Shape
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter
from imae.prototxt.caffe_pb2 import Yolov3Parameter


class Assigned(NamedTuple):
    """What is assigned, in the fork's order.

    rows    (K), the place among all boxes of all cells; the number of places for none
    anchor  (K), the place of the anchor in the mask
    truth   (K, 4)
    cell    (K, 2), column and row
    label   (K)
    """

    rows: Tensor
    anchor: Tensor
    truth: Tensor
    cell: Tensor
    label: Tensor


@register_layer("Yolov3")
class Yolov3(LossLayer):
    """
    all_anchors    (all biases, 2)
    anchors        (num, 2), of this map
    place_in_mask  of each of all anchors; -1 for those of other maps
    """

    constant_buffers = ("all_anchors", "anchors", "place_in_mask")
    all_anchors: Tensor
    anchors: Tensor
    place_in_mask: Tensor

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        own = param.yolov3_param
        self.classes, self.boxes = own.num_class, own.num
        self.kind: str = Yolov3Parameter.IOU_LOSS.Name(own.iou_loss)
        for name in ("num_class", "num", "anchors_scale"):
            if getattr(own, name) < 1:
                raise self.error(f"{name} must be at least 1; got {getattr(own, name)}")
        if len(own.mask) < self.boxes:
            raise self.error(f"mask must have num, {self.boxes}, numbers; got {len(own.mask)}")
        self.mask = list(own.mask[: self.boxes])
        anchors = anchors_of(self, own.biases, range(len(own.biases) // 2))
        place = {n: index for index, n in reversed(list(enumerate(self.mask)))}  # the first one of each
        places = torch.tensor([place.get(n, -1) for n in range(len(anchors))])
        self.register_buffer("all_anchors", anchors, persistent=False)
        self.register_buffer("anchors", anchors_of(self, own.biases, self.mask), persistent=False)
        self.register_buffer("place_in_mask", places, persistent=False)
        if own.HasField("noobject_scale"):
            self.note_leftover("yolov3_param.noobject_scale")
        self.truths = TruthReader(self, self.classes)

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        own, side = self.param.yolov3_param, bottom_shapes[0][-1:]
        if own.HasField("side") and (own.side,) != side:
            self.note_leftover("yolov3_param.side")

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        x, label = (tuple(shape) for shape in bottom_shapes)
        check_map(self, "bottom[0]", x, self.boxes, self.classes)
        if len(label) != 4 or label[1] != 1 or label[3] != 5:
            raise self.error(
                f"bottom[1] must be (N, 1, B, 5), rows of class, x, y, width, height; got {label}"
            )
        return [()]

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        refuse_gradient(self, 1, label, f"{self.type} Layer cannot backpropagate to label inputs.")
        own, values = self.param.yolov3_param, x.detach()
        cells = cells_of(values, self.boxes)
        diff, lost, count = self._diff(cells, label.detach())
        if self.kind == "MSE":
            loss = (diff * diff).sum()
        else:
            numbers = diff[..., COORDS:]
            loss = (numbers * numbers).sum() + own.iou_normalizer * lost / count.clamp(min=1)
        if own.use_logic_gradient:
            slope = cells.sigmoid() * (1 - cells.sigmoid())
            slope[..., 2:COORDS] = 1
            if self.kind != "MSE":
                slope[..., :2] = cells[..., :2] * (1 - cells[..., :2])
            diff = diff * slope
        gradient = diff.permute(0, 3, 4, 1, 2).reshape(x.shape)
        return loss_with_gradient(x, loss / len(x), gradient / len(x))

    def _diff(self, cells: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The diff like `cells`, before any division; the sum of 1 - overlap; the number of assignments."""
        own = self.param.yolov3_param
        count, height, width, per_cell, numbers = cells.shape
        truths = self.truths.per_image(label)
        units = width * own.anchors_scale, height * own.anchors_scale
        scale = Scale(height, width, self.anchors, units)
        boxes = decoded(cells, scale)
        overlaps = penalised_overlap(boxes.unsqueeze(-2), truths.boxes[:, None, None, None], self.kind)
        objects = cells[..., COORDS].sigmoid()
        diff = torch.zeros_like(cells)
        diff[..., COORDS] = torch.where(best_overlap(boxes, truths, overlaps) > own.thresh, 0, objects)

        rows = count * height * width * per_cell
        assigned = self._assigned(truths, (height, width), units, rows)
        table = torch.cat((diff.reshape(rows, numbers), diff.new_zeros(1, numbers)))
        if not len(assigned.rows):
            return diff, diff.new_zeros(()), diff.new_zeros(())
        place = assigned.rows.clamp(max=rows - 1)
        values, predicted = cells.reshape(rows, numbers)[place], boxes.reshape(rows, 4)[place]
        first, last = ends_of_runs(assigned.rows, rows)
        is_one = assigned.rows < rows
        kind = "DIOU" if self.kind == "IOU" else self.kind
        found = penalised_overlap(predicted, assigned.truth, kind)
        lost = torch.where(is_one, 1 - found, 0).sum()

        wrong = values[:, COORDS].sigmoid() - 1
        table[assigned.rows, COORDS] = wrong * (own.object_scale if own.use_logic_gradient else 1)
        scores = values[:, COORDS + 1 :].sigmoid()
        table[torch.where(first, assigned.rows, rows), COORDS + 1 :] = self._of_classes(scores, assigned)
        again = torch.where(first, rows, assigned.rows)
        positive = self._smoothed(torch.ones_like(wrong))
        own_score = scores.gather(1, assigned.label.unsqueeze(1)).squeeze(1)
        table[again, COORDS + 1 + assigned.label] = -own.class_scale * (positive - own_score)
        if self.kind == "MSE":
            errors = self._of_coordinates(values, assigned, (height, width), units)
            table[torch.where(last, assigned.rows, rows), :COORDS] = errors
        else:
            step = self._of_overlap(values, predicted, assigned.truth)
            if own.accumulate:
                table[:, :COORDS] = table[:, :COORDS].index_add(0, assigned.rows, step)
            else:
                table[torch.where(last, assigned.rows, rows), :COORDS] = step
        return table[:-1].view_as(cells), lost, is_one.sum()

    def _assigned(
        self, truths: Truths, sizes: tuple[int, int], units: tuple[int, int], rows: int
    ) -> Assigned:
        own, (height, width), device = self.param.yolov3_param, sizes, truths.boxes.device
        row, column = self.truths.cells(truths, height, width)
        image = torch.arange(len(row), device=device).unsqueeze(1)
        first_row = ((image * height + row) * width + column) * self.boxes
        anchors = torch.stack((self.all_anchors[:, 0] / units[0], self.all_anchors[:, 1] / units[1]), 1)
        sizes_of_anchors = torch.cat((torch.zeros_like(anchors), anchors), -1)
        sizes_of_truths = torch.cat((torch.zeros_like(truths.boxes[..., 2:]), truths.boxes[..., 2:]), -1)
        overlaps = penalised_overlap(sizes_of_anchors, sizes_of_truths.unsqueeze(-2), self.kind).nan_to_num(0)
        best, anchor = overlaps.max(-1)
        place = self.place_in_mask[anchor]
        matched = truths.matched & (best > 0) & (place >= 0)
        places, assigned = [place.clamp(min=0)], [matched]
        if own.iou_thresh < 1:
            passed_over = torch.where(matched, place, torch.where(best > 0, anchor, -1))
            for number in sorted(set(self.mask)):
                places.append(torch.full_like(place, self.mask.index(number)))
                assigned.append(
                    truths.matched & (passed_over != number) & (overlaps[..., number] > own.iou_thresh)
                )
        of_anchor, is_assigned = torch.stack(places, -1), torch.stack(assigned, -1)
        times = of_anchor.shape[-1]

        def repeated(values: Tensor) -> Tensor:
            return values.flatten(0, 1).repeat_interleave(times, 0)

        return Assigned(
            torch.where(is_assigned, first_row.unsqueeze(-1) + of_anchor, rows).flatten(),
            of_anchor.flatten(),
            repeated(truths.boxes),
            repeated(torch.stack((column, row), -1)),
            repeated(truths.labels),
        )

    def _smoothed(self, target: Tensor) -> Tensor:
        eps = self.param.yolov3_param.label_smooth_eps
        return target * (1 - eps) + 0.5 * eps

    def _of_classes(self, scores: Tensor, assigned: Assigned) -> Tensor:
        """The diff of all classes of a place, by the first box that is assigned to it."""
        own = self.param.yolov3_param
        target = one_hot(assigned.label, self.classes, scores)
        if not own.use_focal_loss:
            return -own.class_scale * (self._smoothed(target) - scores)
        p = scores.gather(1, assigned.label.unsqueeze(1)) + 1e-15
        return 0.5 * own.class_scale * (target - scores) * (1 - p) * (2 * p * p.log() + p - 1)

    def _of_coordinates(
        self, values: Tensor, assigned: Assigned, sizes: tuple[int, int], units: tuple[int, int]
    ) -> Tensor:
        (height, width), (x, y, w, h) = sizes, assigned.truth.unbind(1)
        weight = (self.param.yolov3_param.coord_scale * (2 - w * h)).unsqueeze(1)
        of_centre = torch.stack((x * width, y * height), 1) - assigned.cell - values[:, :2].sigmoid()
        size = torch.stack((w * units[0], h * units[1]), 1)
        of_size = torch.log(size / self.anchors[assigned.anchor]) - values[:, 2:COORDS]
        return -weight * torch.cat((of_centre, of_size), 1)

    def _of_overlap(self, values: Tensor, predicted: Tensor, truth: Tensor) -> Tensor:
        own = self.param.yolov3_param
        boxes = torch.cat((predicted[:, :2], torch.where(predicted[:, 2:] == 0, 1, predicted[:, 2:])), 1)
        centre, size = overlap_gradient(boxes, truth, self.kind)
        step = own.iou_normalizer * torch.cat((centre, size * values[:, 2:COORDS].exp()), 1)
        step = torch.where(step.isfinite(), step, 0)
        return -step.clamp(-own.max_delta, own.max_delta)


def overlap_gradient(boxes: Tensor, truth: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """What Darknet takes for the gradient of an overlap with respect to centre and size of `boxes` (K, 4).

    It is twice the derivative for the size, and not that of an intersection where two boxes have none.
    """
    half, half_of_truth = boxes[:, 2:] / 2, truth[:, 2:] / 2
    low, high = boxes[:, :2] - half, boxes[:, :2] + half
    low_of_truth, high_of_truth = truth[:, :2] - half_of_truth, truth[:, :2] + half_of_truth
    size, size_of_truth = high - low, high_of_truth - low_of_truth
    common = torch.minimum(high, high_of_truth) - torch.maximum(low, low_of_truth)
    apart = (common <= 0).any(1, keepdim=True)
    intersection = common.prod(1, keepdim=True)
    union = size.prod(1, keepdim=True) + size_of_truth.prod(1, keepdim=True) - intersection
    others = [1, 0]  # the other side's lengths

    # of the intersection, the union and the hull, by the low and the high corner
    common_low = torch.where(low > low_of_truth, -common[:, others], 0)
    common_high = torch.where(high < high_of_truth, common[:, others], 0)
    union_low, union_high = -size[:, others] - common_low, size[:, others] - common_high
    has_union = union > 0
    square = union * union
    by_low = torch.where(has_union, (union * common_low - intersection * union_low) / square, 0)
    by_high = torch.where(has_union, (union * common_high - intersection * union_high) / square, 0)
    by_low = torch.where(low < high, by_low, by_high)
    by_high = torch.where(low < high, by_high, by_low)
    hull = torch.maximum(high, high_of_truth) - torch.minimum(low, low_of_truth)
    if kind == "GIOU":
        around = hull.prod(1, keepdim=True)
        hull_low = torch.where(low < low_of_truth, -hull[:, others], 0)
        hull_high = torch.where(high > high_of_truth, hull[:, others], 0)
        more_low = (around * union_low - union * hull_low) / around**2
        more_high = (around * union_high - union * hull_high) / around**2
        by_low = torch.where(apart, more_low, torch.where(around > 0, by_low + more_low, by_low))
        by_high = torch.where(apart, more_high, torch.where(around > 0, by_high + more_high, by_high))
    of_centre, of_size = by_low + by_high, by_high - by_low
    if kind not in ("DIOU", "CIOU"):
        return of_centre, of_size
    diagonal = (hull * hull).sum(1, keepdim=True)
    distance = ((boxes[:, :2] - truth[:, :2]) ** 2).sum(1, keepdim=True)
    is_low, is_high = (low < low_of_truth).to(boxes.dtype), (high > high_of_truth).to(boxes.dtype)
    more_centre = (
        2 * (truth[:, :2] - boxes[:, :2]) * diagonal - 2 * hull * (is_high - is_low) * distance
    ) / diagonal**2
    more_size = 2 * hull * 0.5 * (is_high + is_low) * distance / diagonal**2
    if kind == "CIOU":
        angle = (torch.atan(truth[:, 2:3] / truth[:, 3:]) - torch.atan(boxes[:, 2:3] / boxes[:, 3:])) / pi**2
        of_shape = 4 * pi**2 * angle * angle
        alpha = of_shape / (1 - intersection / union + of_shape + 1e-6)
        more_size = more_size + alpha * torch.cat((8 * angle * boxes[:, 3:], -8 * angle * boxes[:, 2:3]), 1)
    is_more = diagonal > 0
    of_centre = torch.where(apart, more_centre, torch.where(is_more, of_centre + more_centre, of_centre))
    of_size = torch.where(apart, more_size, torch.where(is_more, of_size + more_size, of_size))
    return of_centre, of_size
