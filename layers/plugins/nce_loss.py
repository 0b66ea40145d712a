"""NCELoss: normalised cross entropy, alone or with RCE or MAE as the passive loss (APL).

    top = sum_i (alpha log q_y / sum_k log q_k + beta passive) / S      q: the softmax

Ma et al. 2020, arXiv 2006.13554; see NCE in losses/of_all_classes.py. Bottoms, top and S: see label_loss.py.
"""

from imae.layers.plugins.label_loss import LabelLoss
from imae.layers.registry import register_layer
from imae.losses import NCE
from imae.losses.of_all_classes import Passive
from imae.prototxt.caffe_pb2 import NCELossParameter

PASSIVE: dict[NCELossParameter.Passive, Passive] = {
    NCELossParameter.NONE: "NONE",
    NCELossParameter.RCE: "RCE",
    NCELossParameter.MAE: "MAE",
}


@register_layer("NCELoss")
class NCELoss(LabelLoss):
    field = "nce_loss_param"

    def make_loss(self) -> NCE:
        param = self.param.nce_loss_param
        return NCE(
            PASSIVE[param.passive],
            alpha=param.alpha,
            beta=param.beta,
            gamma=param.gamma,
            log_zero=param.log_zero,
        )
