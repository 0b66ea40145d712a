"""Concat: the bottoms, concatenated along `axis`.

bottom[0..]  the same shape but for `axis` (default 1; concat_dim is its old name)
top[0]       the same shape but for `axis`, whose size is the sum of the bottoms'

Caffe: concat_layer.cpp.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("Concat")
class Concat(Layer):
    min_bottoms = 1
    num_tops = 1
    keeps_places = True

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.shares_memory = len(param.bottom) == 1
        concat = param.concat_param
        if concat.HasField("axis") and concat.HasField("concat_dim"):
            raise self.error("Either axis or concat_dim should be specified; not both.")

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        first = bottom_shapes[0]
        axis = self._axis(len(first))
        for shape in bottom_shapes:
            if len(shape) != len(first):
                raise self.error(f"All inputs must have the same #axes.; got {list(bottom_shapes)}")
            if shape[:axis] != first[:axis] or shape[axis + 1 :] != first[axis + 1 :]:
                raise self.error(
                    "All inputs must have the same shape, except at concat_axis.; "
                    f"got {list(bottom_shapes)}, axis {axis}"
                )
        return [(*first[:axis], sum(shape[axis] for shape in bottom_shapes), *first[axis + 1 :])]

    def forward(self, *bottoms: Tensor) -> Tensor:
        return torch.cat(bottoms, self._axis(bottoms[0].dim()))

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        graph.node("Concat", bottoms, tops, axis=self._axis(len(graph.shape(bottoms[0]))))

    def _axis(self, num_axes: int) -> int:
        concat = self.param.concat_param
        if not concat.HasField("concat_dim"):
            return self.canonical_axis(concat.axis, num_axes)
        if concat.concat_dim >= num_axes:
            raise self.error(f"concat_dim out of range.; got {concat.concat_dim} for {num_axes} axes")
        return concat.concat_dim
