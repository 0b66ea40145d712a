"""Accuracy: the share of positions whose label is among the top_k classes.

    hit_i  = fewer than top_k OTHER classes have a score >= that of the label: a tie counts against it
    top[0] = number of hits / number of positions
    top[1] = the same for each class separately; 0 for a class without positions

bottom[0]  (N, C, ...) scores; accuracy_param.axis (default 1) is the axis of C
bottom[1]  labels 0 to C - 1, one for each position on the other axes, cut to integers towards zero; positions
           with ignore_label do not count; if none counts, the accuracy is 0
top[0]     ()
top[1]     (C), optional

No gradient. A comparison with NaN is false, so scores that are all NaN have accuracy 1, as in Caffe.

Caffe: accuracy_layer.cpp. Differs: a label out of range is an error (Caffe reads out of bounds).
"""

from collections.abc import Sequence

from torch import Tensor

from imae.layers.labels import LabelReader, check_labels, ignored_label, reshape_labels
from imae.layers.layer import Layer, Shape
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("Accuracy")
class Accuracy(Layer):
    num_bottoms = 2
    min_tops, max_tops = 1, 2
    deployed = False

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        self.top_k = param.accuracy_param.top_k
        self.labels = LabelReader(self, ignored_label(param.accuracy_param))

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        scores, labels = bottom_shapes
        axis = self._axis(len(scores))
        check_labels(self, "label", axis, scores, labels)
        if self.top_k > scores[axis]:
            raise self.error(
                "top_k must be less than or equal to the number of classes.; "
                f"got {self.top_k} for {scores[axis]} classes"
            )
        return [(), (scores[axis],)][: len(self.param.top)]

    def forward(self, scores: Tensor, label: Tensor) -> Tensor | tuple[Tensor, ...]:
        scores = scores.detach()
        axis = self._axis(scores.dim())
        classes = scores.shape[axis]
        index, valid = self.labels(reshape_labels(label.detach(), scores, axis), classes)
        # The label's own score is also >= itself, hence - 1.
        hits = (scores >= scores.gather(axis, index)).sum(axis, keepdim=True) - 1 < self.top_k
        counted = hits | True if valid is None else valid
        hits = (hits & counted).to(scores.dtype)
        counted = counted.to(scores.dtype)
        accuracy = hits.sum() / counted.sum().clamp(min=1)
        if len(self.param.top) == 1:
            return accuracy
        zeros, index = scores.new_zeros(classes), index.flatten()
        positions = zeros.index_add(0, index, counted.flatten())
        return accuracy, zeros.index_add(0, index, hits.flatten()) / positions.clamp(min=1)

    def _axis(self, num_axes: int) -> int:
        return self.canonical_axis(self.param.accuracy_param.axis, num_axes)
