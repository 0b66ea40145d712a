"""Slice: the bottom is cut along `axis` into parts, one per top.

bottom[0]  any shape
top[0..]   the bottom's shape but for `axis` (default 1; slice_dim is its old name): the parts begin at 0 and
           at each slice_point; without slice_point all have the same size

Caffe: slice_layer.cpp. Differs: a last slice_point at or beyond the end of the axis is an error.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imae.files.errors import ExportError
from imae.layers.blob import shape_string
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.onnx_sizes import integers, sizes_of
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("Slice")
class Slice(Layer):
    num_bottoms = 1
    min_tops = 1
    keeps_places = True

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.shares_memory = len(param.top) == 1
        part = param.slice_param
        if part.HasField("axis") and part.HasField("slice_dim"):
            raise self.error("Either axis or slice_dim should be specified; not both.")
        points = list(part.slice_point)
        if points and len(points) != len(param.top) - 1:
            raise self.error(
                f"slice_point must be given once less than there are tops; got {len(points)} for "
                f"{len(param.top)} tops"
            )
        if any(after <= before for before, after in zip([0, *points], points, strict=False)):
            raise self.error(f"slice_point must be greater than 0 and than the one before; got {points}")

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        axis = self._axis(len(shape))
        return [(*shape[:axis], size, *shape[axis + 1 :]) for size in self._sizes(shape, axis)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        axis = self._axis(x.dim())
        return torch.split(x, self._sizes(tuple(x.shape), axis), axis)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        shape = graph.shape(bottoms[0])
        axis = self._axis(len(shape))
        if axis == 0:
            raise ExportError(f"layer {self.name!r}: axis 0 is the open batch size")
        if axis not in graph.free_axes(bottoms[0]):
            sizes = graph.constant(np.array(self._sizes(shape, axis)))
            graph.node("Split", [bottoms[0], sizes], tops, axis=axis)
            return
        size = sizes_of(graph, bottoms[0], [axis])
        if points := list(self.param.slice_param.slice_point):
            first = [end - start for start, end in zip([0, *points], points, strict=False)]
            last = graph.node("Sub", [size, integers(graph, points[-1])])
            parts = graph.node("Concat", [integers(graph, *first), last], axis=0)
        else:
            equal = graph.node("Div", [size, integers(graph, len(tops))])
            parts = graph.node("Expand", [equal, integers(graph, len(tops))])
        graph.node("Split", [bottoms[0], parts], tops, axis=axis)

    def _axis(self, num_axes: int) -> int:
        part = self.param.slice_param
        if not part.HasField("slice_dim"):
            return self.canonical_axis(part.axis, num_axes)
        if part.slice_dim >= num_axes:
            raise self.error(f"slice_dim out of range.; got {part.slice_dim} for {num_axes} axes")
        return part.slice_dim

    def _sizes(self, shape: Shape, axis: int) -> list[int]:
        tops, size, points = len(self.param.top), shape[axis], list(self.param.slice_param.slice_point)
        if points:
            if points[-1] >= size:
                raise self.error(
                    f"slice axis: {axis}, bottom[0] shape: {shape_string(shape)}; "
                    f"slice_point {points[-1]} leaves nothing for the last top"
                )
            return [end - start for start, end in zip([0, *points], [*points, size], strict=True)]
        if size % tops:
            raise self.error(f"Number of top blobs ({tops}) should evenly divide input slice axis ({size})")
        return [size // tops] * tops
