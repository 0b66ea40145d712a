"""SCELoss: symmetric cross entropy, -alpha log p - beta A (1 - p); w = 2 (alpha + beta |A| p) (1 - p).

A is log_zero. Wang et al. 2019, arXiv 1908.06112; see SCE in losses/of_probability.py. Bottoms, top and S:
see label_loss.py.
"""

from imae.layers.plugins.label_loss import LabelLoss
from imae.layers.registry import register_layer
from imae.losses import SCE


@register_layer("SCELoss")
class SCELoss(LabelLoss):
    field = "sce_loss_param"

    def make_loss(self) -> SCE:
        param = self.param.sce_loss_param
        return SCE(param.alpha, param.beta, param.log_zero)
