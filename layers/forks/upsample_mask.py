"""Upsample of SegNet: each value goes to where its maximum was; all other pixels are 0.

    top[mask[i]] = data[i], in each plane; where places are equal, the last i in memory order wins

bottom[0]  data, (N, C, H, W)
bottom[1]  mask, the same shape: places y W' + x in the top's plane, as the second top of a MAX Pooling
           holds them; sends no gradient
top[0]     (N, C, H', W'): upsample_h x upsample_w where both are given, else H scale x W scale (scale_h and
           scale_w where given), less 1 with pad_out_h, pad_out_w, which need a scale of 2

The gradient of data[i] is the top's at mask[i], also where another value won the place.

SegNet (alexgkendall/caffe-segnet, TimoSaemann/caffe-segnet-cudnn5): upsample_layer.cpp. Differs: a place
below 0 is an error (the fork writes out of bounds), as one beyond the end is; where the size of the bottom
changes, the top's follows (the fork keeps the first one); with upsample_h and upsample_w it also has a
gradient (the fork's check of it reads a number that nothing sets). In ONNX, which of several equal places
wins is the runtime's choice. Masks of windows that do not overlap have no equal places.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.labels import LabelReader
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.onnx_sizes import integers, reshaped, sizes_of
from imae.prototxt import LayerParameter


class MaskUpsample(Layer):
    num_bottoms, num_tops = 2, 1
    in_place = False
    reads = ("upsample_param",)

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        upsample = param.upsample_param
        self.size: tuple[int, int] | None = None
        by_size, by_scale = (
            tuple(upsample.HasField(f"{stem}_{side}") for side in "hw") for stem in ("upsample", "scale")
        )
        is_fit = not any(by_scale) or (all(by_scale) and not upsample.HasField("scale"))
        if not all(by_size) and not is_fit:
            raise self.error(
                "upsample_h & upsample_w are required, else (DEPRECATED) scale OR scale_h & scale_w are "
                "required."
            )
        if all(by_size):
            self.size = (upsample.upsample_h, upsample.upsample_w)
            if min(self.size) < 2:
                raise self.error(f"upsample_h and upsample_w must be above 1; got {self.size}")
            self._note_unread("scale", "scale_h", "scale_w", "pad_out_h", "pad_out_w")
        else:
            self._note_unread("upsample_h", "upsample_w")
        scale = upsample.scale if upsample.HasField("scale") else 2
        self.scales = (upsample.scale_h, upsample.scale_w) if all(by_scale) else (scale, scale)
        self.cuts = (int(upsample.pad_out_h), int(upsample.pad_out_w))
        if self.size is None:
            self._check_scales()
        self.places = LabelReader(self, message=self._wrong_place)

    def _note_unread(self, *fields: str) -> None:
        for field in fields:
            if self.param.upsample_param.HasField(field):
                self.note_leftover(f"upsample_param.{field}")

    def _check_scales(self) -> None:
        if min(self.scales) < 2:
            raise self.error(f"scale, scale_h and scale_w must be above 1; got {self.scales}")
        for name, letter, cut, scale in zip(("height", "width"), "hw", self.cuts, self.scales, strict=True):
            if cut and scale != 2:
                raise self.error(
                    f"Output {name} padding compensation requires scale_{letter} == 2, otherwise the output "
                    f"size is ill-defined.; got {scale}"
                )

    def _wrong_place(self, place: int, count: int) -> str:
        return (
            f"upsample top index {place} out of range - check scale settings match input pooling layer's "
            f"downsample setup; a plane of the top has {count} pixels"
        )

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        data, mask = (tuple(shape) for shape in bottom_shapes)
        if len(data) != 4:
            raise self.error(
                f"Input must have 4 axes, corresponding to (num, channels, height, width); got {data}"
            )
        if mask != data:
            raise self.error(f"the mask must have the shape of the data, {data}; got {mask}")
        return [(*data[:2], *self._sizes(data))]

    def _sizes(self, data: Shape) -> tuple[int, int]:
        if self.size is not None:
            return self.size
        height, width = (n * s - c for n, s, c in zip(data[2:], self.scales, self.cuts, strict=True))
        return height, width

    def index_count(self, bottom_index: int, bottom_shapes: Sequence[Shape]) -> int | None:
        height, width = self._sizes(tuple(bottom_shapes[0]))
        return height * width if bottom_index == 1 else None

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 1

    def forward(self, data: Tensor, mask: Tensor) -> Tensor:
        height, width = self._sizes(tuple(data.shape))
        places, _ = self.places(mask.detach().flatten(2), height * width)
        planes = apply(_Unpool, data.flatten(2), places, height * width)
        return planes.reshape(*data.shape[:2], height, width)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        from onnx import TensorProto  # here, because it is slow to import

        height, width = graph.shape(tops[0])[2:]
        sizes: list[int | str]
        if graph.free_axes(tops[0]):
            scaled = graph.node("Mul", [sizes_of(graph, bottoms[0], [2, 3]), integers(graph, *self.scales)])
            size = graph.node("Sub", [scaled, integers(graph, *self.cuts)])
            sizes, count = [size], graph.node("ReduceProd", [size], keepdims=1)
        else:
            sizes, count = [height, width], graph.constant(np.array([height * width]))
        flat = graph.constant(np.array([0, 0, -1]))
        data, mask = (graph.node("Reshape", [bottom, flat]) for bottom in bottoms)
        places = graph.node("Cast", [mask], to=TensorProto.INT64)
        start = [graph.constant(np.array([number])) for number in (0, 2)]
        planes = graph.node("Slice", [graph.node("Shape", [bottoms[0]]), *start])
        shape = graph.node("Concat", [planes, count], axis=0)
        zeros = graph.node("Expand", [graph.constant(np.zeros((1, 1, 1), np.float32)), shape])
        top = graph.node("ScatterElements", [zeros, places, data], axis=2)
        reshaped(graph, top, [0, 0, *sizes], tops)


class _Unpool(torch.autograd.Function):
    """Planes of `count` zeros with the data at their places; the last of equal places wins on any device."""

    @staticmethod
    def forward(ctx: Any, data: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(places)
        if not places.numel():
            return data.new_zeros((*places.shape[:2], count))
        order = torch.arange(places.shape[2], device=places.device).expand_as(places)
        winners = places.new_full((*places.shape[:2], count), -1)
        winners = winners.scatter_reduce_(2, places, order, "amax")
        is_hit = winners >= 0
        return data.gather(2, winners.clamp(min=0)).where(is_hit, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return top_diff.gather(2, places), None, None
