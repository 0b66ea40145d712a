"""PSROIPooling: the mean of each of g x g bins of each region of interest, each bin in channels of its own.

    x1, y1  = round(corner) s                       halves away from zero; s = spatial_scale, g = group_size
    x2, y2  = (round(corner) + 1) s
    height  = max(y2 - y1, 0.1)                     width likewise
    bin i   = rows floor(y1 + i b) to ceil(y1 + (i + 1) b), without the last; b = height / g
    top[r, c, i, j] = mean of channel (c g + i) g + j over the bin's cells within the map; 0 without any

bottom[0]  (N, output_dim g^2, H, W)
bottom[1]  (R, 5): image, x1, y1, x2, y2; gets no gradient
top[0]     (R, output_dim, g, g)

R-FCN (daijifeng001/caffe-rfcn, branch r-fcn): psroi_pooling_layer.cpp and .cu; on the CPU as in intel/caffe.
Differs: an image number out of range is an error. A NaN or an infinity in the map spreads to all bins in its
rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imae.layers.forks.rois import (
    FAR,
    check_rois,
    example_rois,
    four_axes,
    image_reader,
    in_enough_bits,
    number,
    round_away,
    rounded,
)
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.onnx_sizes import counted, integers, parts_of, sizes_of
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter

SUMS = 2**26  # sums over the rows of bins at a time
SMALLEST = 0.1  # an ROI's height and width on the map


@register_layer("PSROIPooling")
class PSROIPooling(Layer):
    num_bottoms, num_tops = 2, 1
    in_place = False

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        pooling = param.psroi_pooling_param
        for field in ("spatial_scale", "output_dim", "group_size"):
            if not pooling.HasField(field):
                raise self.error(f"psroi_pooling_param.{field} must be given")
        for field in ("output_dim", "group_size"):
            if getattr(pooling, field) <= 0:
                raise self.error(f"psroi_pooling_param.{field} must be > 0, got {getattr(pooling, field)}")
        self.spatial_scale = pooling.spatial_scale
        self.output_dim, self.group_size = pooling.output_dim, pooling.group_size
        self.images = image_reader(self)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        channels = four_axes(self, 0, bottom_shapes[0])[1]
        if channels != self.output_dim * self.group_size**2:
            raise self.error(
                "input channel number does not match layer parameters; bottom[0] must have "
                f"output_dim * group_size^2 = {self.output_dim * self.group_size**2} channels, got {channels}"
            )
        return [(check_rois(self, 1, bottom_shapes[1]), self.output_dim, self.group_size, self.group_size)]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index == 0

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        images, _, height, width = four_axes(self, 0, tuple(features.shape))
        groups = self.group_size
        rows = in_enough_bits(rois.detach())
        image, _ = self.images(rows[:, 0], images)
        first = round_away(rows[:, 1:3]) * self.spatial_scale
        last = (round_away(rows[:, 3:]) + 1) * self.spatial_scale
        size = (last - first).clamp(min=SMALLEST) / groups
        down = _in_bins(first[:, 1], size[:, 1], groups, height)
        across = _in_bins(first[:, 0], size[:, 0], groups, width)
        area = (down.sum(2)[:, :, None] * across.sum(2)[:, None, :]).clamp(min=1)
        # The rows of all images are one axis, and an ROI has none in the images of others.
        of_image = image[:, None] == torch.arange(images, device=image.device)
        down = down[:, :, None, :] & of_image[:, None, :, None]
        down = down.to(features.dtype).permute(1, 0, 2, 3).reshape(groups, 1, len(rows), images * height)
        maps = features.reshape(images, self.output_dim, groups, groups, height, width)
        maps = maps.permute(2, 3, 0, 4, 1, 5)
        maps = maps.reshape(groups, groups, images * height, self.output_dim * width)
        across = across.to(features.dtype).permute(1, 0, 2).view(1, groups, len(rows), 1, width)
        parts = []  # some ROIs at a time, so that the sums stay small
        count = max(SUMS // max(maps.shape[3] * groups**2, 1), 1)
        for start in range(0, max(len(rows), 1), count):
            summed = down[:, :, start : start + count] @ maps
            summed = summed.view(groups, groups, summed.shape[2], self.output_dim, width)
            parts.append((summed * across[:, :, start : start + count]).sum(4))
        return torch.cat(parts, 2).permute(2, 3, 0, 1) / area.to(features.dtype)[:, None]

    def example(self, bottom_index: int, bottom_shapes: Sequence[Shape]) -> NDArray[np.float32] | None:
        (images, _, height, width), (rois, *_) = four_axes(self, 0, bottom_shapes[0]), bottom_shapes[1]
        scale = self.spatial_scale
        return example_rois(rois, images, height / scale, width / scale) if bottom_index == 1 else None

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        """The same products of matrices as in `forward`."""
        from onnx import TensorProto  # here, because it is slow to import

        node, groups, dim = graph.node, self.group_size, self.output_dim
        sizes: list[int | str] = list(four_axes(self, 0, graph.shape(bottoms[0]))[2:])
        columns_of_all: int | str = dim * int(sizes[1])
        if free := graph.free_axes(bottoms[0]):
            sizes = parts_of(graph, bottoms[0], [2, 3])
            columns_of_all = node("Mul", [sizes_of(graph, bottoms[0], [3]), integers(graph, dim)])
        height, width = sizes
        rows = node("Reshape", [bottoms[1], graph.constant(np.array([-1, 5]))])

        def column(index: int) -> str:
            return node("Gather", [rows, graph.constant(np.array([index]))], axis=1)

        def in_bins(axis: int) -> str:
            """As `_in_bins`, in numbers; axis 0 across, 1 down."""
            scale, one = number(graph, self.spatial_scale), number(graph, 1)
            first = node("Mul", [rounded(graph, column(1 + axis)), scale])
            last = node("Mul", [node("Add", [rounded(graph, column(3 + axis)), one]), scale])
            size = node("Max", [node("Sub", [last, first]), number(graph, SMALLEST)])
            size = node("Div", [size, number(graph, groups)])
            within = []
            for edge, cut, compare in ((0, "Floor", "GreaterOrEqual"), (1, "Ceil", "Less")):
                edges = graph.constant(np.arange(edge, groups + edge, dtype=np.float32)[None])
                place = node(cut, [node("Add", [node("Mul", [edges, size]), first])])
                place = node("Unsqueeze", [place, graph.constant(np.array([2]))])
                if free:
                    cell = node("Unsqueeze", [counted(graph, bottoms[0], 3 - axis), integers(graph, 0, 1)])
                else:
                    cell = graph.constant(np.arange(int(sizes[1 - axis]), dtype=np.float32)[None, None])
                within.append(node(compare, [cell, place]))
            return node("Cast", [node("And", within)], to=TensorProto.FLOAT)

        def reshaped(value: str, *shape: int | str) -> str:
            parts = [d if isinstance(d, str) else graph.constant(np.array([d])) for d in shape]
            return node("Reshape", [value, node("Concat", parts, axis=0)])

        across, down = in_bins(0), in_bins(1)
        last_axis, axis_1 = graph.constant(np.array([2])), graph.constant(np.array([1]))
        cells_across = node("ReduceSum", [across, last_axis], keepdims=0)
        cells_across = node("Unsqueeze", [cells_across, axis_1])
        area = node("Mul", [node("ReduceSum", [down, last_axis], keepdims=1), cells_across])
        area = node("Unsqueeze", [node("Max", [area, number(graph, 1)]), axis_1])
        axis_0 = graph.constant(np.array([0]))
        rois = node("Gather", [node("Shape", [rows]), axis_0], axis=0)
        images = node("Gather", [node("Shape", [bottoms[0]]), axis_0], axis=0)
        scalar = graph.constant(np.array(0)), graph.constant(np.array(1))
        count = node("Squeeze", [images, axis_0])
        numbers = node("Cast", [node("Range", [scalar[0], count, scalar[1]])], to=TensorProto.INT64)
        image = node("Cast", [column(0)], to=TensorProto.INT64)
        of_image = node("Cast", [node("Equal", [image, numbers])], to=TensorProto.FLOAT)
        of_image = reshaped(of_image, rois, 1, images, 1)
        down = node("Mul", [reshaped(down, rois, groups, 1, height), of_image])
        down = reshaped(node("Transpose", [down], perm=[1, 0, 2, 3]), groups, 1, rois, -1)
        maps = reshaped(bottoms[0], images, dim, groups, groups, height, width)
        maps = reshaped(
            node("Transpose", [maps], perm=[2, 3, 0, 4, 1, 5]), groups, groups, -1, columns_of_all
        )
        summed = reshaped(node("MatMul", [down, maps]), groups, groups, rois, dim, width)
        across = reshaped(node("Transpose", [across], perm=[1, 0, 2]), 1, groups, rois, 1, width)
        summed = node("ReduceSum", [node("Mul", [summed, across]), graph.constant(np.array([4]))], keepdims=0)
        node("Div", [node("Transpose", [summed], perm=[2, 3, 0, 1]), area], tops)


def _in_bins(first: Tensor, size: Tensor, bins: int, cells: int) -> Tensor:
    """Whether each cell of an axis is in each bin: (R, bins, cells)."""
    edges = torch.arange(bins + 1, device=first.device, dtype=first.dtype)
    start = (edges[:-1] * size[:, None] + first[:, None]).floor().clamp(-FAR, FAR)
    end = (edges[1:] * size[:, None] + first[:, None]).ceil().clamp(-FAR, FAR)
    cell = torch.arange(cells, device=first.device)
    return (cell >= start[:, :, None]) & (cell < end[:, :, None])
