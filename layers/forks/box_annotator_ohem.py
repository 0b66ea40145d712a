"""BoxAnnotatorOHEM: of an image's regions of interest only those with the largest losses are learned from.

The `roi_per_img` positions of an image with the largest losses keep their label and their box weights. The
others get the label `ignore_label` and the weights 0.

bottom[0]  (R, 5, H, W): image, x1, y1, x2, y2; axes that are absent count as 1
bottom[1]  (R, 1, H, W): the losses
bottom[2]  (R, 1, H, W): the labels
bottom[3]  (R, K, H, W): the box weights
top[0]     (R, 1, H, W): labels
top[1]     (R, K, H, W): box weights

No bottom gets a gradient.

R-FCN (daijifeng001/caffe-rfcn, branch r-fcn): box_annotator_ohem_layer.cu. Differs: of equal losses the
first counts as the larger one (the fork's order is undefined). A negative image number is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from imae.layers.forks.rois import four_axes
from imae.layers.labels import LabelReader
from imae.layers.layer import Layer, Shape
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter

MOST_IMAGES = 2**24  # beyond it, not every number is one of single precision


@register_layer("BoxAnnotatorOHEM")
class BoxAnnotatorOHEM(Layer):
    num_bottoms, num_tops = 4, 2
    in_place = False
    deployed = False

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        annotator = param.box_annotator_ohem_param
        if annotator.roi_per_img < 1:
            raise self.error("box_annotator_ohem_param.roi_per_img must be given and > 0")
        self.kept, self.ignore_label = annotator.roi_per_img, annotator.ignore_label
        self.images = LabelReader(
            self, message=lambda image, _: f"an ROI is of image {image}; images are counted from 0"
        )

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        rois, *others = (four_axes(self, index, shape) for index, shape in enumerate(bottom_shapes))
        weights = others[-1][1]
        for index, channels in enumerate((5, 1, 1, weights)):
            shape = four_axes(self, index, bottom_shapes[index])
            if shape != (rois[0], channels, *rois[2:]):
                raise self.error(
                    f"bottom[{index}] must be {(rois[0], channels, *rois[2:])}; "
                    f"got {tuple(bottom_shapes[index])}"
                )
        return [others[1], others[2]]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return False

    def forward(self, rois: Tensor, losses: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        num, channels, height, width = four_axes(self, 3, tuple(weights.shape))
        rois = rois.detach().reshape(num, 5, height, width)
        image, _ = self.images(rois[:, 0].flatten(), MOST_IMAGES)
        order = losses.detach().flatten().argsort(descending=True, stable=True)
        order = order[image[order].argsort(stable=True)]  # image by image, the largest losses first
        image = image[order]
        rank = torch.arange(len(order), device=order.device) - torch.searchsorted(image, image)
        keeps = torch.empty_like(order, dtype=torch.bool)
        keeps[order] = rank < self.kept
        keeps = keeps.view(num, 1, height, width)
        labels = labels.detach().reshape(num, 1, height, width)
        weights = weights.detach().reshape(num, channels, height, width)
        return labels.masked_fill(~keeps, self.ignore_label), weights.masked_fill(~keeps, 0)
