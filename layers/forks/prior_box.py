"""PriorBox: the boxes of a feature map from which SSD predicts, the same for all images.

    centre = ((column + offset) step_w, (row + offset) step_h)       in pixels of the image
    box    = centre -+ size / 2, divided by the image's width and height

For each min_size in turn: a square of min_size; with max_sizes a square of sqrt(min_size max_size); then for
each aspect ratio r but 1 the width min_size sqrt(r) and the height min_size / sqrt(r). Sizes are cut to
integers. Ratios: 1, then the given ones, each with 1/r right after it if `flip`; one that is there already is
skipped.

bottom[0]  the feature map; only its H and W count
bottom[1]  the image; only its H and W count. It may be left out where img_size, or img_h and img_w, give them
top[0]     (1, 2, H W P 4): boxes (order: row, column, prior) and their variances; constant

A step that is not given is the size of the image by that of the map. Variances: 4, or one for all, or none:
0.1.

SSD (weiliu89/caffe, branch ssd): prior_box_layer.cpp.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Sequence
from functools import lru_cache
from math import prod, sqrt
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter

Pair = tuple[int, int]
LARGEST = 2**31  # what the fork can keep as an int is below


@register_layer("PriorBox")
class PriorBox(Layer):
    """Types that differ only in the sizes of their boxes replace `box_sizes`."""

    min_bottoms, max_bottoms = 1, 2
    num_tops = 1
    in_place = False

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        fields = param.prior_box_param
        self.sizes = self.box_sizes()
        variances = list(fields.variance) or [0.1]
        if len(variances) not in (1, 4) or not all(value > 0 for value in variances):
            raise self.error(f"variance: 1 or 4 values larger than 0 are needed; got {variances}")
        self.variances = tuple(variances if len(variances) == 4 else variances * 4)
        self.image = self._pair("img_size", "img_h", "img_w")
        self.step = self._pair("step", "step_h", "step_w")

    def box_sizes(self) -> tuple[tuple[float, float], ...]:
        """Width and height of each prior, in pixels."""
        fields = self.param.prior_box_param
        if fields.width or fields.height:
            raise self.error("width and height are PriorBoxClustered's; PriorBox has min_size and max_size")
        if not fields.min_size or not all(0 < size < LARGEST for size in fields.min_size):
            raise self.error(f"must provide min_size, larger than 0; got {list(fields.min_size)}")
        if fields.max_size:
            if len(fields.max_size) != len(fields.min_size):
                raise self.error(
                    f"there must be as many max_sizes as min_sizes; got {len(fields.max_size)} and "
                    f"{len(fields.min_size)}"
                )
            for low, high in zip(fields.min_size, fields.max_size, strict=True):
                if not low < high < LARGEST:
                    raise self.error(f"max_size must be greater than min_size.; got {high} and {low}")
        ratios = self._ratios()
        result = []
        for index, size in enumerate(fields.min_size):
            low = int(size)
            result.append((float(low), float(low)))
            if fields.max_size:
                side = float(np.float32(sqrt(low * int(fields.max_size[index]))))
                result.append((side, side))
            result += [(float(low * root), float(low / root)) for root in np.sqrt(ratios[1:])]
        return tuple(result)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        grid, _ = self._sizes(bottom_shapes)
        return [(1, 2, prod(grid) * len(self.sizes) * 4)]

    def forward(self, feature_map: Tensor, image: Tensor | None = None) -> Tensor:
        shapes = [tuple(bottom.shape) for bottom in (feature_map, image) if bottom is not None]
        dtype = torch.promote_types(feature_map.dtype, torch.float32)  # coordinates: see precision.py
        return _made(self._plan(shapes), dtype, feature_map.device).clone()

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        boxes = _boxes(self._plan([graph.shape(bottom) for bottom in bottoms])).astype(np.float32)
        graph.node("Identity", [graph.constant(boxes)], tops)

    def _plan(self, shapes: Sequence[Shape]) -> Plan:
        fields = self.param.prior_box_param
        grid, image = self._sizes(shapes)
        step = self.step or (image[0] / grid[0], image[1] / grid[1])
        return Plan(self.sizes, self.variances, grid, image, step, fields.offset, fields.clip)

    def _sizes(self, shapes: Sequence[Shape]) -> tuple[Pair, Pair]:
        """Height and width of the map and of the image."""
        grid = self._height_and_width(shapes[0])
        if self.image is not None:
            image = int(self.image[0]), int(self.image[1])
        elif len(shapes) > 1:
            image = self._height_and_width(shapes[1])
        else:
            raise self.error("give the image as a second bottom, or its size as img_size, or img_h and img_w")
        return grid, image

    def _height_and_width(self, shape: Shape) -> Pair:
        if len(shape) > 4 or not prod(shape[2:]):
            raise self.error(f"a map and an image have at most 4 axes and at least one cell; got {shape}")
        height, width = (*shape[2:], 1, 1)[:2]
        return height, width

    def _ratios(self) -> NDArray[np.float32]:
        """1 and the aspect ratios, each once."""
        fields = self.param.prior_box_param
        ratios = [np.float32(1)]
        ascending = [np.float32(1)]  # the same: of these only the neighbours of a value can be near to it
        for value in fields.aspect_ratio:
            if not 0 < value < LARGEST or 1 / value >= LARGEST:
                raise self.error(
                    f"aspect_ratio must be larger than 0, and not too small or large; got {value}"
                )
            place = bisect(ascending, value)
            neighbours = ascending[max(place - 1, 0) : place + 1]
            if all(abs(np.float32(value) - ratio) >= 1e-6 for ratio in neighbours):
                for new in (value, 1 / value) if fields.flip else (value,):
                    ratios.append(np.float32(new))
                    insort(ascending, np.float32(new))
        return np.array(ratios, np.float32)

    def _pair(self, both: str, height: str, width: str) -> tuple[float, float] | None:
        """The values of the fields `height` and `width`, or of the one field for both; None: not given."""
        fields = self.param.prior_box_param
        single = fields.HasField(both)
        if fields.HasField(height) or fields.HasField(width):
            if single:
                raise self.error(f"Either {both} or {height}/{width} should be specified; not both.")
            pair = getattr(fields, height), getattr(fields, width)
        elif single:
            pair = getattr(fields, both), getattr(fields, both)
        else:
            return None
        if not all(0 < value < LARGEST for value in pair):
            names = both if single else f"{height} and {width}"
            raise self.error(f"{names} should be larger than 0.; got {pair[0]} and {pair[1]}")
        return pair


class Plan(NamedTuple):
    """All that the values of a PriorBox depend on; pairs are height and width, but sizes width and height."""

    sizes: tuple[tuple[float, float], ...]
    variances: tuple[float, ...]
    grid: Pair
    image: Pair
    step: tuple[float, float]
    offset: float
    clip: bool


@lru_cache(maxsize=64)
def _made(plan: Plan, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.from_numpy(_boxes(plan)).to(device, dtype)


def _boxes(plan: Plan) -> NDArray[np.float64]:
    """(1, 2, H W P 4): boxes and variances. Centres are rounded to single precision, as in the fork."""

    def centres(axis: int) -> NDArray[np.float64]:
        cells = np.arange(plan.grid[axis], dtype=np.float32) + np.float32(plan.offset)
        return (cells * np.float32(plan.step[axis])).astype(np.float64)

    half = np.array(plan.sizes) / 2
    y, x = np.meshgrid(centres(0), centres(1), indexing="ij")
    y, x = y[..., None], x[..., None]
    height, width = plan.image
    corners = [(x - half[:, 0]) / width, (y - half[:, 1]) / height,
               (x + half[:, 0]) / width, (y + half[:, 1]) / height]  # fmt: skip
    boxes = np.stack(corners, -1).reshape(-1, 4)
    if plan.clip:
        boxes = boxes.clip(0, 1)
    return np.stack([boxes, np.broadcast_to(plan.variances, boxes.shape)]).reshape(1, 2, -1)
