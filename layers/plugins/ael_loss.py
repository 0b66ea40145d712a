"""AELLoss: asymmetric exponential loss, exp(-p / a); w = 2 p exp(-p / a) / a (1 - p).

Zhou et al. 2021, arXiv 2106.03110; see AEL in losses/of_probability.py. Bottoms, top and S: see
label_loss.py.
"""

from imae.layers.plugins.label_loss import LabelLoss
from imae.layers.registry import register_layer
from imae.losses import AEL


@register_layer("AELLoss")
class AELLoss(LabelLoss):
    field = "ael_loss_param"

    def make_loss(self) -> AEL:
        param = self.param.ael_loss_param
        return AEL(param.a)
