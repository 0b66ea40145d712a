"""Reshape: the same values in memory order under another shape.

bottom[0]  any shape
top[0]     `num_axes` axes from `axis` on (default: all) replaced by `shape`, in which
           0 copies the bottom's size at that position, -1 is inferred (at most once)

A negative axis counts from num_axes + 1: -1 is after the last axis.

Caffe: reshape_layer.cpp.
"""

from collections.abc import Sequence
from math import prod

from torch import Tensor

from imae.files.errors import ExportError
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.onnx_sizes import parts_of, reshaped
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("Reshape")
class Reshape(Layer):
    num_bottoms = num_tops = 1
    in_place = False
    shares_memory = True

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.dims = list(param.reshape_param.shape.dim)
        if self.dims.count(-1) > 1:
            raise self.error(
                "new shape contains multiple -1 dims; at most a single (1) value of -1 may be specified; "
                f"got {self.dims}"
            )
        if any(dim < -1 for dim in self.dims):
            raise self.error(f"a dim must be a size, 0 to copy or -1 to infer; got {self.dims}")

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        bottom = bottom_shapes[0]
        start, end = self._range(len(bottom))
        dims = list(self.dims)
        for place, dim in enumerate(dims):
            if dim == 0:
                if start + place >= len(bottom):
                    raise self.error(
                        "new shape contains a 0, but there was no corresponding bottom axis to copy; "
                        f"got {self.dims} at axis {start} of {bottom}"
                    )
                dims[place] = bottom[start + place]
        if -1 in dims:
            count = prod(bottom)
            explicit = prod(bottom[:start]) * prod(bottom[end:]) * -prod(dims)
            if explicit == 0 or count % explicit:
                raise self.error(
                    f"bottom count ({count}) must be divisible by the product of the specified dimensions "
                    f"({explicit})"
                )
            dims[dims.index(-1)] = count // explicit
        top = (*bottom[:start], *dims, *bottom[end:])
        if prod(top) != prod(bottom):
            raise self.error(f"output count must match input count; bottom {bottom}, top {top}")
        return [top]

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(self.top_shapes([tuple(x.shape)])[0])

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        bottom = graph.shape(bottoms[0])
        start, end = self._range(len(bottom))
        # 0 and -1 mean the same in ONNX as in Caffe. The batch size must stay open: 0 in place, -1 elsewhere.
        batch = [] if end or not bottom else [-1]
        trailing = parts_of(graph, bottoms[0], range(end + len(batch), len(bottom)))
        target = [*[0] * start, *self.dims, *batch, *trailing]
        if target.count(-1) > 1:
            raise ExportError(
                f"layer {self.name!r}: its shape {self.dims} leaves both the batch axis and another open; "
                "write the other as a number"
            )
        reshaped(graph, bottoms[0], target, tops)

    def _range(self, num_axes: int) -> tuple[int, int]:
        """First axis that is replaced, and the end (exclusive)."""
        reshape = self.param.reshape_param
        start = reshape.axis if reshape.axis >= 0 else num_axes + 1 + reshape.axis
        if not 0 <= start <= num_axes:
            raise self.error(f"axis {reshape.axis} out of range for {num_axes}-D input blob")
        if reshape.num_axes < -1:
            raise self.error(f"num_axes must be >= 0, or -1 for all; got {reshape.num_axes}")
        end = num_axes if reshape.num_axes == -1 else start + reshape.num_axes
        if end > num_axes:
            raise self.error(f"end_axis = axis + num_axes is out of range; got {end} for {num_axes} axes")
        return start, end
