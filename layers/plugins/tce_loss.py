"""TCELoss: Taylor cross entropy, the sum over i = 1 .. t of (1 - p)^i / i; w = 2 (1 - (1 - p)^t) (1 - p).

Feng et al. 2020; see TCE in losses/of_probability.py. Bottoms, top and S: see label_loss.py.
"""

from imae.layers.plugins.label_loss import LabelLoss
from imae.layers.registry import register_layer
from imae.losses import TCE


@register_layer("TCELoss")
class TCELoss(LabelLoss):
    field = "tce_loss_param"

    def make_loss(self) -> TCE:
        param = self.param.tce_loss_param
        return TCE(param.t)
