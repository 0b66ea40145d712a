"""MarginInnerProduct: an inner product whose logit of the label is lowered by an angular margin (SphereFace).

    W_j    <- W_j / |W_j|, in-place
    iter   <- iter + 1                                                   from `iteration` on
    lambda = max(base (1 + gamma iter)^-power, lambda_min)
    top_j  = x W_j^T                                                     j is not the label
    top_j  = (|x| psi(c) + lambda x W_j^T) / (1 + lambda)                j is the label, c = x W_j^T / |x|

with psi(cos t) = (-1)^q cos(m t) - 2 q, q = floor(m t / pi), for an angle m times as large: DOUBLE, TRIPLE,
QUADRUPLE; SINGLE: top = x W^T. All this happens in every forward pass, in phase TEST, too.

The gradients are the fork's. The weight's is that of a plain inner product. The bottom's is

    (sum over j of d_j W_j + lambda sum over j of d_j W_j) / (1 + lambda)

where the label's W_j in the first sum is a W_j + b x, with the derivatives a and b of |x| psi after W_j and
x scaled to a^2 + b^2 = 1.

bottom[0]  (..., d_axis, ..., d_last) x; K = d_axis * ... * d_last
bottom[1]  labels, one for each x; gets no gradient
top[0]     (..., num_output), the axes before `axis` kept
top[1]     (1) lambda
blobs      weight (num_output, K)

SphereFace (wy1iu/sphereface): margin_inner_product_layer.cpp. Differs: a label out of range, and another
number of labels or tops, are errors (the fork uses foreign memory); `iter` goes on when a run is resumed.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.common.inner_product import check_inputs, normalize_rows
from imae.layers.labels import LabelReader, check_labels, refuse_gradient
from imae.layers.layer import Layer, Shape
from imae.layers.precision import at_least_single, unreduced
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter
from imae.prototxt.caffe_pb2 import MarginInnerProductParameter


@register_layer("MarginInnerProduct")
class MarginInnerProduct(Layer):
    num_bottoms = num_tops = 2
    blob_names = ("weight",)
    deployed = False  # its top depends on the label
    in_place = False
    passes: Tensor

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        margin = param.margin_inner_product_param
        if margin.num_output < 1:
            raise self.error(f"num_output must be positive; got {margin.num_output}")
        self.labels = LabelReader(self)
        self.register_buffer("passes", torch.tensor([margin.iteration]), persistent=False)

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 1

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        margin = self.param.margin_inner_product_param
        self.inputs = prod(bottom_shapes[0][self._axis(len(bottom_shapes[0])) :])
        self.add_blob((margin.num_output, self.inputs), margin.weight_filler)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        axis = self._axis(len(shape))
        check_inputs(self, shape, axis, self.inputs)
        top = (*shape[:axis], self.param.margin_inner_product_param.num_output)
        check_labels(self, "inner product", axis, top, bottom_shapes[1])
        return [top, (1,)]

    def multiply_adds(self, bottom_shapes: Sequence[Shape], top_shapes: Sequence[Shape]) -> int:
        return prod(bottom_shapes[0]) * top_shapes[0][-1]

    @property
    def repeatable(self) -> bool:
        return False

    def forward(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        refuse_gradient(self, 1, label, "MarginInnerProduct Layer cannot backpropagate to label inputs.")
        margin = self.param.margin_inner_product_param
        index, _ = self.labels(label.flatten(), margin.num_output)
        self.passes.add_(1)
        passes = self.passes.to(torch.promote_types(x.dtype, torch.float32))
        factor = margin.base * (1 + margin.gamma * passes) ** -margin.power
        factor = factor.clamp(min=margin.lambda_min)
        weight = normalize_rows(self.blobs[0], *self.blob_shapes[0])
        rows = at_least_single(x).flatten(self._axis(x.dim()))
        with unreduced(x):
            top = apply(_MarginProduct, rows.flatten(0, -2), weight, index, factor, margin.type)
        return top.reshape(*rows.shape[:-1], margin.num_output), factor

    def _axis(self, num_axes: int) -> int:
        return self.canonical_axis(self.param.margin_inner_product_param.axis, num_axes)


class _MarginProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, label: Tensor, factor: Tensor, kind: int) -> Tensor:
        top = x @ weight.t()
        length = x.square().sum(1).sqrt()
        cosine = top.gather(1, label.unsqueeze(1)).squeeze(1) / length
        psi, of_weight, of_x = _margin(kind, cosine)
        ctx.save_for_backward(x, weight, label, factor, of_weight, of_x / length)
        ctx.plain = kind == MarginInnerProductParameter.SINGLE
        if ctx.plain:
            return top
        with_margin = top.scatter(1, label.unsqueeze(1), (length * psi).unsqueeze(1))
        return (with_margin + factor * top) / (1 + factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, weight, label, factor, of_weight, of_x = ctx.saved_tensors
        plain = top_diff @ weight
        weight_diff = top_diff.t() @ x
        if ctx.plain:
            return plain, weight_diff, None, None, None
        scale = (of_weight.square() + of_x.square()).sqrt()
        label = label.unsqueeze(1)
        at_label = top_diff.gather(1, label)
        # Only the label's column changes: its W_j becomes a W_j + b x.
        changed = top_diff.scatter(1, label, at_label * (of_weight / scale).unsqueeze(1)) @ weight
        changed = changed + at_label * (of_x / scale).unsqueeze(1) * x
        return (changed + factor * plain) / (1 + factor), weight_diff, None, None, None


def _margin(kind: int, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of |x| psi(c): psi, the factor of W_j in the derivative, and |x| times the factor of x."""
    s = torch.sign(c)
    square = c * c
    if kind == MarginInnerProductParameter.DOUBLE:
        return 2 * s * square - 1, 4 * s * c, -(2 * s * square + 1)
    cube = square * c
    if kind == MarginInnerProductParameter.TRIPLE:
        sign = torch.sign(c.abs() - 0.5)
        shift = s * (1 + sign) - 2
        return sign * (4 * cube - 3 * c) + shift, sign * (12 * square - 3), -(8 * sign * cube - shift)
    if kind == MarginInnerProductParameter.QUADRUPLE:
        fourth = square * square
        sign = s * torch.sign(2 * square - 1)
        shift = 2 * s + sign - 3
        psi = sign * (8 * fourth - 8 * square + 1) + shift
        return psi, sign * (32 * cube - 16 * c), -(sign * (24 * fourth - 8 * square - 1) - shift)
    return c, torch.ones_like(c), torch.zeros_like(c)
