"""BatchReindex: the items of a batch chosen and repeated by index.

    top[i] = bottom[0][bottom[1][i]]

bottom[0]  (N, ...)
bottom[1]  (M) indices 0 to N - 1, cut to integers; gets no gradient
top[0]     (M, ...)

Caffe: batch_reindex_layer.cpp. Differs: force_backward sends no gradient to the indices (Caffe aborts).
"""

from collections.abc import Sequence

from torch import Tensor

from imae.layers.labels import LabelReader, refuse_gradient
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("BatchReindex")
class BatchReindex(Layer):
    num_bottoms = 2
    num_tops = 1

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.indices = LabelReader(self, message=_wrong_index)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        items, index = bottom_shapes
        if len(index) != 1 or not items:
            raise self.error(f"items (N, ...) and indices (M) are needed; got bottoms {items} and {index}")
        return [(index[0], *items[1:])]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index == 0

    def index_count(self, bottom_index: int, bottom_shapes: Sequence[Shape]) -> int | None:
        return bottom_shapes[0][0] if bottom_index == 1 else None

    def forward(self, items: Tensor, index: Tensor) -> Tensor:
        refuse_gradient(self, 1, index, "Cannot backprop to index.")
        # floor: -0.5 is negative, too
        place, _ = self.indices(index.floor(), items.shape[0])
        return items.index_select(0, place)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        from onnx import TensorProto  # here, because it is slow to import

        index = graph.node("Cast", [bottoms[1]], to=TensorProto.INT64)
        graph.node("Gather", [bottoms[0], index], tops, axis=0)


def _wrong_index(index: int, items: int) -> str:
    fault = "negative" if index < 0 else "greater than batch size"
    return f"Index specified for reindex layer was {fault}.; got {index}, the batch has {items} items"
