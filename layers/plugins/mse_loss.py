"""MSELoss: squared error of the annotated label's probability, (1 - p)^2; w = 4 p (1 - p)^2.

Later version of the paper, table 2. Bottoms, top and `normalizer`: see designed_loss.py.
"""

from imae.layers.plugins.designed_loss import DesignedLoss
from imae.layers.registry import register_layer
from imae.losses import MSE


@register_layer("MSELoss")
class MSELoss(DesignedLoss):
    field = "mse_loss_param"

    def make_loss(self) -> MSE:
        return MSE(normalizer=self.normalizer())
