"""The divisor of a loss: what `loss_param.normalization` counts, at least 1.

    FULL        all labels
    VALID       the labels that are not ignored
    BATCH_SIZE  the items (the axes before the class axis)
    NONE        1
    PRE_FIXED   loss_param.pre_fixed_normalizer (R-FCN's fork and intel/caffe)

Caffe: get_normalizer in softmax_loss_layer.cpp (and again in sigmoid_cross_entropy_loss_layer.cpp and
infogain_loss_layer.cpp).
"""

from __future__ import annotations

from torch import Tensor

from imae.prototxt.caffe_pb2 import LossParameter

# For Layer.reads: the fields of loss_param that a loss with an ignore_label and a normalizer reads.
LOSS_FIELDS = (
    "loss_param.ignore_label",
    "loss_param.normalization",
    "loss_param.normalize",
    "loss_param.pre_fixed_normalizer",
)


def normalization(
    loss: LossParameter, default: LossParameter.NormalizationMode = LossParameter.VALID
) -> LossParameter.NormalizationMode:
    """The mode that a prototxt asks for: `normalization`, else the old `normalize`, else `default`."""
    if loss.HasField("normalization"):
        return loss.normalization
    if loss.HasField("normalize"):
        return LossParameter.VALID if loss.normalize else LossParameter.BATCH_SIZE
    return default


def normalizer(
    mode: LossParameter.NormalizationMode,
    outer: int,
    inner: int,
    valid: Tensor | None,
    pre_fixed: float | None = None,
) -> Tensor | float:
    """The divisor for outer * inner labels; `valid` is the mask of labels that count, None if all do.

    `pre_fixed` is loss_param.pre_fixed_normalizer; a loss that refuses PRE_FIXED needs none. So a batch
    without a valid label has loss 0 and gradient 0, not NaN.
    """
    if mode == LossParameter.NONE:
        return 1
    if mode == LossParameter.PRE_FIXED:
        assert pre_fixed is not None
        return max(pre_fixed, 1)
    if mode == LossParameter.BATCH_SIZE:
        return max(outer, 1)
    if mode == LossParameter.FULL or valid is None:
        return max(outer * inner, 1)
    return valid.sum().clamp(min=1)
