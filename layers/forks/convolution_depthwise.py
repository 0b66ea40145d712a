"""ConvolutionDepthwise: a convolution with one filter per channel, which needs neither num_output nor group.

bottom[0]  (N, C, H, W)
top[0]     (N, C, H', W'), sizes as of a Convolution
blobs      weight (C, 1, kernel_h, kernel_w); bias (C) if bias_term

farmingyard/caffe-mobilenet: conv_dw_layer.cpp. It does not read num_output and group; where they are written
and are not C, they do nothing. Differs: stride is 1 and pad is 0 where they are not written, as in
Convolution; the fork reads foreign memory. Fields that contradict each other are errors, as in Convolution,
and so are an axis other than 1, which the fork passes over, and a bottom that has not 4 axes.
"""

from collections.abc import Sequence

from imae.layers.layer import Layer, Shape
from imae.layers.registry import register_layer
from imae.layers.vision.conv import Convolution
from imae.prototxt import LayerParameter


@register_layer("ConvolutionDepthwise")
class ConvolutionDepthwise(Convolution):
    num_bottoms = num_tops = 1
    in_place = False

    def __init__(self, param: LayerParameter) -> None:
        Layer.__init__(self, param)
        self.bias_term = param.convolution_param.bias_term

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        shape, param = tuple(bottom_shapes[0]), self.param.convolution_param
        if len(shape) != 4 or not shape[1] or param.axis != 1:
            raise self.error(
                f"bottom[0] must be (N, C, H, W), and axis 1; got the shape {shape}, axis {param.axis}"
            )
        self.num_output = self.group = shape[1]
        for field in ("num_output", "group"):
            if param.HasField(field) and getattr(param, field) != shape[1]:
                self.note_leftover(f"convolution_param.{field}")
        super().setup(bottom_shapes)
