"""RegionLoss: the loss of YOLO version 2. Two forks have one of this name, which their labels tell apart.

Each cell has boxes with an anchor a each: x, y, w, h, the object o, the classes c. With the logistic function
s, such a box has the centre ((column + s(x)) / S, (row + s(y)) / S) and the size (exp(w) a_w / S, exp(h) a_h
/ S). Each box of the label belongs to the cell of its centre, and there to the anchor (or, without
bias_match, the predicted size) that it overlaps most; of several in one place the last one counts. d is what
the diff of x, y, w, h, o and c is made from:

    o, no box of the label     noobject_scale (0 - s(o)) s'(o); 0 if the overlap with any is above thresh
    x, y                       k (t - s(x)) s'(x), t where in the cell the centre is
    w, h                       k (log(S size / a) - w)
    o, eric612's               object_scale (target - s(o)) s'(o), the target 1, or with rescore the overlap
    o, intel's                 2 object_scale (1 - s(o))^3 s'(o)
    c                          class_scale ([c is the class] - softmax(c))

k is coord_scale; in eric612's without rescore it is multiplied by 2 - width height. In intel's, the
differences in x, y, w and h are limited to -1 and 1. The diff is -d / N, and the loss sum d^2 / N (intel: not
divided by N).

bottom[0]  (N, num (5 + num_class), S, S)
bottom[1]  eric612: (N, 1, B, 5), rows of class, centre x, centre y, width, height, until the first one with
           x 0 (for the overlap) or with width 0 (for the rest);
           intel: (1, 1, G, 8), rows of image, class + 1, instance, xmin, ymin, xmax, ymax, difficult
top[0]     (), the loss

eric612/MobileNet-YOLO, intel/caffe: region_loss_layer.cpp. softmax, jitter, absolute and random do nothing,
nor does side in eric612's and rescore in intel's. Differs: softmax_tree and class_map, which intel's reads
and eric612's does not use, are errors. So are coords other than 4, maps that are not square, in intel's
another side than the map's, too few biases (eric612's takes zeros for all if there are less than ten),
classes and images that do not exist, and centres outside of the image. eric612's takes a label as 300 boxes
for each image, whatever its shape. The lines about the loss in the fork's log are not written.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from imae.layers.forks.yolo_boxes import COORDS, Scale, anchors_of, cells_of, check_map, decoded, overlap
from imae.layers.forks.yolo_truths import (
    TruthReader,
    best_overlap,
    ends_of_runs,
    loss_with_gradient,
    one_hot,
    overlap_of_sizes,
)
from imae.layers.labels import refuse_gradient
from imae.layers.layer import Layer, LossLayer, Shape
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("RegionLoss")
class RegionLoss(LossLayer):
    constant_buffers = ("anchors",)
    anchors: Tensor

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        own = param.region_loss_param
        self.classes, self.boxes = own.num_class, own.num
        for name in ("num_class", "num"):
            if getattr(own, name) < 1:
                raise self.error(f"{name} must be at least 1; got {getattr(own, name)}")
        if own.coords != COORDS:
            raise self.error(f"coords must be {COORDS}; got {own.coords}")
        for name in ("softmax_tree", "class_map"):
            if getattr(own, name):
                raise self.error(f"{name} is not supported; got {getattr(own, name)!r}")
        self.register_buffer("anchors", anchors_of(self, own.biases, range(self.boxes)), persistent=False)
        for name in ("softmax", "jitter", "absolute", "random"):
            if own.HasField(name):
                self.note_leftover(f"region_loss_param.{name}")
        self.truths = TruthReader(self, self.classes)

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        own, side = self.param.region_loss_param, bottom_shapes[0][-1] if bottom_shapes[0] else 0
        if self.is_intels(bottom_shapes[1]):
            if own.side != side:
                raise self.error(f"side must be that of bottom[0], {side}; got {own.side}")
            if own.HasField("rescore"):
                self.note_leftover("region_loss_param.rescore")
            return
        if own.HasField("side") and own.side != side:
            self.note_leftover("region_loss_param.side")
        if len(own.biases) < 10:
            raise self.error(f"biases must have ten numbers or more; the fork takes 0 for {len(own.biases)}")

    def is_intels(self, label: Shape) -> bool:
        """Whether the label has the form of Intel's fork; LayerError if it is of neither's."""
        if len(label) == 4 and label[1] == 1 and label[3] == 5:
            return False
        if len(label) == 4 and label[:2] == (1, 1) and label[3] == 8:
            return True
        raise self.error(
            "bottom[1] must be (N, 1, B, 5), eric612's RegionLoss, or (1, 1, G, 8), Intel's; "
            f"got {tuple(label)}"
        )

    def checked_top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return Layer.checked_top_shapes(self, bottom_shapes)  # Intel's label is of one item

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        x, label = (tuple(shape) for shape in bottom_shapes)
        check_map(self, "bottom[0]", x, self.boxes, self.classes)
        if x[2] != x[3]:
            raise self.error(f"bottom[0] must be as high as it is wide; got {x}")
        if not self.is_intels(label) and label[0] != x[0]:
            raise self.error(f"both bottoms must have as many images; got {x[0]} and {label[0]}")
        return [()]

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        refuse_gradient(self, 1, label, f"{self.type} Layer cannot backpropagate to label inputs.")
        intels = self.is_intels(tuple(label.shape))
        diff = self._diff(x.detach(), label.detach(), intels)
        square = (diff * diff).sum()
        return loss_with_gradient(x, square if intels else square / len(x), diff / len(x))

    def _diff(self, x: Tensor, label: Tensor, intels: bool) -> Tensor:
        own = self.param.region_loss_param
        side, count, per_cell = x.shape[-1], len(x), self.boxes
        truths = self.truths.per_batch(label, count) if intels else self.truths.per_image(label)
        cells = cells_of(x, per_cell)
        scale = Scale(side, side, self.anchors, (side, side))
        boxes = decoded(cells, scale)
        objects = cells[..., COORDS].sigmoid()
        best = best_overlap(boxes, truths, overlap(boxes.unsqueeze(-2), truths.boxes[:, None, None, None]))
        diff = torch.zeros_like(cells)
        noise = own.noobject_scale * objects * objects * (1 - objects)
        diff[..., COORDS] = torch.where(best > own.thresh, 0, noise)

        row, column = self.truths.cells(truths, side, side)
        image = torch.arange(count, device=x.device).unsqueeze(1)
        cell = (image * side + row) * side + column
        sizes = self.anchors / side
        if not own.bias_match:
            sizes = boxes[..., 2:].flatten(0, 2)[cell]
        anchor = overlap_of_sizes(sizes, truths.boxes[..., None, 2:]).max(-1).indices
        rows = count * side * side * per_cell
        index = torch.where(truths.matched, cell * per_cell + anchor, rows).flatten()
        _, is_last = ends_of_runs(index, rows)
        values = cells.reshape(rows, cells.shape[-1])[index.clamp(max=rows - 1)]
        predicted = boxes.reshape(rows, 4)[index.clamp(max=rows - 1)]

        truth, size = truths.boxes.reshape(-1, 4), truths.boxes.reshape(-1, 4)[:, 2:]
        place = torch.stack((column, row), -1).reshape(-1, 2)
        offset = values[:, :2].sigmoid()
        error = truth[:, :2] * side - place - offset
        of_size = torch.log(size * side / self.anchors[anchor.flatten()]) - values[:, 2:COORDS]
        object_score = values[:, COORDS].sigmoid()
        slope = object_score * (1 - object_score)
        weight: float | Tensor = own.coord_scale
        if intels:
            error, of_size = error.clamp(-1, 1), of_size.clamp(-1, 1)
            of_object = 2 * (1 - object_score) ** 3
        elif own.rescore:
            of_object = overlap(predicted, truth) - object_score
        else:
            weight = own.coord_scale * (2 - size.prod(1, keepdim=True))
            of_object = 1 - object_score
        classes = one_hot(truths.labels.flatten(), self.classes, values) - values[:, COORDS + 1 :].softmax(1)
        written = torch.cat(
            (
                -weight * error * offset * (1 - offset),
                -weight * of_size,
                (-own.object_scale * of_object * slope).unsqueeze(1),
                -own.class_scale * classes,
            ),
            1,
        )
        table = torch.cat((diff.reshape(rows, diff.shape[-1]), written.new_zeros(1, written.shape[1])))
        table = table.index_copy(0, torch.where(is_last, index, rows), written)
        return table[:-1].view_as(cells).permute(0, 3, 4, 1, 2).reshape(x.shape)
