"""ExtractProb: the probability of each example's label, as the authors' Caffe fork has it.

bottom[0]  (N, C, ...) probabilities
bottom[1]  labels 0 to C - 1, as many as there are examples (N * ...)
top[0]     (N, 1, ...) p of each example; 0 where the label is loss_param.ignore_label
top[1]     (), optional: the largest p of the batch

The bottoms get no gradient.
"""

from collections.abc import Sequence

from torch import Tensor

from imae.layers.labels import LabelReader, check_labels, ignored_label, reshape_labels
from imae.layers.layer import Layer, Shape
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("ExtractProb")
class ExtractProb(Layer):
    num_bottoms = 2
    min_tops, max_tops = 1, 2
    in_place = False
    deployed = False
    reads = ("loss_param.ignore_label",)
    unread_parts_are_leftovers = False

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.labels = LabelReader(self, ignored_label(param.loss_param))
        if any(param.propagate_down):
            raise self.error("it has no gradient to propagate; set propagate_down to false for both bottoms")

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        prob, label = bottom_shapes
        check_labels(self, "class", self.canonical_axis(1, len(prob)), prob, label)
        return [(prob[0], 1, *prob[2:]), ()][: len(self.param.top)]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return False

    def forward(self, prob: Tensor, label: Tensor) -> Tensor | tuple[Tensor, ...]:
        index, valid = self.labels(reshape_labels(label, prob, 1), prob.shape[1])
        p = prob.detach().gather(1, index)
        if valid is not None:
            p = p.masked_fill(~valid, 0)
        return p if len(self.param.top) == 1 else (p, p.amax())
