"""GCELoss: generalised cross entropy, (1 - p^q) / q; w = 2 p^q (1 - p) (Zhang and Sabuncu 2018).

q -> 0 is CCE, q = 1 half of MAE. Later version of the paper, table 2.
Bottoms, top and `normalizer`: see designed_loss.py.
"""

from imae.layers.plugins.designed_loss import DesignedLoss
from imae.layers.registry import register_layer
from imae.losses import GCE


@register_layer("GCELoss")
class GCELoss(DesignedLoss):
    field = "gce_loss_param"

    def make_loss(self) -> GCE:
        param = self.param.gce_loss_param
        return GCE(param.q, normalizer=self.normalizer())
