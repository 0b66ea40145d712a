"""What the BN layers of all forks share: bottoms of two to four axes, statistics of a channel, the gradient.

top = scale (x - mean) / std + shift          mean, std, scale, shift: one number per channel
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.precision import at_least_single
from imae.prototxt import FillerParameter

AXES = (0, 2, 3)  # all but the channels'
# For Layer.advice_by_blob_count.
TWO_BLOBS = MappingProxyType({2: "SegNet's BN has 2; the net gets it by scale_filler or bn_mode in bn_param"})
FOUR_BLOBS = MappingProxyType(
    {
        4: "CaffeMex's BN has 4, the net gets it by decay in bn_param; so has that of TSN and PSPNet, by "
        "momentum or slope_filler"
    }
)


class ChannelNorm(Layer):
    """A layer whose blobs are (1, C, 1, 1) each.

    overwrites_diffs   a backward pass of the fork replaces the diffs of scale and shift instead of adding to
                       them: with iter_size the last pass counts
    keeps_axes         the top has the bottom's axes; otherwise four, unless it is in-place
    """

    num_bottoms = 1
    overwrites_diffs: ClassVar[bool] = False
    keeps_axes: ClassVar[bool] = False

    def add_channel_blobs(self, shape: Shape, fillers: Sequence[FillerParameter]) -> None:
        channels = self.legacy_shape(shape)[1]
        for filler in fillers:
            self.add_blob((1, channels, 1, 1), filler)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        if len(shape) < 2:
            raise self.error(f"the bottom must have at least 2 axes, (N, C, ...); got {shape}")
        four, channels = self.legacy_shape(shape), self.blob_shapes[0][1]
        if four[1] != channels:
            raise self.error(f"bottom {shape} must have {channels} channels on axis 1")
        is_in_place = self.param.top[0] in self.param.bottom
        top = shape if self.keeps_axes or is_in_place else four
        return [top, *[(1, channels, 1, 1)] * (len(self.param.top) - 1)]

    def batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each channel of (N, C, H, W), (1, C, 1, 1) each, without a gradient."""
        if not x.numel():
            raise self.error(f"a bottom without values has no statistics; got {tuple(x.shape)}")
        variance, mean = torch.var_mean(at_least_single(x.detach()), AXES, correction=0, keepdim=True)
        return mean, variance

    def fixed_statistics(self) -> tuple[Tensor, Tensor, float] | None:
        """Mean, variance and eps by which the top is normalised, whatever the batch; None: the batch's own.

        mean, variance   (C) each
        """
        return None

    def normalize(self, x: Tensor, mean: Tensor, std: Tensor, through: bool, learns: bool = True) -> Tensor:
        """The top of (N, C, H, W), in the first top's shape.

        through   the gradient takes mean and std for those of the batch
        learns    scale and shift get a gradient
        """
        scale, shift = self.blob(0), self.blob(1)
        if not learns:
            scale, shift = scale.detach(), shift.detach()
        overwritten = tuple(self.blobs)[:2] if self.overwrites_diffs else ()
        return apply(_Normalize, x, scale, shift, mean, std, through, overwritten)

    def bottom_to_onnx(self, graph: OnnxGraph, bottom: str, top: str) -> str:
        """The bottom with the top's axes."""
        axes, missing = len(graph.shape(bottom)), len(graph.shape(top)) - len(graph.shape(bottom))
        if not missing:
            return bottom
        return graph.node("Reshape", [bottom, graph.constant(np.array([0] * axes + [1] * missing))])

    def channel_constant(self, graph: OnnxGraph, top: str, value: Tensor, blob: int | None = None) -> str:
        """A constant with one number per channel, as it is multiplied with the top."""
        return graph.constant(value.reshape(-1, *[1] * (len(graph.shape(top)) - 2)), blob=blob)

    def scale_to_onnx(self, graph: OnnxGraph, value: str, top: str) -> None:
        """Nodes for scale x + shift."""
        scale, shift = (self.channel_constant(graph, top, self.blob(i), blob=i) for i in (0, 1))
        graph.node("Add", [graph.node("Mul", [value, scale]), shift], [top])


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        mean: Tensor,
        std: Tensor,
        through: bool,
        overwritten: Sequence[torch.nn.Parameter],
    ) -> Tensor:
        normed = (x - mean) / std
        ctx.save_for_backward(normed, scale, std)
        ctx.through, ctx.overwritten = through, overwritten
        return normed * scale + shift

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor | None, ...]:
        normed, scale, std = ctx.saved_tensors
        for parameter in ctx.overwritten:
            if parameter.grad is not None:
                parameter.grad.zero_()  # so that what autograd adds replaces it
        scale_diff = (normed * top_diff).sum(AXES, keepdim=True)
        shift_diff = top_diff.sum(AXES, keepdim=True)
        diff = top_diff * scale
        if ctx.through:
            product = (diff * normed).mean(AXES, keepdim=True)
            diff = diff - diff.mean(AXES, keepdim=True) - normed * product
        return diff / std, scale_diff, shift_diff, None, None, None, None
