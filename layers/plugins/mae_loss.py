"""MAELoss: mean absolute error between softmax and one-hot label, 2 (1 - p); w = 4 p (1 - p).

Equations 3, 18 and 20, with the factor 2. Bottoms, top and `normalizer`: see designed_loss.py.
"""

from imae.layers.plugins.designed_loss import DesignedLoss
from imae.layers.registry import register_layer
from imae.losses import MAE


@register_layer("MAELoss")
class MAELoss(DesignedLoss):
    field = "mae_loss_param"

    def make_loss(self) -> MAE:
        return MAE(normalizer=self.normalizer())
