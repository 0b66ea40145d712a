"""Axpy, DepthwiseConvolution, ReLU6 and other small layers of classification nets."""

from case_types import Case, Change
from single_layer import normal

X = normal(2, 3, 4, 6)
FILLED = 'weight_filler { type: "uniform" }'

CASES = {
    "Axpy": Case("", (normal(2, 3, seed=1), X, normal(2, 3, 4, 6, seed=2)), (0, 1, 2)),
    "ConvolutionDepthwise": Case(f"convolution_param {{ kernel_size: 2 {FILLED} }}", (X,)),
    "DepthwiseConvolution": Case(
        f"convolution_param {{ num_output: 3 group: 3 kernel_size: 2 {FILLED} }}", (X,)
    ),
    "ReLU6": Case("", (6 * X,)),
    "ShuffleChannel": Case("", (normal(2, 6, 4, 3),)),
}
SHARED = {"ConvolutionDepthwise DepthwiseConvolution": "convolution_param"}
CHANGES = {
    "ConvolutionDepthwise convolution_param.axis": Change([2], refusal="(N, C, H, W), and axis 1"),
    **{
        f"DepthwiseConvolution convolution_param.{name}": Change([value], refusal="the number of channels")
        for name, value in {"num_output": 6, "group": 1, "axis": 2}.items()
    },
}
ACCEPTED = {
    **{
        f"ConvolutionDepthwise convolution_param.{name}": "the bottom has as many channels"
        for name in ("num_output", "group")
    }
}
