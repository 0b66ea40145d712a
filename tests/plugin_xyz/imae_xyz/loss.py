"""XyzLoss: a loss that is defined by its gradient, of L1 norm w(p) = 2 (1 - p)^gamma for each example.

p is the softmax probability of the annotated label. With gamma 1 this is the gradient of cross entropy; a
larger gamma gives examples that are fitted well less weight. The value is 2 (1 - p), which the log shows: the
gradient need not be its derivative. Bottoms, top and normalization: imae.layers.plugins.designed_loss.
"""

import math

from torch import Tensor

from imae.layers.plugins.designed_loss import DesignedLoss
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter
from imae.prototxt.caffe_pb2 import WeightNormalization


@register_layer("XyzLoss")
class XyzLoss(DesignedLoss):
    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param, WeightNormalization.BATCH_SIZE)
        self.gamma = param.xyz_loss_param.gamma
        if not 0 < self.gamma < math.inf:
            raise self.error(f"xyz_loss_param.gamma must be a number above 0, got {self.gamma:g}")

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        """w(p); rest is 1 - p, without the digits that the difference loses near p = 1."""
        return 2 * rest**self.gamma
