"""BN of SegNet: scale and shift of channels that are normalised by the batch, in phase TEST, too.

    LEARN       top = scale (x - mean) / sqrt(variance + 1e-9) + shift
    INFERENCE   top = scale x + shift; the statistics were folded into the two blobs before

mean and variance (the biased one) are those of the batch, over all axes but axis 1; no running averages
exist.

bottom[0]  (N, C, H, W), or two or three axes, the others being 1
top[0]     (N, C, H, W); in-place the bottom's shape
top[1]     LEARN only, optional: the mean, (1, C, 1, 1); sends no gradient
top[2]     LEARN only, optional: the variance
blobs      scale and shift, (1, C, 1, 1) each, filled by scale_filler and shift_filler

A backward pass replaces the diffs of the blobs: with iter_size the last pass counts.

SegNet (alexgkendall/caffe-segnet, TimoSaemann/caffe-segnet-cudnn5): bn_layer.cpp. Differs: a bottom of one
axis, for the fork one channel, is an error; the variance is the mean square of x - mean (the fork: the mean
square of x less the square of the mean, which loses digits). A bottom of another size than at set-up is
followed. Blobs that several layers share get the sum of their diffs (the fork: those of the first of these
layers). In-place the top keeps the bottom's axes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imae.layers.forks.channel_norm import AXES, FOUR_BLOBS, ChannelNorm
from imae.layers.layer import Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.prototxt import LayerParameter

EPS = 1e-9


class SegNetBN(ChannelNorm):
    min_tops, max_tops = 1, 3
    blob_names = ("scale", "shift")
    overwrites_diffs = True
    advice_by_blob_count = FOUR_BLOBS

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.learns = param.bn_param.bn_mode == param.bn_param.LEARN
        if len(param.top) > 1 and not self.learns:
            raise self.error(
                f"BN Layer produces at most 1 top blob(s) as output.; got {len(param.top)} for INFERENCE"
            )
        self.spoils_in_place = "" if self.learns else "diff"

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        bn = self.param.bn_param
        self.add_channel_blobs(bottom_shapes[0], (bn.scale_filler, bn.shift_filler))

    def fixed_statistics(self) -> tuple[Tensor, Tensor, float] | None:
        if self.learns:
            return None
        shift = self.blob(1).detach().reshape(-1)
        return torch.zeros_like(shift), torch.ones_like(shift), 0.0

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        shape = self.top_shapes([tuple(x.shape)])[0]
        x = x.reshape(self.legacy_shape(tuple(x.shape)))
        if not self.learns:
            return self.normalize(x, x.new_zeros(()), x.new_ones(()), through=False).reshape(shape)
        mean, variance = self.batch_statistics(x)
        top = self.normalize(x, mean, (variance + EPS).sqrt(), through=True).reshape(shape)
        count = len(self.param.top)
        return top if count == 1 else (top, mean, variance)[:count]

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        value = self.bottom_to_onnx(graph, bottoms[0], tops[0])
        if not self.learns:
            self.scale_to_onnx(graph, value, tops[0])
            return
        # First in each image, then over these: OpenCV 5.0.0 adds up other values on axes 0, 2 and 3 at once.
        inner = [axis for axis in AXES[1:] if axis < len(graph.shape(tops[0]))]

        def mean_of(value: str, top: str | None) -> str:
            for axes in filter(None, (inner, [0])):
                names = [top] if top and axes == [0] else None
                if graph.opset >= 18:
                    inputs, options = [value, graph.constant(np.array(axes))], {}
                else:
                    inputs, options = [value], {"axes": axes}
                value = graph.node("ReduceMean", inputs, names, keepdims=1, **options)
            return value

        mean = mean_of(value, tops[1] if len(tops) > 1 else None)
        centred = graph.node("Sub", [value, mean])
        variance = mean_of(graph.node("Mul", [centred] * 2), tops[2] if len(tops) > 2 else None)
        eps = graph.constant(np.array(EPS, np.float32))
        std = graph.node("Sqrt", [graph.node("Add", [variance, eps])])
        self.scale_to_onnx(graph, graph.node("Div", [centred, std]), tops[0])
