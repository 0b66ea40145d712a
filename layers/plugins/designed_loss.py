"""The base of the losses whose gradient is designed and that may be divided by the sum of their weights.

Weights, values and the gradient: see losses/designed.py. Bottoms, top, S: see label_loss.py. `normalizer` of
the type's parameter says what S is:

    BATCH_SIZE      what loss_param.normalization counts
    SUM_OF_WEIGHTS  1e-8 + sum_i w(p_i); the top is then the weighted mean sum_i w(p_i) value(p_i) / S

The default of IMAELoss and DMLoss is SUM_OF_WEIGHTS, but where loss_param says what to count; that of the
others is BATCH_SIZE.
"""

from __future__ import annotations

from imae.layers.plugins.label_loss import LabelLoss
from imae.losses.designed import DesignedLoss as DesignedLossModule
from imae.losses.designed import Normalizer
from imae.prototxt import LayerParameter
from imae.prototxt.caffe_pb2 import WeightNormalization

COUNTS = ("normalization", "normalize", "pre_fixed_normalizer")  # fields of loss_param


class DesignedLoss(LabelLoss):
    """Base of these layers."""

    loss: DesignedLossModule

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        for field in self._counts() if self.loss.by_weights else ():
            raise self.error(f"loss_param.{field} does nothing with the sum of weights; remove it")

    def normalizer(self) -> Normalizer:
        """The argument `normalizer` of the loss."""
        param = getattr(self.param, self.field)
        if self._counts() and not param.HasField("normalizer"):
            return "BATCH_SIZE"
        return "SUM_OF_WEIGHTS" if param.normalizer == WeightNormalization.SUM_OF_WEIGHTS else "BATCH_SIZE"

    def _counts(self) -> list[str]:
        """The fields of loss_param that say what to count, those that are given."""
        return [field for field in COUNTS if self.param.loss_param.HasField(field)]
