"""Dropout: in TRAIN each value is 0 with probability dropout_ratio, else divided by 1 - dropout_ratio.

    TRAIN   top = x * mask / (1 - ratio)
    TEST    top = x; with sample_weights_test (Bayesian SegNet) as in TRAIN

With scale_train: false (R-FCN's fork) the factor is on the other side:

    TRAIN   top = x * mask
    TEST    top = x * (1 - ratio)

bottom[0], top[0]  any shape

One word of the random stream per element, in memory order. `device_masks` lets a device draw its masks
itself: this is faster, but the masks differ from Caffe's and from the CPU's.

Caffe: dropout_layer.cpp; scale_train: daijifeng001/caffe-rfcn, branch r-fcn; sample_weights_test:
alexgkendall/caffe-segnet. Differs: a ratio of 1 or more, or below 0, is an error.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imae.files.errors import ExportError
from imae.layers.layer import Layer
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import TRAIN, LayerParameter


@register_layer("Dropout")
class Dropout(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True
    device_masks: bool = False  # may be set on a layer; ignored for bottoms on the CPU

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        ratio = param.dropout_param.dropout_ratio
        if not 0 <= ratio < 1:
            raise self.error(f"dropout_param.dropout_ratio must be at least 0 and less than 1, got {ratio:g}")
        self.keep = 1 - ratio
        self.scale_train = param.dropout_param.scale_train
        self.idle_in_test = self.scale_train and not param.dropout_param.sample_weights_test

    @property
    def capturable(self) -> bool:
        return not self.draws or self.device_masks

    @property
    def draws(self) -> bool:
        """Whether the forward pass draws a mask."""
        return self.phase == TRAIN or self.param.dropout_param.sample_weights_test

    @property
    def repeatable(self) -> bool:
        return not self.draws

    def forward(self, x: Tensor) -> Tensor:
        if not self.draws:
            return x.view_as(x) if self.idle_in_test else x * self.keep
        if self.device_masks and x.device.type != "cpu":
            mask = torch.empty_like(x).bernoulli_(self.keep)
        else:
            kept = torch.from_numpy(self.random.bernoulli(x.numel(), self.keep)).view(x.shape)
            mask = kept.to(x.device, x.dtype, non_blocking=True)
        if not self.scale_train:
            return x * mask
        # (x * mask) * scale with one multiplication less: the mask is 0 or 1, so no bit differs.
        return x * mask.mul_(1 / self.keep)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        if self.param.dropout_param.sample_weights_test:
            raise ExportError(
                f"layer {self.name!r}: sample_weights_test draws a mask in each pass, which a model cannot; "
                "set it to false for the mean"
            )
        if self.idle_in_test:
            graph.node("Identity", bottoms, tops)
        else:
            graph.node("Mul", [bottoms[0], graph.constant(np.array(self.keep, np.float32))], tops)
