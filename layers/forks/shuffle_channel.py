"""ShuffleChannel: channels that lie group after group, taken from all groups in turn.

Channel i C / group + j goes to channel j group + i.

bottom[0], top[0]  (N, C, ...)

farmingyard/ShuffleNet: shuffle_channel_layer.cpp. Differs: a group that does not divide C is an error when
the net is built; the fork stops in the first forward pass. An in-place layer, which in the fork overwrites
channels before it has moved them, is an error.
"""

from collections.abc import Sequence

from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.onnx_sizes import parts_of, reshaped
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("ShuffleChannel")
class ShuffleChannel(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True
    in_place = False

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.group = param.shuffle_channel_param.group
        if self.group < 1:
            raise self.error(f"group must be greater than 0; got {self.group}")

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        if not 2 <= len(shape) <= 4:
            raise self.error(f"bottom[0] must have 2 to 4 axes, (N, C, ...); got {shape}")
        if shape[1] % self.group:
            raise self.error(
                f"the number of channels must be a multiple of group {self.group}; got {shape[1]}"
            )
        return [shape]

    def forward(self, x: Tensor) -> Tensor:
        return (
            x.reshape(len(x), self.group, x.shape[1] // self.group, *x.shape[2:])
            .transpose(1, 2)
            .reshape(x.shape)
        )

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        shape = graph.shape(bottoms[0])
        trailing = parts_of(graph, bottoms[0], range(2, len(shape)))
        grouped = reshaped(graph, bottoms[0], [-1, self.group, shape[1] // self.group, *trailing])
        moved = graph.node("Transpose", [grouped], perm=[0, 2, 1, *range(3, len(shape) + 1)])
        reshaped(graph, moved, [-1, shape[1], *trailing], tops)
