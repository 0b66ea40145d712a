"""Reorg: blocks of stride x stride pixels as channels, in Darknet's order of memory; reversed, the inverse.

With reverse, channel k of C takes part in top channel k mod (C / s^2), as the pixel at row, column divmod(k
// (C / s^2), s) of each block. Without, the memory of the bottom is read as if its shape were (N, C / s^2, H
s, W s), that gives values of the shape (N, C, H, W), and their memory is the top's. So only both in sequence,
and not the second alone, move what belongs to one pixel.

bottom[0]  (N, C, H, W)
top[0]     (N, C s^2, H / s, W / s), the divisions rounded down; with reverse (N, C / s^2, H s, W s)

eric612/MobileNet-YOLO, intel/caffe: reorg_layer.cpp. Differs: the gradient is that of the forward pass; the
fork's comes from memory that nothing fills. C that is not divisible by s^2, and without reverse H and W that
are not divisible by s, are errors: the fork leaves memory. The size of the bottom may change.
"""

from collections.abc import Sequence

from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.onnx_sizes import integers, reshaped, sizes_of
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("Reorg")
class Reorg(Layer):
    num_bottoms = num_tops = 1
    in_place = False

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.stride, self.reverse = param.reorg_param.stride, param.reorg_param.reverse
        if not param.reorg_param.HasField("stride"):
            raise self.error("Reorg Layer needs stride param.; write reorg_param { stride: 2 }")
        if self.stride < 1:
            raise self.error(f"stride must be at least 1; got {self.stride}")

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape, s = tuple(bottom_shapes[0]), self.stride
        if len(shape) != 4:
            raise self.error(f"bottom[0] must be (N, C, H, W); got {shape}")
        n, c, h, w = shape
        if c % s**2 or (not self.reverse and (h % s or w % s)):
            also = "" if self.reverse else f", height and width of {s}"
            raise self.error(f"the number of channels must be a multiple of {s**2}{also}; got {shape}")
        return [(n, c // s**2, h * s, w * s) if self.reverse else (n, c * s**2, h // s, w // s)]

    def forward(self, x: Tensor) -> Tensor:
        (n, c, h, w), s = x.shape, self.stride
        depth = c // s**2
        if self.reverse:
            blocks = x.reshape(n, s, s, depth, h, w)
            return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, depth, h * s, w * s)
        blocks = x.reshape(n, depth, h, s, w, s)
        return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * s**2, h // s, w // s)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        (_, c, h, w), s = graph.shape(bottoms[0]), self.stride
        depth = c // s**2

        if self.reverse:
            graph.node("DepthToSpace", bottoms, tops, blocksize=s, mode="DCR")
            return
        sizes: list[int | str] = [h // s, w // s]
        if free := graph.free_axes(bottoms[0]):
            sizes = [graph.node("Div", [sizes_of(graph, bottoms[0], [2, 3]), integers(graph, s)])]
        blocks = reshaped(graph, bottoms[0], [0, depth, 0, s, -1, s] if free else [-1, depth, h, s, w, s])
        moved = graph.node("Transpose", [blocks], perm=[0, 3, 5, 1, 2, 4])
        reshaped(graph, moved, [-1, c * s**2, *sizes], tops)
