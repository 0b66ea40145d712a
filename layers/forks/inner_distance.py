"""InnerDistance: the distances of each item from the rows of a weight, as an InnerProduct gives the products.

    L2   top_j = sum over k of (x_k - W_jk)^2
    L1   top_j = sum over k of |x_k - W_jk|

`normalize` first scales the rows of the blob: W_j <- W_j / sqrt(|W_j|^2 + 1e-6), in-place, in every forward
pass. The gradients are the derivatives of the distances; with update_center_only, W_j gets only those of the
items whose label is j. `transpose` gives the blob the shape (K, J); its memory is used as before.

bottom[0]  (..., d_axis, ..., d_last) x; K = d_axis * ... * d_last
bottom[1]  optional: W (J, ...), J K values, in the blob's place
bottom[2]  optional, after a bottom[1]: labels, for update_center_only; gets no gradient
top[0]     (..., J), the axes before `axis` kept; J is num_output without a bottom[1]
blobs      W (J, K), without a bottom[1]

caffe-windows (happynear/caffe-windows): inner_distance_layer.cpp, which reads neither bias_term nor
bias_filler. Differs: update_center_only without labels, labels out of range and a bottom[1] of another size
are errors (the fork uses other memory).
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from imae.layers.common.inner_product import check_inputs, normalize_rows, normalized_rows
from imae.layers.labels import LabelReader, refuse_gradient
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter

EPS = 1e-6


@register_layer("InnerDistance")
class InnerDistance(Layer):
    min_bottoms, max_bottoms = 1, 3
    num_tops = 1
    blob_names = ("weight",)
    in_place = False

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        distance, bottoms = param.inner_distance_param, len(param.bottom)
        if distance.distance_type not in ("L1", "L2"):
            raise self.error(f"distance_type must be L1 or L2; got {distance.distance_type!r}")
        if bottoms == 1 and distance.num_output < 1:
            raise self.error(f"num_output must be positive; got {distance.num_output}")
        if distance.update_center_only and bottoms < 3:
            raise self.error(f"update_center_only needs 3 bottoms: x, the weight, labels; got {bottoms}")
        of_the_blob = ["num_output", "weight_filler", "transpose", "normalize"] if bottoms > 1 else []
        for field in ("bias_term", "bias_filler", *of_the_blob):
            if distance.HasField(field):
                self.note_leftover(f"inner_distance_param.{field}")
        self.labels = LabelReader(self)

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 2

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        distance = self.param.inner_distance_param
        self.inputs = prod(bottom_shapes[0][self._axis(len(bottom_shapes[0])) :])
        if len(bottom_shapes) == 1:
            shape = (distance.num_output, self.inputs)
            self.add_blob(shape[::-1] if distance.transpose else shape, distance.weight_filler)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        distance, shape = self.param.inner_distance_param, bottom_shapes[0]
        axis = self._axis(len(shape))
        check_inputs(self, shape, axis, self.inputs)
        rows = distance.num_output
        if len(bottom_shapes) > 1:
            weight = bottom_shapes[1]
            if not weight or prod(weight[1:]) != self.inputs:
                raise self.error(f"bottom[1] must be (J, {self.inputs}), one value per input; got {weight}")
            rows = weight[0]
        if distance.update_center_only and prod(bottom_shapes[2]) != prod(shape[:axis]):
            raise self.error(
                f"bottom[2] must hold one label for each of {prod(shape[:axis])} items; "
                f"got {tuple(bottom_shapes[2])}"
            )
        return [(*shape[:axis], rows)]

    @property
    def repeatable(self) -> bool:
        return not self.param.inner_distance_param.normalize  # which changes the weights

    def forward(self, x: Tensor, weight: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        distance = self.param.inner_distance_param
        shape = x.shape[: self._axis(x.dim())]
        x = x.reshape(-1, self.inputs)
        if weight is not None:
            weight = weight.reshape(-1, self.inputs)
        elif distance.normalize:
            weight = normalize_rows(self.blobs[0], distance.num_output, self.inputs, EPS)
        else:
            weight = self.blob(0).reshape(-1, self.inputs)
        if label is None or not distance.update_center_only:
            return self._distances(x, weight).reshape(*shape, len(weight))
        refuse_gradient(self, 2, label, "InnerDistance Layer cannot backpropagate to label inputs.")
        index, _ = self.labels(label.flatten(), len(weight))
        of_weight = self._distances(x.detach(), weight)
        # 0 with the gradient of the weight, where j is the label
        only_label = torch.zeros_like(of_weight).scatter_(1, index.unsqueeze(1), 1)
        term = (of_weight - of_weight.detach()) * only_label
        return (self._distances(x, weight.detach()) + term).reshape(*shape, len(weight))

    def _distances(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.param.inner_distance_param.distance_type == "L1":
            return torch.cdist(x, weight, p=1)
        # Not by products: |x|^2 - 2 x w + |w|^2 cancels where x is near to w.
        return torch.cdist(x, weight, p=2, compute_mode="donot_use_mm_for_euclid_dist").square()

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        distance = self.param.inner_distance_param
        axis = self._axis(len(graph.shape(bottoms[0])))
        x = graph.node("Reshape", [bottoms[0], graph.constant(np.array([0] * axis + [1, -1]))])
        if len(bottoms) > 1:
            weight = graph.node("Flatten", [bottoms[1]], axis=1)
        else:
            blob = self.blob(0).detach().reshape(-1, self.inputs)
            weight = graph.constant(normalized_rows(blob, EPS) if distance.normalize else blob, blob=0)
        difference = graph.node("Sub", [x, weight])
        is_l1 = distance.distance_type == "L1"
        terms = graph.node("Abs", [difference]) if is_l1 else graph.node("Mul", [difference, difference])
        graph.node("ReduceSum", [terms, graph.constant(np.array([axis + 1]))], tops, keepdims=0)

    def _axis(self, num_axes: int) -> int:
        return self.canonical_axis(self.param.inner_distance_param.axis, num_axes)
