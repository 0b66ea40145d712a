"""YoloDetectionOutput: the boxes that YOLO version 2 has found.

A box of cell (row, column) with the anchor a: centre ((column + s(x)) / W, (row + s(y)) / W), size (exp(w)
a_w / W, exp(h) a_h / W), of the class with the largest softmax, and of the score s(object) times that
softmax, s the logistic function. The boxes whose score is confidence_threshold or more, of both bottoms and
of all images, are sorted by score, and one that overlaps a better one by nms_threshold or more is removed.

bottom[0], bottom[1]  (N, num_box (5 + num_classes), W, W); the second one is optional
top[0]                (1, 1, K, 7): 0, class + 1, score, xmin, ymin, xmax, ymax, best first; the image is 0,
                      in a batch too; if there is no box, N rows (image, -1, -1, -1, -1, -1, -1).
                      (1, 1, 1, 7) until the first forward pass

The host must know how many boxes remain, so on a GPU it waits here.

eric612/MobileNet-YOLO: yolo_detection_output_layer.cpp. It uses neither side and coords, whose numbers are
those of the bottom, nor label_map_file. Differs: boxes of equal score stay in the order image, row, column,
box, which in the fork is undefined; overlaps are not rounded to single precision in a net of double
precision. Too few biases, other numbers of channels, maps that are not square, more than two bottoms and a
second one with another number of images are errors; the fork reads foreign memory, or does not look.
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
    just_below,
    rows_of,
)
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("YoloDetectionOutput")
class YoloDetectionOutput(Layer):
    min_bottoms, max_bottoms, num_tops = 1, 2, 1
    open_axes = (2,)
    constant_buffers = ("anchors",)
    anchors: Tensor

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        own = param.yolo_detection_output_param
        self.classes, self.boxes = own.num_classes, own.num_box
        self.confidence, self.threshold = own.confidence_threshold, own.nms_threshold
        if not own.HasField("num_classes"):
            raise self.error(
                "Must specify num_classes; write yolo_detection_output_param { num_classes: 20 }"
            )
        for name in ("num_classes", "num_box"):
            if getattr(own, name) < 1:
                raise self.error(f"{name} must be at least 1; got {getattr(own, name)}")
        self.register_buffer("anchors", anchors_of(self, own.biases, range(self.boxes)), persistent=False)
        if own.label_map_file:
            self.note_leftover("yolo_detection_output_param.label_map_file")

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        own = self.param.yolo_detection_output_param
        for name, number in (("side", bottom_shapes[0][-1:]), ("coords", (COORDS,))):
            if own.HasField(name) and (getattr(own, name),) != number:
                self.note_leftover(f"yolo_detection_output_param.{name}")

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        for index, shape in enumerate(bottom_shapes):
            check_map(self, f"bottom[{index}]", tuple(shape), self.boxes, self.classes)
            if shape[2] != shape[3]:
                raise self.error(f"bottom[{index}] must be as high as it is wide; got {tuple(shape)}")
            if shape[0] != bottom_shapes[0][0]:
                raise self.error(
                    f"both bottoms must have as many images; got {bottom_shapes[0][0]} and {shape[0]}"
                )
        return [(1, 1, 1, 7)]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return False

    @property
    def capturable(self) -> bool:
        return False

    def scale(self, shape: Shape) -> Scale:
        """A bottom of this shape."""
        height, width = shape[2:]
        return Scale(height, width, self.anchors, (width, height))

    def forward(self, *bottoms: Tensor) -> Tensor:
        boxes, scores, labels = [], [], []
        for bottom in bottoms:
            cells = cells_of(bottom.detach(), self.boxes)
            of_scale = decoded(cells, self.scale(tuple(bottom.shape)))
            best, label = cells[..., COORDS + 1 :].softmax(-1).max(-1)
            found = cells[..., COORDS].sigmoid() * best
            places = found >= self.confidence
            boxes.append(of_scale[places])
            scores.append(found[places])
            labels.append(label[places])
        kept = best_first(torch.cat(boxes), torch.cat(scores), torch.cat(labels), self.threshold)
        return rows_of(*kept, images=len(bottoms[0]))

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        scales: list[Values] = []
        for bottom in bottoms:
            scale = self.scale(graph.shape(bottom))
            boxes, objects, classes = add_cells(graph, bottom, scale, COORDS + 1 + self.classes)
            scales.append(add_best_class(graph, boxes, objects, graph.node("Softmax", [classes], axis=4)))
        above = just_below(self.confidence)  # the operator's scores must be above its limit
        add_rows(self, graph, bottoms[0], scales, tops[0], above, self.threshold)
