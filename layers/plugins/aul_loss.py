"""AULLoss: asymmetric unhinged loss, ((a - p)^q - (a - 1)^q) / q; w = 2 p (a - p)^(q - 1) (1 - p).

Zhou et al. 2021, arXiv 2106.03110; see AUL in losses/of_probability.py. Bottoms, top and S: see
label_loss.py.
"""

from imae.layers.plugins.label_loss import LabelLoss
from imae.layers.registry import register_layer
from imae.losses import AUL


@register_layer("AULLoss")
class AULLoss(LabelLoss):
    field = "aul_loss_param"

    def make_loss(self) -> AUL:
        param = self.param.aul_loss_param
        return AUL(param.a, param.q)
