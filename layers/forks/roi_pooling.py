"""ROIPooling: the maximum of each of pooled_h x pooled_w bins of each region of interest.

    x1..y2 = round(spatial_scale * corner)         halves away from zero
    height = max(y2 - y1 + 1, 1)                   width likewise
    bin i  = rows floor(i b) + y1 to ceil((i + 1) b) + y1, without the last; b = height / pooled_h
    top    = maximum of the bin's cells within the map; 0 for a bin without one

So neighbouring bins may overlap.

bottom[0]  (N, C, H, W)
bottom[1]  (R, 5): image, x1, y1, x2, y2; gets no gradient
top[0]     (R, C, pooled_h, pooled_w)

A bin's top diff goes to the first of its largest cells in row order. As in the fork's GPU code, it is lost
where the cell is not within x1..x2, y1..y2, as for ROIs whose x2 is less than x1, and where rounding puts
the cell into another bin on the way back.

Faster R-CNN (rbgirshick/caffe-fast-rcnn, branch faster-rcnn): roi_pooling_layer.cpp and .cu. Differs: on the
CPU the fork has no backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.files.errors import ExportError
from imae.layers.autograd import apply
from imae.layers.forks.rois import (
    check_rois,
    example_rois,
    four_axes,
    image_reader,
    in_enough_bits,
    round_away,
)
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter

LOWEST = -3.4028234663852886e38  # -FLT_MAX, with which the fork's search begins
LAST_WITH_KERNELS = 21  # the last operator set for which ONNX Runtime has MaxRoiPool
TABLE = 2**26  # values of all tables at a time
NONE = -1  # the cell of a bin that has none


@register_layer("ROIPooling")
class ROIPooling(Layer):
    num_bottoms, num_tops = 2, 1
    in_place = False

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        pooling = param.roi_pooling_param
        self.pooled = pooling.pooled_h, pooling.pooled_w
        self.spatial_scale = pooling.spatial_scale
        for field in ("pooled_h", "pooled_w"):
            if not getattr(pooling, field):
                raise self.error(f"roi_pooling_param.{field} must be > 0")
        self.images = image_reader(self)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        features, rois = bottom_shapes
        channels = four_axes(self, 0, features)[1]
        return [(check_rois(self, 1, rois), channels, *self.pooled)]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index == 0

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        features = features.reshape(four_axes(self, 0, tuple(features.shape)))
        rows = in_enough_bits(rois.detach())
        image, _ = self.images(rows[:, 0], len(features))
        corners = round_away(rows[:, 1:] * self.spatial_scale)
        down = Bins.of(corners[:, 1], corners[:, 3], self.pooled[0], features.shape[2])
        across = Bins.of(corners[:, 0], corners[:, 2], self.pooled[1], features.shape[3])
        return apply(_MaxOfBins, features, image, down, across)

    def example(self, bottom_index: int, bottom_shapes: Sequence[Shape]) -> NDArray[np.float32] | None:
        (images, _, height, width), (rois, *_) = four_axes(self, 0, bottom_shapes[0]), bottom_shapes[1]
        scale = self.spatial_scale
        return example_rois(rois, images, height / scale, width / scale) if bottom_index == 1 else None

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        if graph.opset > LAST_WITH_KERNELS:
            raise ExportError(
                f"layer {self.name!r}: ONNX Runtime has no MaxRoiPool of operator set {graph.opset}; "
                f"export with opset {LAST_WITH_KERNELS} at most"
            )
        features, rois = bottoms
        if len(graph.shape(features)) < 4:
            shape = four_axes(self, 0, graph.shape(features))
            features = graph.node("Reshape", [features, graph.constant(np.array([0, *shape[1:]]))])
        if len(graph.shape(rois)) > 2:
            rois = graph.node("Reshape", [rois, graph.constant(np.array([-1, 5]))])
        graph.node(
            "MaxRoiPool",
            [features, rois],
            tops,
            pooled_shape=list(self.pooled),
            spatial_scale=self.spatial_scale,
        )


class Bins(NamedTuple):
    """The bins of R ROIs along one axis of a map.

    start, end   (R, B), integers: the bin's cells within the map, end excluded
    first, last  (R): the ROI's first and last cell, rounded
    size         (R): a bin's size
    """

    start: Tensor
    end: Tensor
    first: Tensor
    last: Tensor
    size: Tensor

    @classmethod
    def of(cls, first: Tensor, last: Tensor, bins: int, cells: int) -> Bins:
        size = (last - first + 1).clamp(min=1) / bins
        edges = torch.arange(bins + 1, device=first.device, dtype=first.dtype)
        start = (edges[:-1] * size[:, None]).floor() + first[:, None]
        end = (edges[1:] * size[:, None]).ceil() + first[:, None]
        return cls(start.clamp(0, cells).long(), end.clamp(0, cells).long(), first, last, size)

    def takes_back(self, cell: Tensor, axis: int) -> Tensor:
        """Whether the backward pass of the fork's GPU code finds the cell of each bin.

        cell   (R, C, pooled_h, pooled_w), along this axis
        axis   2 or 3, that of these bins
        """
        first, last, size = (value.view(-1, 1, 1, 1) for value in (self.first, self.last, self.size))
        bins = torch.arange(self.start.shape[1], device=cell.device).view(-1, *[1] * (3 - axis))
        offset = cell - first
        found = ((offset / size).floor() <= bins) & (((offset + 1) / size).ceil() > bins)
        return found & (cell >= first) & (cell <= last)


class _MaxOfBins(torch.autograd.Function):
    """Maxima from tables of windows whose sides are powers of two: four of them cover each bin."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, image: Tensor, down: Bins, across: Bins) -> Tensor:
        ctx.shape = features.shape
        _, channels, _, width = ctx.shape
        pooled = down.start.shape[1], across.start.shape[1]
        if not features.numel() or not len(image):
            ctx.save_for_backward(image, image.new_full((len(image), channels, *pooled), NONE))
            return features.new_zeros(len(image), channels, *pooled)
        # Only numbers above the lowest one are ever chosen, as by the fork's comparisons.
        lowest = max(LOWEST, torch.finfo(features.dtype).min)
        values = torch.nan_to_num(features.permute(0, 2, 3, 1), nan=lowest, posinf=torch.inf, neginf=lowest)
        best = _largest_of_bins(values, image, down, across, ctx.needs_input_grad[0])
        empty = ((down.end <= down.start)[:, :, None] | (across.end <= across.start)[:, None, :]).view(-1, 1)
        shape = len(image), *pooled, channels
        if best.cells is not None:
            cell = best.cells.masked_fill(empty | (best.values <= lowest), NONE).view(shape)
            cell = cell.permute(0, 3, 1, 2)
            taken = down.takes_back(cell // width, 2) & across.takes_back(cell % width, 3)
            ctx.save_for_backward(image, cell.masked_fill(~taken, NONE))
        return best.values.masked_fill(empty, 0).view(shape).permute(0, 3, 1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor | None, ...]:
        image, cell = ctx.saved_tensors
        images, channels, height, width = ctx.shape
        if not cell.numel() or not ctx.shape.numel():
            return top_diff.new_zeros(ctx.shape), None, None, None
        planes = image[:, None] * channels + torch.arange(channels, device=image.device)
        places = planes[:, :, None, None] * (height * width) + cell.clamp(min=0)
        diff = top_diff.new_zeros(images * channels * height * width)
        diff.index_add_(0, places.flatten(), top_diff.masked_fill(cell < 0, 0).flatten())
        return diff.view(ctx.shape), None, None, None


def _largest_of_bins(values: Tensor, image: Tensor, down: Bins, across: Bins, with_cells: bool) -> Largest:
    """The largest value of each bin, one row of channels for each; `values` has the channels last.

    Some channels at a time, so that the tables stay small.
    """
    images, height, width, channels = values.shape
    levels_down, windows_down = _windows(down, height)
    levels_across, windows_across = _windows(across, width)
    places = []
    for level_y, y in windows_down:
        for level_x, x in windows_across:
            table = level_y[:, :, None] * levels_across + level_x[:, None, :]
            row = (table * images + image.view(-1, 1, 1)) * height + y[:, :, None]
            places.append((row * width + x[:, None, :]).flatten())
    cells = torch.arange(height * width, dtype=torch.int32, device=values.device).view(1, height, width, 1)
    found = []
    count = max(TABLE // (levels_down * levels_across * images * height * width), 1)
    for start in range(0, channels, count):
        part = values[..., start : start + count]
        first = Largest(part, cells.expand(part.shape) if with_cells else None)
        tables = Largest.of_rows([
            table for rows in _levels(first, 1, levels_down) for table in _levels(rows, 2, levels_across)
        ])  # fmt: skip
        best = tables.rows(places[0])
        for place in places[1:]:
            best = best.larger(tables.rows(place))
        found.append(best)
    parts = [best.cells for best in found if best.cells is not None]
    return Largest(torch.cat([best.values for best in found], 1), torch.cat(parts, 1) if parts else None)


class Largest(NamedTuple):
    """The largest values of some windows, and the first cell in row order that has each, where asked for."""

    values: Tensor
    cells: Tensor | None

    @classmethod
    def of_rows(cls, tables: Sequence[Largest]) -> Largest:
        """All tables in one, each row of which has the channels of one window."""
        channels = tables[0].values.shape[-1]
        cells = [table.cells for table in tables if table.cells is not None]
        return cls(
            torch.stack([table.values for table in tables]).view(-1, channels),
            torch.stack(cells).view(-1, channels) if cells else None,
        )

    def rows(self, places: Tensor) -> Largest:
        cells = None if self.cells is None else self.cells.index_select(0, places)
        return Largest(self.values.index_select(0, places), cells)

    def shifted(self, axis: int, step: int) -> Largest:
        cells = None if self.cells is None else self.cells.roll(-step, axis)
        return Largest(self.values.roll(-step, axis), cells)

    def larger(self, other: Largest) -> Largest:
        """The larger of both at each place."""
        if self.cells is None or other.cells is None:
            return Largest(torch.maximum(self.values, other.values), None)
        takes = (other.values > self.values) | ((other.values == self.values) & (other.cells < self.cells))
        return Largest(
            torch.where(takes, other.values, self.values), torch.where(takes, other.cells, self.cells)
        )


def _windows(bins: Bins, cells: int) -> tuple[int, list[tuple[Tensor, Tensor]]]:
    """The number of levels, and the level and the first cell of each of the two windows that cover a bin."""
    size = (bins.end - bins.start).clamp(min=1)
    level = torch.floor(torch.log2(size.double())).long()
    # The host does not ask a device for the largest bin: it would wait.
    largest = int(size.max()) if size.device.type == "cpu" else cells
    starts = bins.start, bins.end - 2**level
    return largest.bit_length(), [(level, start.clamp(0, cells - 1)) for start in starts]


def _levels(first: Largest, axis: int, count: int) -> list[Largest]:
    """Level l has at each place the largest of the 2^l places from there on.

    A window that reaches beyond the end goes on at the beginning; no bin uses it.
    """
    levels = [first]
    for level in range(count - 1):
        levels.append(levels[-1].larger(levels[-1].shifted(axis, 2**level)))
    return levels
