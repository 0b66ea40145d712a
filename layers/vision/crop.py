"""Crop: the part of bottom[0] that has the size of bottom[1].

    top[.., i_axis, .., i_last] = bottom[0][.., i_axis + offset_axis, .., i_last + offset_last]

bottom[0]  any shape
bottom[1]  as many axes; only its sizes from `axis` on count, and it gets no gradient
top[0]     bottom[0]'s sizes before `axis`, bottom[1]'s from there on

`offset` is given once for all axes from `axis` on, or once for each; default 0. Caffe: crop_layer.cpp.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("Crop")
class Crop(Layer):
    num_bottoms = 2
    num_tops = 1

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        data, reference = bottom_shapes
        axis = self.canonical_axis(self.param.crop_param.axis, len(data))
        if len(reference) < len(data):
            raise self.error(f"bottom[1] must have as many axes as bottom[0]; got {reference} and {data}")
        for i, offset in enumerate(self._offsets(len(data)), axis):
            if data[i] - offset < reference[i]:
                raise self.error(
                    f"the crop for dimension {i} is out-of-bounds with size {reference[i]} and "
                    f"offset {offset}; bottom[0] is {data}"
                )
        return [(*data[:axis], *reference[axis : len(data)])]

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        offsets = self._offsets(x.dim())
        axis = x.dim() - len(offsets)
        for i, offset in enumerate(offsets, axis):
            x = x.narrow(i, offset, reference.shape[i])
        return x.clone()

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        num_axes = len(graph.shape(bottoms[0]))
        offsets = np.array(self._offsets(num_axes))
        axes = graph.constant(np.arange(num_axes - len(offsets), num_axes))
        starts = graph.constant(offsets)
        sizes = graph.node("Gather", [graph.node("Shape", [bottoms[1]]), axes])
        graph.node("Slice", [bottoms[0], starts, graph.node("Add", [starts, sizes]), axes], tops)

    def _offsets(self, num_axes: int) -> list[int]:
        """One offset for each axis from `axis` on."""
        crop = self.param.crop_param
        cropped = num_axes - self.canonical_axis(crop.axis, num_axes)
        offsets = list(crop.offset)
        if len(offsets) > 1 and len(offsets) != cropped:
            raise self.error(
                "number of offset values specified must be equal to the number of dimensions following "
                f"axis.; got {len(offsets)} for {cropped}"
            )
        return offsets if len(offsets) > 1 else (offsets or [0]) * cropped
