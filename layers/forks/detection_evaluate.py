"""DetectionEvaluate: which detections are right, for the mean average precision of a test.

top[0] has two kinds of rows:

    -1, label, number of truths, -1, -1        one for each class but the background, labels ascending
    image, label, score, true, false           one for each detection; images ascend, then labels

Where an image has truths of the label, its detections come by falling score. A detection is true (1, 0) if
it overlaps the truth that it overlaps most by at least overlap_threshold, and is the first one to do so; else
false (0, 1). With evaluate_difficult_gt: false difficult truths are not counted, and detections of them are
neither (0, 0).

bottom[0]  (1, 1, K, 7) detections: image, label, score, xmin, ymin, xmax, ymax; rows with label -1 are none
bottom[1]  (1, 1, G, 8) truths: image, label, instance, xmin, ymin, xmax, ymax, difficult; up to image -1
top[0]     (1, 1, classes + detections, 5)

With name_size_file (lines: name height width) boxes are compared in pixels of the images, taken in order: the
next line for each image that has rows in bottom[0], and from the start again after the last one. As in the
fork an image without a row takes no line.

No backward pass.

SSD (weiliu89/caffe, branch ssd): detection_evaluate_layer.cpp. Differs: equal scores stay in order (the fork:
any).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod

import numpy as np
import torch
from torch import Tensor

from imae.layers.data.saved_state import State, check_index, check_state
from imae.layers.forks.boxes import output_boxes, overlaps, pixel_overlaps
from imae.layers.forks.detection_files import check_resize, read_sizes
from imae.layers.layer import Layer, Shape
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("DetectionEvaluate")
class DetectionEvaluate(Layer):
    num_bottoms, num_tops = 2, 1
    in_place = False
    deployed = False
    open_axes = (2,)

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        fields = param.detection_evaluate_param
        if not fields.num_classes:
            raise self.error("Must provide num_classes, larger than 0.")
        if not fields.overlap_threshold > 0:
            raise self.error(f"overlap_threshold must be larger than 0; got {fields.overlap_threshold}")
        # The fork keeps it as an int: 2^32 - 1 is -1, no background.
        self.background = int(np.uint32(fields.background_label_id).astype(np.int32))
        self.resize = fields.resize_param if fields.HasField("resize_param") else None
        check_resize(self, self.resize, "detection_evaluate_param.resize_param")
        if self.resize is not None and not fields.name_size_file:
            self.note_leftover("detection_evaluate_param.resize_param")
        self.image = 0  # the line of the next image

    @cached_property
    def labels(self) -> list[int]:
        """All but the background; made when the top's shape is known to be possible."""
        count = self.param.detection_evaluate_param.num_classes
        return [label for label in range(count) if label != self.background]

    def get_state(self) -> State:
        return {"image": self.image} if self.sizes else {}

    def set_state(self, state: State) -> None:
        check_state(self, state, self.get_state())
        check_index("image", state["image"], len(self.sizes))
        self.image = state["image"]

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        file = self.param.detection_evaluate_param.name_size_file
        self.sizes = read_sizes(self, file) if file else []

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        for shape, width in zip(bottom_shapes, (7, 8), strict=True):
            if len(shape) != 4 or shape[3] != width or prod(shape[:2]) != 1:
                raise self.error(f"detections are (1, 1, K, 7), truths (1, 1, G, 8); got {bottom_shapes}")
        count = self.param.detection_evaluate_param.num_classes
        count -= 0 <= self.background < count
        return [(1, 1, count + bottom_shapes[0][2], 5)]

    @property
    def capturable(self) -> bool:
        return False

    @torch.no_grad()
    def forward(self, detection: Tensor, truth: Tensor) -> Tensor:
        detections, truths = detection.detach().reshape(-1, 7).cpu(), truth.detach().reshape(-1, 8).cpu()
        ends = (truths[:, 0].long() == -1).nonzero()
        if len(ends):
            truths = truths[: int(ends[0])]
        for rows, where in ((detections, "detection results"), (truths, "dataset")):
            if (rows[rows[:, 0].long() != -1, 1].long() == self.background).any():
                raise self.error(f"Found background label in the {where}.; it is {self.background}")
        total = len(self.labels) + int((detections[:, 1] != -1).sum())
        top = detections.new_zeros(total, 5)
        counted = truths[:, 1].long()
        if not self.param.detection_evaluate_param.evaluate_difficult_gt:
            counted = counted[truths[:, 7] == 0]
        for row, label in enumerate(self.labels):
            top[row] = top.new_tensor([-1, label, int((counted == label).sum()), -1, -1])
        row = len(self.labels)
        images = detections[:, 0].long()
        for image in sorted(set(images.tolist())):
            if image == -1:
                continue
            own, own_truths = detections[images == image], truths[truths[:, 0].long() == image]
            for label in sorted(set(own[:, 1].long().tolist())):
                if label != -1:
                    rows = self._evaluate(
                        own[own[:, 1].long() == label], own_truths[own_truths[:, 1].long() == label]
                    )
                    top[row : row + len(rows)] = rows
                    row += len(rows)
            if self.sizes:
                self.image = (self.image + 1) % len(self.sizes)
        return top.reshape(1, 1, -1, 5).to(detection.device)

    def _evaluate(self, detections: Tensor, truths: Tensor) -> Tensor:
        """The rows of an image's detections of one label."""
        fields = self.param.detection_evaluate_param
        if not len(truths):
            return torch.cat([detections[:, :3], detections.new_tensor([0, 1]).expand(len(detections), 2)], 1)
        detections = detections[detections[:, 2].sort(descending=True, stable=True).indices]
        boxes, true_boxes = detections[:, 3:7], truths[:, 3:7]
        if self.sizes:
            size = self.sizes[self.image]
            boxes, areas = output_boxes(boxes, size.height, size.width, self.resize)
            true_boxes, true_areas = output_boxes(true_boxes, size.height, size.width, self.resize)
            overlap, best = pixel_overlaps(boxes, true_boxes, areas, true_areas).max(1)
        else:
            overlap, best = overlaps(boxes, true_boxes).max(1)
        rows = torch.cat([detections[:, :3], detections.new_zeros(len(detections), 2)], 1)
        seen = set()
        for index, (found, truth) in enumerate(
            zip((overlap >= fields.overlap_threshold).tolist(), best.tolist(), strict=True)
        ):
            if found and truths[truth, 7] != 0 and not fields.evaluate_difficult_gt:
                continue
            is_true = found and truth not in seen
            if found:
                seen.add(truth)
            rows[index, 3:] = rows.new_tensor([is_true, not is_true])
        return rows
