"""SoftmaxWithLoss: cross entropy of a softmax.

    prob = softmax of the scores along softmax_param.axis
    top  = sum_i -log max(prob_i[y_i], FLT_MIN) / S         S: see loss_normalizer.py, VALID by default
    diff = (prob - onehot(y)) / S                           FLT_MIN has no effect on it

With loss_param.weight_by_label_freqs (SegNet) loss and diff of each label are multiplied by
class_weighting[y], of which there is one for each class. S stays a number of labels.

loss_param.label_smoothing s changes the gradient alone; D is C times the number of positions of an image:
    Intel    diff = ((1 - s / D) prob - s / D - (1 - s - s / D) onehot(y)) / S
    NVIDIA   diff = (prob - s / (D - 1) - (1 - s) onehot(y)) / S       under --dialect nvidia

bottom[0]  (N, C, ...) scores; softmax_param.axis (default 1) is the axis of C
bottom[1]  labels 0 to C - 1, one for each position on the other axes: (N, ...) or (N, 1, ...); cut to
           integers towards zero; positions with loss_param.ignore_label have loss and gradient 0
top[0]     (), the loss

Caffe: softmax_loss_layer.cpp. weight_by_label_freqs: alexgkendall/caffe-segnet. label_smoothing: the same
file of intel/caffe; softmax_loss_layer.cu of NVIDIA/caffe, branch caffe-0.17 (none in its code for a CPU).
Differs: a label out of range is an error (Caffe reads out of bounds). A second top, the probabilities, is not
available, nor is it in Caffe: its loss_weight check refuses it. No fork has both weights and smoothing; both
are an error.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.labels import LabelReader, check_labels, ignored_label, refuse_gradient, reshape_labels
from imae.layers.layer import LossLayer, Shape
from imae.layers.loss.least_probability import FLT_MIN
from imae.layers.loss.loss_normalizer import LOSS_FIELDS, normalization, normalizer
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter

logger = logging.getLogger(__name__)


@register_layer("SoftmaxWithLoss")
class SoftmaxWithLoss(LossLayer):
    num_tops = None
    min_tops, max_tops = 1, 2
    reads = (
        "softmax_param",
        *LOSS_FIELDS,
        "loss_param.weight_by_label_freqs",
        "loss_param.class_weighting",
        "loss_param.label_smoothing",
        "loss_param.nvidia_label_smoothing",
    )

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        loss = param.loss_param
        self.normalization = normalization(loss)
        self.pre_fixed = loss.pre_fixed_normalizer
        self.labels = LabelReader(self, ignored_label(loss))
        self.class_weights = _ClassWeights(loss.class_weighting) if loss.weight_by_label_freqs else None
        if loss.class_weighting and not loss.weight_by_label_freqs:
            self.note_leftover("loss_param.class_weighting")
        self.smoothing = loss.label_smoothing or loss.nvidia_label_smoothing
        if not 0 <= self.smoothing < 1:
            raise self.error(f"label_smoothing must lie between 0 and 1 (1 left out); got {self.smoothing:g}")
        if self.smoothing and self.class_weights is not None:
            raise self.error(
                "loss_param has weight_by_label_freqs (SegNet's) and label_smoothing (Intel's or NVIDIA's), "
                "which no fork has together; remove one"
            )
        if loss.label_smoothing:
            logger.warning(
                "layer '%s' (%s): label_smoothing is read as Intel's fork does; the gradient of NVIDIA's is "
                "another: --dialect nvidia chooses it", self.name, self.type,
            )  # fmt: skip

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        super().setup(bottom_shapes)
        if len(self.param.top) > 1:
            raise self.error(
                "loss_weight must be unspecified or specified once per top blob.; only the first top is "
                "possible, use a Softmax layer for the probabilities"
            )

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        scores, labels = bottom_shapes
        axis = self._axis(len(scores))
        check_labels(self, "softmax", axis, scores, labels)
        weights = self.param.loss_param.class_weighting
        if self.class_weights is not None and len(weights) != scores[axis]:
            raise self.error(
                "Number of class weight values does not match the number of classes.; class_weighting has "
                f"{len(weights)}, there are {scores[axis]} classes"
            )
        return [()]

    def forward(self, scores: Tensor, label: Tensor) -> Tensor:
        refuse_gradient(self, 1, label, f"{self.type} Layer cannot backpropagate to label inputs.")
        axis = self._axis(scores.dim())
        index, valid = self.labels(reshape_labels(label, scores, axis), scores.shape[axis])
        outer, inner = scores.shape[:axis].numel(), scores.shape[axis + 1 :].numel()
        divisor = normalizer(self.normalization, outer, inner, valid, self.pre_fixed)
        weights = None if self.class_weights is None else self.class_weights(index)
        slope = self._slope(scores.shape[axis] * inner) if self.smoothing else UNSMOOTHED
        return apply(_CrossEntropy, scores, index, valid, weights, divisor, axis, slope)

    def _slope(self, count: int) -> tuple[float, float, float]:
        """See UNSMOOTHED; `count` is D of the formulas above."""
        s = self.smoothing
        if self.param.loss_param.label_smoothing:
            return 1 - s / count, s / count, 1 - s
        if count == 1:
            raise self.error("label_smoothing needs two classes or more")
        return 1, s / (count - 1), 1 - s + s / (count - 1)

    def _axis(self, num_axes: int) -> int:
        return self.canonical_axis(self.param.softmax_param.axis, num_axes)


class _ClassWeights(nn.Module):
    """Class indices to the weights of the classes, which are on the layer's device, as those of a module."""

    by_class: Tensor

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("by_class", torch.tensor(list(weights)), persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        return self.by_class[index]


# The gradient is a prob - b, and a prob - c at the label: (a, b, c).
UNSMOOTHED = (1.0, 0.0, 1.0)


class _CrossEntropy(torch.autograd.Function):
    """The forward and the backward pass. index, valid and weights have size 1 on the class axis."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        index: Tensor,
        valid: Tensor | None,
        weights: Tensor | None,
        divisor: Tensor | float,
        axis: int,
        slope: tuple[float, float, float],
    ) -> Tensor:
        prob = torch.softmax(scores, axis)
        p = prob.gather(axis, index)
        loss = p.clamp(min=FLT_MIN).log().neg()
        if weights is not None:
            loss = loss * weights
        if valid is not None:
            loss = loss.masked_fill(~valid, 0)
        ctx.save_for_backward(prob, p, index, valid, weights)
        ctx.divisor, ctx.axis, ctx.slope = divisor, axis, slope
        return loss.sum() / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor | None, ...]:
        prob, p, index, valid, weights = ctx.saved_tensors
        a, b, c = ctx.slope
        if ctx.slope == UNSMOOTHED:
            diff = prob.scatter(ctx.axis, index, p - 1)
        else:
            diff = (a * prob - b).scatter_(ctx.axis, index, a * p - c)
        if weights is not None:
            diff = diff.mul_(weights)
        if valid is not None:
            diff = diff.masked_fill_(~valid, 0)
        return diff.mul_(top_diff / ctx.divisor), None, None, None, None, None, None
