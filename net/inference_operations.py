"""What computes the fused steps of a TEST net on the CPU, in single precision: see inference_graph.py.

An operation is planned for bottoms of one shape. It gets bottoms of these shapes, the channels last in memory
where there are four axes, and its top is like them, in new memory or in that of a bottom which is spare.

A ReLU is an operation of its own on the top's memory, as F.relu_, or part of a kernel of ours: oneDNN's makes
0 of NaN.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from imae.layers.activation.prelu import PReLU
from imae.layers.activation.relu import ReLU
from imae.layers.activation.scale import Scale
from imae.layers.common.inner_product import InnerProduct
from imae.layers.forks.detection_output import DetectionOutput
from imae.layers.forks.prior_box import PriorBox
from imae.layers.forks.shuffle_channel import ShuffleChannel
from imae.layers.layer import Layer, Shape
from imae.layers.normalization.batch_norm import BatchNorm
from imae.layers.normalization.lrn import LRN
from imae.layers.utility.concat import Concat
from imae.layers.utility.eltwise import Eltwise
from imae.layers.vision.conv import Convolution
from imae.layers.vision.pooling import Pooling
from imae.net.fold import fixed_norm, folded_layer
from imae.net.kernels import (
    ConvolutionCall,
    FastLRN,
    NormCall,
    fast_suppress,
    normalize_by_statistics,
    plan_convolution,
    plan_convolution_and_sum,
)

Compute = Callable[..., Tensor]


def in_order(x: Any) -> Tensor:
    """The tensor with the channels last in memory if it has four axes, else contiguous."""
    assert isinstance(x, Tensor)  # a layer of one top returns one
    order = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    return x.contiguous(memory_format=order)


class Setting(NamedTuple):
    """The bottoms of an operation: their shapes, and whether it may overwrite them."""

    shapes: tuple[Shape, ...]
    spare: tuple[bool, ...]


class Operation(ABC):
    """Computes one top.

    relu   whether a ReLU follows
    """

    supports_relu: ClassVar[bool] = True
    relu = False

    def plan(self, setting: Setting) -> Compute:
        """A function that computes the top from the bottoms."""
        compute = self.plan_without_relu(setting)
        if not self.relu:
            return compute
        return lambda *bottoms: torch.relu_(compute(*bottoms))

    @abstractmethod
    def plan_without_relu(self, setting: Setting) -> Compute:
        """The same, without the ReLU."""


class _Weighted(Operation):
    """A layer with weights, into which the layers after it are folded for which `is_affine` holds."""

    def __init__(self, layer: Convolution | InnerProduct) -> None:
        self.layer = layer
        self.affine: list[Layer] = []

    def append_affine(self, layers: Sequence[Layer]) -> bool:
        """Fold these layers, too; returns whether that is right for bottoms of all shapes."""
        param = self.layer.param
        kind = param.convolution_param if isinstance(self.layer, Convolution) else param.inner_product_param
        if kind.axis != 1:
            return False
        self.affine.extend(layers)
        return True

    def folded(self) -> Convolution | InnerProduct:
        """The layer with the weights of now."""
        return folded_layer(self.layer, self.affine) if self.affine else self.layer


class ConvolutionOperation(_Weighted):
    """A convolution.

    adds       whether the second bottom is added to it
    rectifier  a PReLU or a leaky ReLU that follows
    """

    layer: Convolution
    adds = False
    rectifier: PReLU | ReLU | None = None

    def plan(self, setting: Setting) -> Compute:
        layer, bottom = self.folded(), setting.shapes[0]
        assert isinstance(layer, Convolution)
        if len(layer.windows.kernel) != 2 or len(bottom) != 4 or any(layer.windows.overhang(bottom[2:])):
            return super().plan(setting)
        bias = layer.blob(1).detach() if layer.bias_term else None
        weight, slopes = layer.blob(0).detach(), _slopes(self.rectifier, layer.num_output)
        call = ConvolutionCall(weight, bias, layer.windows, layer.group, bottom, self.relu, slopes)
        if self.adds:
            return plan_convolution_and_sum(call, overwrites=setting.spare[1])
        return plan_convolution(call)

    def plan_without_relu(self, setting: Setting) -> Compute:
        forward, rectifier = self.folded().forward, self.rectifier

        def compute(x: Tensor, *others: Tensor) -> Tensor:
            top = in_order(forward(x))
            for other in others:
                top.add_(other)
            return top if rectifier is None else rectifier.forward(top)

        return compute


def _slopes(rectifier: PReLU | ReLU | None, count: int) -> Tensor | None:
    """The slope of each output for negative values."""
    if rectifier is None:
        return None
    if isinstance(rectifier, ReLU):
        return torch.full((count,), rectifier.negative_slope, dtype=torch.float32)
    return rectifier.blob(0).detach().reshape(-1).expand(count).contiguous()


class ProductOperation(_Weighted):
    """An inner product."""

    layer: InnerProduct

    def plan_without_relu(self, setting: Setting) -> Compute:
        layer = self.folded()
        assert isinstance(layer, InnerProduct)
        weight, bias = layer.blob(0).detach(), layer.blob(1).detach() if layer.bias_term else None
        weight = weight.t() if layer.transpose else weight
        (shape,) = setting.shapes
        axis = layer.canonical_axis(layer.param.inner_product_param.axis, len(shape))
        if len(shape) == 2 and axis == 1:
            return lambda x: F.linear(x, weight, bias)
        return lambda x: in_order(F.linear(x.flatten(axis), weight, bias))


class AffineOperation(Operation):
    """A layer for which `is_affine` holds; or a BatchNorm and then a Scale."""

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers

    def append_affine(self, layers: Sequence[Layer]) -> bool:
        """Whether these layers can be computed at once, too; then they are."""
        if len(self.layers) + len(layers) > 2:
            return False
        if not (isinstance(self.layers[0], BatchNorm) and isinstance(layers[0], Scale)):
            return False
        self.layers = [*self.layers, *layers]
        return True

    def plan(self, setting: Setting) -> Compute:
        if len(setting.shapes[0]) != 4:
            return super().plan(setting)
        relu = self.relu
        mean, variance, eps, weight, bias = fixed_norm(self.layers[0])
        if len(self.layers) > 1:
            *_, weight, bias = fixed_norm(self.layers[1])

        def normalize(x: Tensor) -> Tensor:
            return in_order(normalize_by_statistics(NormCall(x, weight, bias, eps, relu), mean, variance))

        return normalize

    def plan_without_relu(self, setting: Setting) -> Compute:
        layers = self.layers

        def normalize(x: Tensor) -> Tensor:
            for layer in layers:
                x = layer.forward(x)
            return in_order(x)

        return normalize


class SumOperation(Operation):
    """A sum of blobs, with coefficients."""

    def __init__(self, layer: Eltwise) -> None:
        self.layer = layer
        self.is_plain = all(coeff == 1 for coeff in layer.coeffs)

    def plan_without_relu(self, setting: Setting) -> Compute:
        if not self.is_plain or len(setting.shapes) != 2:
            return self.layer.forward
        if setting.spare[0]:
            return lambda x, other: x.add_(other)
        if setting.spare[1]:
            return lambda x, other: other.add_(x)
        return torch.add


class ReLUOperation(Operation):
    """A ReLU, leaky or not, or a PReLU that stands alone."""

    supports_relu = False

    def __init__(self, layer: PReLU | ReLU) -> None:
        self.layer = layer
        self.is_plain = isinstance(layer, ReLU) and layer.negative_slope == 0

    def plan_without_relu(self, setting: Setting) -> Compute:
        if self.is_plain:
            return torch.relu_ if setting.spare[0] else torch.relu
        forward = self.layer.forward
        return lambda x: in_order(forward(x))


class AverageOrMaximum(Operation):
    """A pooling by the average or the maximum."""

    def __init__(self, layer: Pooling) -> None:
        self.layer = layer

    def plan_without_relu(self, setting: Setting) -> Compute:
        layer, sizes = self.layer, setting.shapes[0][2:]
        windows = layer.windows(sizes)
        fits, windows = windows.fits_torch(sizes), windows.clip_stride(sizes)
        if not fits or windows.is_subsampling:
            return lambda x: in_order(layer.forward(x))
        kernel, stride, pad, ceil = windows.kernel, windows.stride, windows.pad, not windows.floor
        if layer.method == "MAX":
            return lambda x: in_order(torch.max_pool2d(x, kernel, stride, pad, 1, ceil))
        return lambda x: in_order(F.avg_pool2d(x, kernel, stride, pad, ceil))


class Concatenation(Operation):
    """Blobs one after the other on an axis."""

    def __init__(self, layer: Concat) -> None:
        self.layer = layer

    def plan_without_relu(self, setting: Setting) -> Compute:
        forward = self.layer.forward
        return lambda *bottoms: in_order(forward(*bottoms))


class Detection(Operation):
    """SSD's DetectionOutput, with the kernel that suppresses boxes."""

    supports_relu = False

    def __init__(self, layer: DetectionOutput) -> None:
        self.layer = copy.copy(layer)
        self.layer.suppress = fast_suppress

    def plan_without_relu(self, setting: Setting) -> Compute:
        return self.layer.forward


