"""InfogainLoss: cross entropy with a matrix H, the weight of each class for each label.

    prob = softmax of the scores along infogain_loss_param.axis
    top  = sum_i -sum_l H[y_i, l] log max(prob_i[l], 1e-20) / S    S: see loss_normalizer.py, VALID by default
    diff = (prob_l * sum_k H[y, k] - H[y, l]) / S                  1e-20 has no effect on it

bottom[0]  (N, C, ...) scores
bottom[1]  labels 0 to C - 1, one for each position on the other axes, cut to integers towards zero;
           positions with loss_param.ignore_label are ignored
bottom[2]  optional: H, C * C values; without it H is read from infogain_loss_param.source, a BlobProto
top[0]     (), the loss
top[1]     optional: prob; loss_weight must then be given for both tops

Caffe: infogain_loss_layer.cpp. Differs: a label out of range is an error; force_backward sends no gradient to
H (Caffe aborts).
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply_for_several
from imae.layers.blob import array_from_blob
from imae.layers.labels import LabelReader, check_labels, ignored_label, refuse_gradient, reshape_labels
from imae.layers.layer import LossLayer, Shape
from imae.layers.loss.least_probability import LOG_THRESHOLD
from imae.layers.loss.loss_normalizer import LOSS_FIELDS, normalization, normalizer
from imae.layers.registry import register_layer
from imae.prototxt import BlobProto, LayerParameter
from imae.prototxt.text import read_binary


@register_layer("InfogainLoss")
class InfogainLoss(LossLayer):
    num_bottoms = None
    min_bottoms, max_bottoms = 2, 3
    num_tops = None
    min_tops, max_tops = 1, 2
    reads = ("softmax_param.engine", *LOSS_FIELDS)
    constant_buffers = ("infogain",)
    infogain: Tensor

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        if param.loss_param.HasField("normalize"):
            raise self.error('normalize is deprecated. use "normalization"')
        self.normalization = normalization(param.loss_param)
        self.pre_fixed = param.loss_param.pre_fixed_normalizer
        self.labels = LabelReader(self, ignored_label(param.loss_param))
        source = param.infogain_loss_param.source
        if len(param.bottom) == 3:
            if source:
                self.note_leftover("infogain_loss_param.source")
        elif not source:
            raise self.error("Infogain matrix source must be specified.; or give the matrix as third bottom")
        else:
            matrix = torch.from_numpy(array_from_blob(read_binary(source, BlobProto)))
            self.register_buffer("infogain", matrix, persistent=False)

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        super().setup(bottom_shapes)
        if len(self.param.top) > 1 and not self.param.loss_weight:
            raise self.error(
                "loss_weight must be unspecified or specified once per top blob.; "
                "it must be given, once for each of the 2 tops"
            )

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        scores, labels = bottom_shapes[:2]
        axis = self._axis(len(scores))
        check_labels(self, "infogain", axis, scores, labels)
        matrix = bottom_shapes[2] if len(bottom_shapes) == 3 else tuple(self.infogain.shape)
        classes = scores[axis]
        if prod(matrix) != classes * classes:
            raise self.error(f"H must be {classes}x{classes}; got shape {matrix}")
        return [(), scores][: max(len(self.param.top), 1)]

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index == 0

    def forward(self, scores: Tensor, label: Tensor, *matrix: Tensor) -> Tensor | tuple[Tensor, ...]:
        refuse_gradient(self, 1, label, f"{self.type} Layer cannot backpropagate to label inputs.")
        for bottom in matrix:
            refuse_gradient(self, 2, bottom, f"{self.type} Layer cannot backpropagate to infogain inputs.")
        axis = self._axis(scores.dim())
        classes = scores.shape[axis]
        index, valid = self.labels(reshape_labels(label, scores, axis), classes)
        outer, inner = scores.shape[:axis].numel(), scores.shape[axis + 1 :].numel()
        divisor = normalizer(self.normalization, outer, inner, valid, self.pre_fixed)
        infogain = matrix[0] if matrix else self.infogain
        rows = infogain.to(scores.dtype).reshape(classes, classes)[index.squeeze(axis)].movedim(-1, axis)
        loss, prob = apply_for_several(_Infogain, scores, rows, valid, divisor, axis)
        return loss if len(self.param.top) < 2 else (loss, prob)

    def _axis(self, num_axes: int) -> int:
        return self.canonical_axis(self.param.infogain_loss_param.axis, num_axes)


class _Infogain(torch.autograd.Function):
    """The forward and the backward pass; `rows` are the rows of H of the labels, shaped like the scores."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, rows: Tensor, valid: Tensor | None, divisor: Tensor | float, axis: int
    ) -> tuple[Tensor, Tensor]:
        prob = torch.softmax(scores, axis)
        loss = -(rows * prob.clamp(min=LOG_THRESHOLD).log())
        if valid is not None:
            loss = loss.masked_fill(~valid, 0)
        ctx.save_for_backward(prob, rows, valid)
        ctx.divisor, ctx.axis = divisor, axis
        ctx.mark_non_differentiable(prob)
        return loss.sum() / divisor, prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor, prob_diff: Tensor) -> tuple[Tensor | None, ...]:
        prob, rows, valid = ctx.saved_tensors
        diff = prob * rows.sum(ctx.axis, keepdim=True) - rows
        if valid is not None:
            diff = diff.masked_fill_(~valid, 0)
        return diff.mul_(top_diff / ctx.divisor), None, None, None, None
