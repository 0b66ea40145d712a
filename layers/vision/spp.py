"""SPP: spatial pyramid pooling, a top of one size for images of any size (He et al. 2014).

Level l = 0 .. pyramid_height - 1 pools 2^l x 2^l windows: kernel and stride ceil(size / 2^l), padding
(kernel 2^l - size) / 2, rounded up. The levels are flattened and concatenated.

bottom[0]  (N, C, H, W)
top[0]     (N, C * (1 + 4 + 16 + ..)); with pyramid_height 1 (N, C, 1, 1)

pool STOCHASTIC is as in Pooling, and allows only sizes that need no padding.

Caffe: spp_layer.cpp. Differs: pyramid_height 0, which crashes Caffe, is refused.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from imae.layers.layer import Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.layers.vision.pooling import PoolingMethod, PoolWindows, pool_to_onnx
from imae.prototxt import LayerParameter


@register_layer("SPP")
class SPP(PoolingMethod):
    num_bottoms = num_tops = 1

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        spp = param.spp_param
        if spp.pyramid_height < 1:
            raise self.error(f"spp_param.pyramid_height must be 1 or more, got {spp.pyramid_height}")
        self.method, self.height = spp.PoolMethod.Name(spp.pool), spp.pyramid_height

    def levels(self, sizes: Sequence[int]) -> list[PoolWindows]:
        """The windows of each level for a bottom of these spatial sizes."""
        levels = []
        for level in range(self.height):
            kernel = (-(-sizes[0] // 2**level), -(-sizes[1] // 2**level))
            rest = [k * 2**level - size for k, size in zip(kernel, sizes, strict=True)]
            pad = ((rest[0] + 1) // 2, (rest[1] + 1) // 2)
            if any(pad) and (pad[0] >= kernel[0] or pad[1] >= kernel[1]):
                raise self.error(
                    f"level {level} of the pyramid would need pad {pad} for kernel {kernel}, which must be "
                    f"larger; a bottom of {sizes[0]} x {sizes[1]} allows pyramid_height {level}"
                )
            self.check_pad(pad)
            levels.append(PoolWindows(kernel, kernel, pad))
        return levels

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        if len(shape) != 4:
            raise self.error(
                f"Input must have 4 axes, corresponding to (num, channels, height, width); got {shape}"
            )
        if 0 in shape[2:]:
            raise self.error(f"Input dimensions cannot be zero.; got {shape}")
        counts = [windows.counts(shape[2:]) for windows in self.levels(shape[2:])]
        if self.height == 1:
            return [(*shape[:2], *counts[0])]
        return [(shape[0], shape[1] * sum(prod(count) for count in counts))]

    def forward(self, x: Tensor) -> Tensor:
        tops = [self.pool(x, windows) for windows in self.levels(x.shape[2:])]
        return tops[0] if self.height == 1 else torch.cat([top.flatten(1) for top in tops], 1)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        sizes = graph.shape(bottoms[0])[2:]
        names = list(tops)
        if self.height > 1:
            names = [graph.value(f"level{level}") for level in range(self.height)]
        for windows, name in zip(self.levels(sizes), names, strict=True):
            pool_to_onnx(graph, bottoms[0], [name], windows, self.method, sizes)
        if self.height > 1:
            graph.node("Concat", [graph.node("Flatten", [name], axis=1) for name in names], tops, axis=1)
