"""Normalize (SSD): divide by the Euclidean norm, multiply by a learned scale.

    n    = sqrt(sum x^2 + eps)
    top  = s x / n
    diff = s (d - x (sum x d) / n^2) / n        d: the top's diff

The sums are over the channels of a pixel, or with across_spatial over a whole image. With a scale for each
channel diff is not the derivative, where the scales would stand inside of the sum: so it is in the fork.

bottom[0]  (N, C), (N, C, H) or (N, C, H, W)
top[0]     the same
blobs      s: (), or (C) with channel_shared: false; filled by scale_filler, else with 1

SSD (weiliu89/caffe, branch ssd): normalize_layer.cpp. Differs: the gradient of a scale of 0 is its derivative
(the fork divides by the scale). NormFace has another layer of this name, told by its normalize_param:
normalize_normface.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.files.errors import LayerError
from imae.layers.autograd import apply
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.precision import at_least_single
from imae.layers.registry import register_layer
from imae.prototxt import FillerParameter, LayerParameter


@register_layer("Normalize")
class Normalize(Layer):
    num_bottoms, num_tops = 1, 1
    blob_names = ("scale",)
    reads = ("norm_param",)
    reads_top = reads_bottom = True
    spoils_in_place = "diff"

    @classmethod
    def variant(cls, param: LayerParameter) -> type[Layer]:
        if not param.HasField("normalize_param"):
            return cls
        if param.HasField("norm_param"):
            raise LayerError(
                param,
                "norm_param is for SSD's Normalize (weiliu89/caffe), normalize_param for NormFace's "
                "(happynear/caffe-windows), another layer; leave one of them out",
            )
        from imae.layers.forks.normalize_normface import NormFaceNormalize

        return NormFaceNormalize

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        self._check(bottom_shapes[0])
        param = self.param.norm_param
        filler = FillerParameter(type="constant", value=1)
        if param.HasField("scale_filler"):
            filler = param.scale_filler
        self.add_blob(() if param.channel_shared else (bottom_shapes[0][1],), filler)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        self._check(shape)
        if self.blob_shapes[0] not in ((), shape[1:2]):
            raise self.error(f"its scale has {self.blob_shapes[0][0]} channels; got a bottom of {shape}")
        return [shape]

    def forward(self, x: Tensor) -> Tensor:
        scale = self.blob(0)
        if scale.dim():
            scale = scale.reshape(-1, *[1] * (x.dim() - 2))
        return apply(_Normalize, at_least_single(x), scale, self._axes(x.dim()), self.param.norm_param.eps)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        # Not LpNormalization, which has no eps.
        x = bottoms[0]
        num_axes = len(graph.shape(x))
        eps = graph.constant(np.array(self.param.norm_param.eps, np.float32))
        total = graph.node("Mul", [x, x])
        channels, *inner = self._axes(num_axes)
        # One after the other: OpenCV 5.0.0's classic engine adds up other values on axes 1, 2 and 3 at once.
        for axes in filter(None, (inner, [channels])):
            total = graph.node("ReduceSum", [total, graph.constant(np.array(axes))], keepdims=1)
        norm = graph.node("Sqrt", [graph.node("Add", [total, eps])])
        scale = self.blob(0)
        if scale.dim():
            scale = scale.reshape(1, -1, *[1] * (num_axes - 2))
        graph.node("Mul", [graph.node("Div", [x, norm]), graph.constant(scale, blob=0)], tops)

    def _axes(self, num_axes: int) -> tuple[int, ...]:
        return tuple(range(1, num_axes)) if self.param.norm_param.across_spatial else (1,)

    def _check(self, shape: Shape) -> None:
        if not 2 <= len(shape) <= 4:
            raise self.error(f"Number of axes of bottom blob must be >=2, and at most 4; got {shape}")


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
        norm = ((x * x).sum(axes, keepdim=True) + eps).sqrt()
        ctx.save_for_backward(x, scale, norm)
        ctx.axes = axes
        return x / norm * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, norm = ctx.saved_tensors
        diff = scale_diff = None
        if ctx.needs_input_grad[0]:
            along = (x * top_diff).sum(ctx.axes, keepdim=True) / norm**2
            diff = (top_diff - x * along) / norm * scale
        if ctx.needs_input_grad[1]:
            scale_diff = (x / norm * top_diff).sum_to_size(scale.shape)
        return diff, scale_diff, None, None
