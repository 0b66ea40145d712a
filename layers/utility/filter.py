"""Filter: the items of each bottom whose selector is not 0.

bottom[0..k-1]  (N, ...)
bottom[k]       (N) or (N, 1, 1, 1): the selector; gets no gradient
top[0..k-1]     (M, ...), M the number of selected items; (N, ...) until the first forward pass

The host must read the selector to know how many items are selected, so on a GPU it waits here.

Caffe: filter_layer.cpp. Differs: force_backward sends no gradient to the selector, and a batch without a
selected item gives gradient 0 (Caffe aborts).
"""

from collections.abc import Sequence
from math import prod

import numpy as np
from torch import Tensor

from imae.layers.labels import refuse_gradient
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer


@register_layer("Filter")
class Filter(Layer):
    min_bottoms = 2
    min_tops = 1

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        if len(self.param.top) != len(bottom_shapes) - 1:
            raise self.error(
                "there must be a top for each bottom but the last, the selector; "
                f"got {len(bottom_shapes)} bottoms and {len(self.param.top)} tops"
            )

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        *items, selector = bottom_shapes
        if not selector or prod(selector) != selector[0]:
            raise self.error(
                f"Selector blob dimensions must be singletons (1), except the first; got {selector}"
            )
        for shape in items:
            if shape[:1] != selector[:1]:
                raise self.error(
                    "Each bottom should have the same 0th dimension as the selector blob; "
                    f"got {shape}, selector {selector}"
                )
        return items

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index < len(self.param.bottom) - 1

    def index_count(self, bottom_index: int, bottom_shapes: Sequence[Shape]) -> int | None:
        return 2 if bottom_index == len(bottom_shapes) - 1 else None

    @property
    def capturable(self) -> bool:
        return False

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        *items, selector = bottoms
        message = "FilterLayer cannot backpropagate to filter index inputs"
        refuse_gradient(self, len(items), selector, message)
        selected = selector.flatten().nonzero().squeeze(1)
        return tuple(item.index_select(0, selected) for item in items)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        from onnx import TensorProto  # here, because it is slow to import

        flat = graph.node("Reshape", [bottoms[-1], graph.constant(np.array([-1]))])
        selected = graph.node("Cast", [flat], to=TensorProto.BOOL)
        for bottom, top in zip(bottoms, tops, strict=False):
            graph.node("Compress", [bottom, selected], [top], axis=0)
