"""LabelSmoothingLoss: cross entropy with smoothed labels, -(1 - s) log q_y - s / C sum_k log q_k.

Value and gradient are both of the smoothed labels, unlike SoftmaxWithLoss's loss_param.label_smoothing, which
two forks of Caffe have. Szegedy et al. 2015, arXiv 1512.00567; see LabelSmoothing in
losses/of_all_classes.py. Bottoms, top and S: see label_loss.py.
"""

from imae.layers.plugins.label_loss import LabelLoss
from imae.layers.registry import register_layer
from imae.losses import LabelSmoothing


@register_layer("LabelSmoothingLoss")
class LabelSmoothingLoss(LabelLoss):
    field = "label_smoothing_loss_param"

    def make_loss(self) -> LabelSmoothing:
        param = self.param.label_smoothing_loss_param
        return LabelSmoothing(param.smoothing)