class Shuffle(Operation):
    """A ShuffleChannel, in one copy."""

    def __init__(self, layer: ShuffleChannel) -> None:
        self.layer = layer

    def plan_without_relu(self, setting: Setting) -> Compute:
        (shape,), layer = setting.shapes, self.layer
        if len(shape) != 4 or layer.group in (1, shape[1]):  # the layer's top may be a view of its bottom
            return lambda x: in_order(layer.forward(x).clone())
        num, channels, height, width = shape
        grouped = (num, height, width, layer.group, channels // layer.group)

        def shuffle(x: Tensor) -> Tensor:
            pixels = x.permute(0, 2, 3, 1).view(grouped).transpose(3, 4)
            return pixels.reshape(num, height, width, channels).permute(0, 3, 1, 2)

        return shuffle


class Priors(Operation):
    """SSD's PriorBox, whose top depends on shapes alone: it is made once."""

    supports_relu = False

    def __init__(self, layer: PriorBox) -> None:
        self.layer = layer

    def plan_without_relu(self, setting: Setting) -> Compute:
        boxes = self.layer.forward(*(torch.empty(shape, dtype=torch.float32) for shape in setting.shapes))
        return lambda *_: boxes.clone()


class Neighbourhood(Operation):
    """LRN across channels, as in training."""

    def __init__(self, layer: LRN) -> None:
        self.layer = layer

    def plan_without_relu(self, setting: Setting) -> Compute:
        fast = FastLRN(self.layer) if FastLRN.is_faster(self.layer) else self.layer.forward
        return lambda x: in_order(fast(x))
