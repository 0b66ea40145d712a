"""Embed: a row of the weight for each index.

    top[..., :] = W[x[...]] + b

bottom[0]  indices 0 to input_dim - 1, any shape; cut to integers towards zero; gets no gradient
top[0]     (bottom shape..., num_output)
blobs      weight (input_dim, num_output); bias (num_output) if bias_term

Caffe: embed_layer.cpp. Differs: an index out of range is an error (Caffe reads out of bounds);
force_backward sends no gradient to the indices (Caffe aborts).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from imae.layers.labels import LabelReader, refuse_gradient
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("Embed")
class Embed(Layer):
    num_bottoms = num_tops = 1

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        embed = param.embed_param
        for field in ("num_output", "input_dim"):
            if getattr(embed, field) < 1:
                raise self.error(f"EmbedLayer {field} must be positive.; got {getattr(embed, field)}")
        self.indices = LabelReader(self, message=_wrong_index)

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        embed = self.param.embed_param
        self.add_blob((embed.input_dim, embed.num_output), embed.weight_filler)
        if embed.bias_term:
            self.add_blob((embed.num_output,), embed.bias_filler)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [(*bottom_shapes[0], self.param.embed_param.num_output)]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return False

    def index_count(self, bottom_index: int, bottom_shapes: Sequence[Shape]) -> int | None:
        return self.param.embed_param.input_dim

    def forward(self, x: Tensor) -> Tensor:
        refuse_gradient(self, 0, x, "Can't backpropagate to EmbedLayer input.")
        index, _ = self.indices(x, self.param.embed_param.input_dim)
        top = F.embedding(index, self.blob(0))
        return top + self.blob(1) if self.param.embed_param.bias_term else top

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        from onnx import TensorProto  # here, because it is slow to import

        index = graph.node("Cast", bottoms, to=TensorProto.INT64)
        rows = [graph.constant(self.blob(0), blob=0), index]
        if self.param.embed_param.bias_term:
            graph.node("Add", [graph.node("Gather", rows), graph.constant(self.blob(1), blob=1)], tops)
        else:
            graph.node("Gather", rows, tops)


def _wrong_index(index: int, count: int) -> str:
    return (
        f"index {index} is out of range: input_dim is {count}, so indices are 0 to {count - 1}; "
        "mend the data, or embed_param.input_dim"
    )
