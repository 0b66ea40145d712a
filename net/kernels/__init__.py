"""Faster implementations of a few layers: kernels in C, and kernels that torch.compile makes.

Code outside of this folder imports from here, not from its modules.

    NormCall                   the arguments of BatchNorm, Scale, a sum and ReLU as one operation
    normalize_by_batch         that operation by the statistics of the batch
    normalize_compiled         the same by torch.compile
    normalize_by_statistics    the same by a given mean and variance
    add_in_place               a sum of two blobs, in the memory of the first where possible
    FastConvolution            a convolution where the kernels are faster
    GroupedConvolution         one in groups, likewise
    FastLRN                    an LRN across channels
    SingleProducts             a layer of a net in bfloat16 where the processor has no products of bfloat16
    product_type               the type in which products of blobs of a type are computed
    slow_bfloat16              a line for the log where bfloat16 is slower than single precision
    sgd_supports, sgd          SGD's update in one pass over the memory
    SubsampledConvolution      a convolution where oneDNN writes past the end of its memory
    ConvolutionCall            the arguments of a convolution without gradients
    plan_convolution           a function that computes it, planned for bottoms of one shape
    plan_convolution_and_sum   the same, plus another blob
    plan_windows               a function that makes numbers of images' pixels, for a batch
    fast_suppress              SSD's suppression of boxes, where the kernel is there
    available, supported_isas  whether the kernels in C were built, and which instructions they can use here
    chosen, description        which of them this process uses, as values and as a line for the log
    convolution_ways           all ways to convolve on this processor
    ConvolutionLayer, convolution_calls   a convolution, and what it does by such a way, to be timed
    weight_gradient_by_tiles   the gradient of a convolution's weights in bfloat16 by AMX, likewise
"""

from imae.net.kernels.bfloat16 import SingleProducts, product_type, slow_bfloat16
from imae.net.kernels.compiled_norm import normalize_compiled
from imae.net.kernels.conv import FastConvolution, SubsampledConvolution
from imae.net.kernels.direct import ConvolutionCall
from imae.net.kernels.fastest import ConvolutionLayer, convolution_calls
from imae.net.kernels.grouped_conv import GroupedConvolution
from imae.net.kernels.lrn import FastLRN
from imae.net.kernels.native import (
    available,
    chosen,
    convolution_ways,
    description,
    sgd,
    sgd_supports,
    supported_isas,
    weight_gradient_by_tiles,
)
from imae.net.kernels.norm import add_in_place, normalize_by_batch, normalize_by_statistics
from imae.net.kernels.norm_call import NormCall
from imae.net.kernels.pixels import plan_windows
from imae.net.kernels.planned import plan_convolution, plan_convolution_and_sum
from imae.net.kernels.suppression import fast_suppress

__all__ = [
    "ConvolutionCall",
    "ConvolutionLayer",
    "FastConvolution",
    "FastLRN",
    "GroupedConvolution",
    "NormCall",
    "SingleProducts",
    "SubsampledConvolution",
    "add_in_place",
    "available",
    "chosen",
    "convolution_calls",
    "convolution_ways",
    "description",
    "fast_suppress",
    "normalize_by_batch",
    "normalize_by_statistics",
    "normalize_compiled",
    "product_type",
    "plan_convolution",
    "plan_convolution_and_sum",
    "plan_windows",
    "sgd",
    "sgd_supports",
    "slow_bfloat16",
    "supported_isas",
    "weight_gradient_by_tiles",
]
