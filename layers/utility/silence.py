"""Silence: reads its bottoms, so that they are no outputs of the net; their gradient is 0.

bottom[0..]  any shapes
no tops

Caffe: silence_layer.cpp.
"""

from torch import Tensor

from imae.layers.layer import Layer
from imae.layers.registry import register_layer


@register_layer("Silence")
class Silence(Layer):
    min_bottoms = 1
    num_tops = 0
    deployed = False

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return ()
