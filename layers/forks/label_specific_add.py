"""LabelSpecificAdd: adds a bias to the logit of the label (AM-Softmax), in phase TRAIN.

    TRAIN   top_j = x_j + bias     if j is the label and x_j > -bias, else top_j = x_j
    TEST    top   = x

With bias_base the bias changes from pass to pass:

    bias = bias_base + (1 + bias_gamma iter)^bias_power - 1, limited to [bias_min, bias_max]
    iter <- iter + 1                                                      from `iteration` on

The gradient of x is the top's.

bottom[0]  (N, ...) x
bottom[1]  N labels; gets no gradient; bottoms after it are not read
top[0]     the shape of x
top[1]     optional: (1) the bias; 0 in TEST

caffe-windows (happynear/caffe-windows): label_specific_add.cpp. transform_test does nothing: the fork
combines it with "phase is TRAIN". Differs: a label out of range is an error (the fork writes foreign memory);
`iter` goes on when a run is resumed.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from imae.layers.labels import LabelReader
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import TRAIN, LayerParameter


@register_layer("LabelSpecificAdd")
class LabelSpecificAdd(Layer):
    min_bottoms = 2
    min_tops, max_tops = 1, 2
    idle_in_test = True
    passes: Tensor

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        add = param.label_specific_add_param
        self.anneals = add.HasField("bias_base")
        of_annealing = ("bias_gamma", "bias_power", "bias_min", "bias_max", "iteration")
        for field in ("transform_test", *(("bias",) if self.anneals else of_annealing)):
            if add.HasField(field):
                self.note_leftover(f"label_specific_add_param.{field}")
        self.labels = LabelReader(self)
        self.register_buffer("passes", torch.tensor([add.iteration]), persistent=False)

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index == 0

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        x, label = bottom_shapes[:2]
        if not x or prod(label) != x[0]:
            raise self.error(f"bottom[1] must hold one label for each item of bottom[0], {x}; got {label}")
        return [x, (1,)][: len(self.param.top)]

    @property
    def repeatable(self) -> bool:
        return self.phase != TRAIN or not self.anneals

    def forward(self, x: Tensor, label: Tensor, *unread: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.phase == TRAIN:
            bias = self._bias(x)
            top = self._added(x, label, bias)
        else:
            bias, top = x.new_zeros(1), x.view_as(x)
        return top if len(self.param.top) == 1 else (top, bias)

    def _bias(self, x: Tensor) -> Tensor:
        """(1), of the pass that now begins."""
        add = self.param.label_specific_add_param
        if not self.anneals:
            return x.new_full((1,), add.bias)
        bias = add.bias_base + (1 + add.bias_gamma * self.passes.to(x.dtype)) ** add.bias_power - 1
        self.passes.add_(1)
        # max, then min, as the fork: bias_max below bias_min gives the former.
        return bias.clamp(min=add.bias_min).clamp(max=add.bias_max)

    def _added(self, x: Tensor, label: Tensor, bias: Tensor) -> Tensor:
        rows = x.reshape(len(x), x.shape[1:].numel())
        index, _ = self.labels(label.flatten(), rows.shape[1])
        chosen = rows.gather(1, index.unsqueeze(1)).detach()
        plus = torch.where(chosen > -bias, bias, 0)
        return rows.scatter_add(1, index.unsqueeze(1), plus).reshape(x.shape)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        graph.node("Identity", bottoms[:1], tops[:1])
        if len(tops) > 1:
            graph.node("Identity", [graph.constant(torch.zeros(1))], tops[1:])
