"""InnerProduct: a fully connected layer over all axes from `axis` on.

    top = x W^T + b

bottom[0]  (..., d_axis, ..., d_last); K = d_axis * ... * d_last
top[0]     (..., num_output), the axes before `axis` kept
blobs      weight (num_output, K), or (K, num_output) with `transpose`; bias (num_output) if bias_term

`normalize`, a field of caffe-windows, first scales the weight's rows: W_j <- W_j / sqrt(|W_j|^2 + 1e-6),
in-place, in every forward pass. The gradients are still those of the product. Its rows are K values each in
memory, with `transpose`, too.

Caffe: inner_product_layer.cpp; happynear/caffe-windows: the same. Differs: num_output 0 is an error; in
place, Caffe overwrites the bottom before using it.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter

EPS = 1e-6  # of `normalize`


def check_inputs(layer: Layer, shape: Shape, axis: int, inputs: int) -> None:
    """LayerError unless a bottom of this shape has as many values from `axis` on as the weights are for."""
    if prod(shape[axis:]) != inputs:
        raise layer.error(
            f"Input size incompatible with inner product parameters.; got {prod(shape[axis:])} values of "
            f"bottom shape {shape} from axis {axis} on, the weights are for {inputs}"
        )


@register_layer("InnerProduct")
class InnerProduct(Layer):
    num_bottoms = num_tops = 1
    spoils_in_place = "data"

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        inner_product = param.inner_product_param
        self.num_output, self.bias_term = inner_product.num_output, inner_product.bias_term
        self.transpose, self.normalize = inner_product.transpose, inner_product.normalize
        if self.num_output < 1:
            raise self.error(f"inner_product_param.num_output must be positive, got {self.num_output}")

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        inner_product = self.param.inner_product_param
        self.inputs = prod(bottom_shapes[0][self._axis(len(bottom_shapes[0])) :])
        shape = (self.inputs, self.num_output) if self.transpose else (self.num_output, self.inputs)
        self.add_blob(shape, inner_product.weight_filler)
        if self.bias_term:
            self.add_blob((self.num_output,), inner_product.bias_filler)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        axis = self._axis(len(shape))
        check_inputs(self, shape, axis, self.inputs)
        return [(*shape[:axis], self.num_output)]

    def multiply_adds(self, bottom_shapes: Sequence[Shape], top_shapes: Sequence[Shape]) -> int:
        return prod(bottom_shapes[0]) * self.num_output

    @property
    def repeatable(self) -> bool:
        return not self.normalize  # which changes the weights

    def forward(self, x: Tensor) -> Tensor:
        weight = self.blob(0)
        if self.normalize:
            rows = normalize_rows(self.blobs[0], self.num_output, self.inputs, EPS)
            weight = rows.view(weight.shape)
        x = x.flatten(self._axis(x.dim()))
        return F.linear(x, weight.t() if self.transpose else weight, self.blob(1) if self.bias_term else None)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        weight = self.blob(0).detach()
        if self.normalize:
            rows = normalized_rows(weight.reshape(self.num_output, self.inputs), EPS)
            weight = rows.view(weight.shape)
        shape = graph.shape(bottoms[0])
        axis = self._axis(len(shape))
        if axis != 1 and not self.transpose:  # MatMul has no transB
            weight = weight.t()
        blobs = [graph.constant(weight, blob=0)]
        if self.bias_term:
            blobs.append(graph.constant(self.blob(1), blob=1))
        x = bottoms[0]
        if axis == 1:
            x = graph.node("Flatten", [x], axis=1) if len(shape) > 2 else x
            graph.node("Gemm", [x, *blobs], tops, transB=int(not self.transpose))
            return
        if len(shape) > axis + 1:
            x = graph.node("Reshape", [x, graph.constant(np.array([0] * axis + [-1]))])
        if self.bias_term:
            graph.node("Add", [graph.node("MatMul", [x, blobs[0]]), blobs[1]], tops)
        else:
            graph.node("MatMul", [x, blobs[0]], tops)

    def _axis(self, num_axes: int) -> int:
        return self.canonical_axis(self.param.inner_product_param.axis, num_axes)


def normalize_rows(blob: nn.Parameter, rows: int, size: int, eps: float = 0.0) -> Tensor:
    """Scale the rows of a parameter blob to length 1, in-place; returns them, (rows, size).

    It is a copy through which the blob's gradient flows: a layer that shares the blob may scale it again
    before the backward pass.
    """
    view = blob.detach().view(rows, size)
    view.copy_(normalized_rows(view, eps))
    return blob.clone().view(rows, size)


def normalized_rows(rows: Tensor, eps: float) -> Tensor:
    """The rows divided by sqrt(|row|^2 + eps)."""
    return rows * (1 / (rows.square().sum(1, keepdim=True) + eps).sqrt())
