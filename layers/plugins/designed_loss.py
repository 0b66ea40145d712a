"""The base of the losses whose gradient is designed and that may be divided by the sum of their weights.

Weights, values and the gradient: see losses/designed.py. Bottoms, top, S: see label_loss.py. `normalizer` of
the type's parameter says what S is:

    BATCH_SIZE      what loss_param.normalization counts
    SUM_OF_WEIGHTS  1e-8 + sum_i w(p_i); the top is then the weighted mean sum_i w(p_i) value(p_i) / S
"""

from __future__ import annotations

from imae.layers.plugins.label_loss import LabelLoss
from imae.losses.designed import DesignedLoss as DesignedLossModule
from imae.losses.designed import Normalizer
from imae.prototxt import LayerParameter
from imae.prototxt.caffe_pb2 import WeightNormalization


class DesignedLoss(LabelLoss):
    """Base of these layers."""

    loss: DesignedLossModule

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        fields = ("normalization", "normalize", "pre_fixed_normalizer")
        for field in fields if self.loss.by_weights else ():
            if param.loss_param.HasField(field):
                raise self.error(f"loss_param.{field} does nothing with the sum of weights; remove it")


def normalizer_name(mode: WeightNormalization.Mode) -> Normalizer:
    """The argument `normalizer` of a loss for the field of this value."""
    return "SUM_OF_WEIGHTS" if mode == WeightNormalization.SUM_OF_WEIGHTS else "BATCH_SIZE"
