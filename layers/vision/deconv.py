"""Deconvolution: the transpose of a Convolution with the same convolution_param, which enlarges.

    top[n, o, y s + i d - p, x s + j d - p] += weight[c, o, i, j] * bottom[n, c, y, x],  then bias[o] is added

with stride s, dilation d and padding p, over the channels c of o's group. Each spatial size becomes
s (size - 1) + d (k - 1) + 1 - 2 p.

bottom[i]  (..., C, H, W); any number of axes before the channel axis, and of spatial axes after it
top[i]     (..., num_output, H', W'), all bottoms through the same filters
blobs      weight (C, num_output / group, kernel_h, kernel_w); bias (num_output) if bias_term

Caffe: base_conv_layer.cpp, deconv_layer.cpp. Differs: as Convolution.
"""

import torch.nn.functional as F

from imae.layers.registry import register_layer
from imae.layers.vision.conv import BaseConvolution


@register_layer("Deconvolution")
class Deconvolution(BaseConvolution):
    reverse = True
    operator = "ConvTranspose"
    functions = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
