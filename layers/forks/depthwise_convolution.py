"""DepthwiseConvolution: a convolution with one filter per channel.

bottom[i]  (N, C, H, W)
top[i]     (N, C, H', W'), sizes and blobs as of a Convolution with group C

yonghenglh6/DepthwiseConvolution, eric612/MobileNet-YOLO: depthwise_conv_layer.cpp, .cu. Differs: num_output
and group other than the number of channels are errors. There the CPU code computes any Convolution, and the
GPU code reads foreign memory.
"""

from collections.abc import Sequence

from imae.layers.layer import Shape
from imae.layers.registry import register_layer
from imae.layers.vision.conv import Convolution


@register_layer("DepthwiseConvolution")
class DepthwiseConvolution(Convolution):
    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        shape, param = tuple(bottom_shapes[0]), self.param.convolution_param
        channels = shape[self.canonical_axis(param.axis, len(shape))]
        if {self.num_output, self.group} != {channels}:
            raise self.error(
                f"num_output and group must be {channels}, the number of channels, one filter for each; got "
                f"num_output {self.num_output} and group {self.group}; write type Convolution for others"
            )
        super().setup(bottom_shapes)
