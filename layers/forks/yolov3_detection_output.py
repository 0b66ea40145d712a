"""Yolov3DetectionOutput: the boxes that YOLO version 3 has found, on maps of one or more scales.

A box of cell (row, column) with the anchor a: centre ((column + s(x)) / W, (row + s(y)) / H), size (exp(w)
a_w / (W scale), exp(h) a_h / (H scale)), score s(object) s(class), s the logistic function. Each class whose
score is above confidence_threshold makes a candidate. The candidates of all scales, all images and all
classes are sorted by score, and one that overlaps a better one by nms_threshold or more is removed.

bottom[i]  (N, num_box (5 + num_classes), H, W), mask_group_num of them; box n of bottom i has the anchor
           biases[2 m], biases[2 m + 1], m = mask[i (number of masks / mask_group_num) + n]
top[0]     (1, 1, K, 7): 0, class + 1, score, xmin, ymin, xmax, ymax, best first; the image's number is 0,
           in a batch too; if there is no box, N rows (image, -1, -1, -1, -1, -1, -1). (1, 1, 1, 7) until
           the first forward pass

The host must know how many boxes remain, so on a GPU it waits here.

eric612/MobileNet-YOLO: yolov3_detection_output_layer.cpp. Differs: candidates of equal score stay in the
order image, row, column, box, class, which in the fork is undefined; overlaps are not rounded to single
precision in a net of double precision. gaussian_box is an error: there the fork's CPU code reads memory that
nothing fills, and its GPU code computes something else. Too few masks, biases or anchors_scales, other
numbers of channels, and bottoms with other numbers of images are errors; the fork reads foreign memory, or
does not look.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from imae.layers.forks.yolo_boxes import (
    COORDS,
    Scale,
    Values,
    add_best_class,
    add_cells,
    add_rows,
    anchors_of,
    best_first,
    cells_of,
    check_map,
    decoded,
    overlap,
    rows_of,
)
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("Yolov3DetectionOutput")
class Yolov3DetectionOutput(Layer):
    min_bottoms, num_tops = 1, 1
    open_axes = (2,)
    constant_buffers = ("anchors",)
    anchors: Tensor  # (bottoms, boxes, 2)

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        own = param.yolov3_detection_output_param
        self.classes, self.boxes, self.groups = own.num_classes, own.num_box, own.mask_group_num
        self.confidence, self.threshold = own.confidence_threshold, own.nms_threshold
        if not own.HasField("num_classes"):
            raise self.error(
                "Must specify num_classes; write yolov3_detection_output_param { num_classes: 20 }"
            )
        for name in ("num_classes", "num_box", "mask_group_num"):
            if getattr(own, name) < 1:
                raise self.error(f"{name} must be at least 1; got {getattr(own, name)}")
        if own.gaussian_box:
            raise self.error(
                "gaussian_box is not supported: the fork's CPU code reads memory that nothing fills"
            )

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        own, count = self.param.yolov3_detection_output_param, len(bottom_shapes)
        if count != self.groups:
            raise self.error(f"mask_group_num must be the number of bottoms, {count}; got {self.groups}")
        if len(own.anchors_scale) < count:
            raise self.error(
                f"anchors_scale must be given for each bottom, {count}; got {len(own.anchors_scale)}"
            )
        per_bottom = len(own.mask) // self.groups
        starts = [index * per_bottom for index in range(count)]
        if len(own.mask) < starts[-1] + self.boxes:
            raise self.error(
                f"mask must have num_box, {self.boxes}, numbers for each of {count} bottoms; "
                f"got {len(own.mask)}"
            )
        anchors = [anchors_of(self, own.biases, own.mask[start : start + self.boxes]) for start in starts]
        self.register_buffer("anchors", torch.stack(anchors), persistent=False)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        for index, shape in enumerate(bottom_shapes):
            check_map(self, f"bottom[{index}]", tuple(shape), self.boxes, self.classes)
            if shape[0] != bottom_shapes[0][0]:
                raise self.error(
                    f"all bottoms must have as many images; got {bottom_shapes[0][0]} and {shape[0]}"
                )
        return [(1, 1, 1, 7)]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return False

    @property
    def capturable(self) -> bool:
        return False

    def scale(self, index: int, shape: Shape) -> Scale:
        """Bottom `index`, of this shape."""
        height, width = shape[2:]
        times = self.param.yolov3_detection_output_param.anchors_scale[index]
        return Scale(height, width, self.anchors[index], (width * times, height * times))

    def forward(self, *bottoms: Tensor) -> Tensor:
        boxes, scores, labels = [], [], []
        for index, bottom in enumerate(bottoms):
            cells = cells_of(bottom.detach(), self.boxes)
            found = cells[..., COORDS + 1 :].sigmoid() * cells[..., COORDS : COORDS + 1].sigmoid()
            of_scale = decoded(cells, self.scale(index, tuple(bottom.shape)))
            # The best class of a box removes the others, if the box overlaps itself enough. They are many.
            is_best = found.argmax(-1, keepdim=True) == torch.arange(self.classes, device=found.device)
            removed = (overlap(of_scale, of_scale) >= self.threshold).unsqueeze(-1) & ~is_best
            places = ((found > self.confidence) & ~removed).nonzero()
            boxes.append(of_scale[tuple(places[:, :-1].T)])
            scores.append(found[tuple(places.T)])
            labels.append(places[:, -1])
        best = best_first(torch.cat(boxes), torch.cat(scores), torch.cat(labels), self.threshold)
        return rows_of(*best, images=len(bottoms[0]))

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        scales: list[Values] = []
        for index, bottom in enumerate(bottoms):
            scale = self.scale(index, graph.shape(bottom))
            boxes, objects, classes = add_cells(graph, bottom, scale, COORDS + 1 + self.classes)
            scales.append(add_best_class(graph, boxes, objects, graph.node("Sigmoid", [classes])))
        add_rows(self, graph, bottoms[0], scales, tops[0], self.confidence, self.threshold)
