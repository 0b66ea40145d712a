"""ArgMax: the top_k largest values, the largest first; of equal values the larger index first.

bottom[0]  (N, ...)
top[0]     without axis  (N, 1, top_k): indices into the item, flattened;
                         (N, 2, top_k) with out_max_val: indices, then values;
                         with trailing axes of size 1 if the bottom has more than 3 axes
           with axis     the bottom's shape with top_k on `axis`: indices, or values with out_max_val

No gradient.

Caffe: argmax_layer.cpp.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from imae.files.errors import ExportError
from imae.layers.layer import Layer, Shape
from imae.layers.near_ties import near_ties_as
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("ArgMax")
class ArgMax(Layer):
    num_bottoms = num_tops = 1

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.top_k, self.out_max_val = param.argmax_param.top_k, param.argmax_param.out_max_val
        if self.top_k < 1:
            raise self.error(f"top k must not be less than 1.; got {self.top_k}")
        self.decision_top = 0 if self.top_k == 1 and not self.out_max_val else None

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        axis = self._axis(len(shape))
        if not shape:
            raise self.error("the bottom must have at least 1 axis; it is a scalar")
        if axis is not None and self.top_k > shape[axis]:
            raise self.error(
                "top_k must be less than or equal to the dimension of the axis.; "
                f"got {self.top_k} for size {shape[axis]}"
            )
        if axis is None and self.top_k > prod(shape[1:]):
            raise self.error(
                "top_k must be less than or equal to the dimension of the flattened bottom blob per "
                f"instance.; got {self.top_k} for {prod(shape[1:])} values"
            )
        if axis is not None:
            return [(*shape[:axis], self.top_k, *shape[axis + 1 :])]
        return [(shape[0], 2 if self.out_max_val else 1, self.top_k, *[1] * (len(shape) - 3))]

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach()
        axis = self._axis(x.dim())
        scores = x.reshape(x.shape[0], prod(x.shape[1:])) if axis is None else x
        axis = 1 if axis is None else axis
        # A stable sort keeps the order of equal values; flipped, the larger index comes first.
        values, flipped = scores.flip(axis).sort(dim=axis, descending=True, stable=True)
        values = values.narrow(axis, 0, self.top_k)
        dtype = torch.promote_types(x.dtype, torch.float32)  # of indices: see precision.py
        index = (scores.shape[axis] - 1 - flipped.narrow(axis, 0, self.top_k)).to(dtype)
        index = near_ties_as(self.decided, index, scores, axis)
        if self.param.argmax_param.HasField("axis"):
            return values if self.out_max_val else index
        top = torch.cat([index, values], 1) if self.out_max_val else index
        return top.reshape(self.top_shapes([tuple(x.shape)])[0])

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        from onnx import TensorProto  # here, because it is slow to import

        shape = graph.shape(bottoms[0])
        axis, x = self._axis(len(shape)), bottoms[0]
        if axis == 0:
            raise ExportError(f"layer {self.name!r}: axis 0 is the open batch size")
        if axis is None:
            x = graph.node("Flatten", [x], axis=1)
        size = prod(shape[1:]) if axis is None else shape[axis]
        sort_axis = 1 if axis is None else axis
        x = graph.node("Gather", [x, graph.constant(np.arange(size - 1, -1, -1))], axis=sort_axis)
        values, flipped = graph.value("values"), graph.value("flipped")
        graph.node("TopK", [x, graph.constant(np.array([self.top_k]))], [values, flipped], axis=sort_axis)
        if axis is not None and self.out_max_val:
            graph.node("Identity", [values], tops)
            return
        index = graph.node("Sub", [graph.constant(np.array(size - 1)), flipped])
        if axis is not None:
            graph.node("Cast", [index], tops, to=TensorProto.FLOAT)
            return
        top = graph.node("Cast", [index], to=TensorProto.FLOAT)
        if self.out_max_val:
            top = graph.node("Concat", [top, values], axis=1)
        graph.node("Reshape", [top, graph.constant(np.array([0, *self.top_shapes([shape])[0][1:]]))], tops)

    def _axis(self, num_axes: int) -> int | None:
        """The axis to sort along; None: all axes but the first, flattened."""
        argmax = self.param.argmax_param
        return self.canonical_axis(argmax.axis, num_axes) if argmax.HasField("axis") else None
