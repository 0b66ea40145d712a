"""Xyz: top = scale x + offset, with one learnable offset per channel.

bottom[0], top[0]  (N, C, ...)  any real value
"""

from collections.abc import Sequence

from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.layers.registry import register_layer


@register_layer("Xyz")
class Xyz(Layer):
    num_bottoms = num_tops = 1

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        self.add_blob((bottom_shapes[0][1],), self.param.xyz_param.filler)

    def forward(self, x: Tensor) -> Tensor:
        offset = self.blob(0).view(-1, *[1] * (x.dim() - 2))
        return self.param.xyz_param.scale * x + offset
