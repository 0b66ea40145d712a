"""BootstrappingLoss: cross entropy with labels that are mixed with the prediction (Reed et al. 2014).

    top = sum_i -sum_k (beta onehot_k + (1 - beta) t_k) log q_k / S

t is q (SOFT) or the one-hot vector of the largest q (HARD). beta unset is 0.95 for SOFT, 0.8 for HARD. arXiv
1412.6596; see Bootstrapping in losses/of_all_classes.py. Bottoms, top and S: see label_loss.py.
"""

from imae.layers.plugins.label_loss import LabelLoss
from imae.layers.registry import register_layer
from imae.losses import Bootstrapping
from imae.losses.of_all_classes import Kind
from imae.prototxt.caffe_pb2 import BootstrappingLossParameter

KIND: dict[BootstrappingLossParameter.Kind, Kind] = {
    BootstrappingLossParameter.SOFT: "SOFT",
    BootstrappingLossParameter.HARD: "HARD",
}


@register_layer("BootstrappingLoss")
class BootstrappingLoss(LabelLoss):
    field = "bootstrapping_loss_param"

    def make_loss(self) -> Bootstrapping:
        param = self.param.bootstrapping_loss_param
        return Bootstrapping(KIND[param.kind], param.beta if param.HasField("beta") else None)
