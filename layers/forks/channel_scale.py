"""ChannelScale: multiplies all channels of a position by a number of its own.

    top = scale x

do_forward: false            top = x
do_backward_feature: false   the diff of x is the top's
do_backward_scale: false     the diff of the scale is 0

With global_scale there is one number for all, which the layer keeps in a blob and limits to
[min_global_scale, max_global_scale] in every forward pass: top = blob x. It starts at -1 and is not learned.
The gradients remain those of top = scale x.

bottom[0]  (N, C, H, W) x; fewer axes are completed by axes of size 1
bottom[1]  scale: (N, 1, H, W), or as many values for each image; with global_scale, only the gradients use it
top[0]     the shape of x
top[1]     optional, with global_scale: (1) the number; 0 where do_forward is false
blobs      (1) with global_scale; its lr_mult is 0

caffe-windows (happynear/caffe-windows): channel_scale_layer.cpp, which reads no init_global_scale. Differs:
in place, the gradient of the scale is right.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import FillerParameter, LayerParameter, ParamSpec


@register_layer("ChannelScale")
class ChannelScale(Layer):
    num_bottoms = 2
    min_tops, max_tops = 1, 2
    blob_names = ("scale",)
    spoils_in_place = "diff"

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        scale = param.channel_scale_param
        if len(param.top) > 1 and not scale.global_scale:
            raise self.error("ChannelScale has a second top only with global_scale: true")
        if scale.HasField("init_global_scale"):
            self.note_leftover("channel_scale_param.init_global_scale")
        if scale.global_scale and param.param and param.param[0].lr_mult != 0:
            raise self.error(
                "Cannot configure statistics as layer parameters.; "
                f"got lr_mult {param.param[0].lr_mult:g}, it must be 0"
            )

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        if self.param.channel_scale_param.global_scale:
            self.add_blob((1,), FillerParameter(type="constant", value=-1))

    def param_specs(self) -> list[ParamSpec]:
        fixed = ParamSpec(lr_mult=0, decay_mult=0)
        return super().param_specs() if self.param.param else [fixed] * len(self.blobs)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        x, scale = (tuple(shape) for shape in bottom_shapes)
        if not 1 <= len(x) <= 4 or scale[:1] != x[:1] or prod(scale) != prod(x[:1] + x[2:]):
            raise self.error(f"the bottoms must be (N, C, H, W) and (N, 1, H, W); got {x} and {scale}")
        return [x, (1,)][: len(self.param.top)]

    def forward(self, x: Tensor, scale: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        kind = self.param.channel_scale_param
        scale = scale.reshape(_scale_shape(x.shape))
        factor = self._global_scale() if kind.global_scale and kind.do_forward else None
        top = apply(_ChannelScale, x, scale, factor, self.flags)
        if len(self.param.top) == 1:
            return top
        return top, x.new_zeros(1) if factor is None else factor.clone()

    @property
    def flags(self) -> tuple[bool, bool, bool]:
        kind = self.param.channel_scale_param
        return kind.do_forward, kind.do_backward_feature, kind.do_backward_scale

    def _global_scale(self) -> Tensor:
        kind = self.param.channel_scale_param
        # min, then max, as the fork: max_global_scale below min_global_scale gives the latter.
        return self.blob(0).detach().clamp_(max=kind.max_global_scale).clamp_(min=kind.min_global_scale)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        kind = self.param.channel_scale_param
        x, scale = bottoms
        if not kind.do_forward:
            graph.node("Identity", [x], tops[:1])
        elif kind.global_scale:
            graph.node("Mul", [x, graph.constant(self._global_scale(), blob=0)], tops[:1])
        else:
            shape = _scale_shape(graph.shape(x))
            if graph.shape(scale) != shape:
                scale = graph.node("Reshape", [scale, graph.constant(torch.tensor((-1, *shape[1:])))])
            graph.node("Mul", [x, scale], tops[:1])
        if len(tops) > 1:
            if kind.do_forward:
                factor = graph.constant(self._global_scale(), blob=0)
            else:
                factor = graph.constant(torch.zeros_like(self.blob(0)))
            graph.node("Identity", [factor], tops[1:])


def _scale_shape(shape: Sequence[int]) -> Shape:
    """The scale's shape in which it is multiplied by an x of this shape."""
    return (*shape[:1], 1, *shape[2:])[: len(shape)]


class _ChannelScale(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, factor: Tensor | None, flags: tuple[bool, bool, bool]
    ) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.flags = flags
        if not flags[0]:
            return x.clone()
        return x * (scale if factor is None else factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, scale = ctx.saved_tensors
        _, of_x, of_scale = ctx.flags
        x_diff = top_diff * scale if of_x else top_diff.clone()
        products = (top_diff * x).sum(1, keepdim=True) if x.dim() > 1 else top_diff * x
        return x_diff, products if of_scale else torch.zeros_like(scale), None, None
