"""AGCELoss: asymmetric generalised cross entropy, ((a + 1)^q - (a + p)^q) / q.

w = 2 p (a + p)^(q - 1) (1 - p). Zhou et al. 2021, arXiv 2106.03110; see AGCE in losses/of_probability.py.
Bottoms, top and S: see label_loss.py.
"""

from imae.layers.plugins.label_loss import LabelLoss
from imae.layers.registry import register_layer
from imae.losses import AGCE


@register_layer("AGCELoss")
class AGCELoss(LabelLoss):
    field = "agce_loss_param"

    def make_loss(self) -> AGCE:
        param = self.param.agce_loss_param
        return AGCE(param.a, param.q)
