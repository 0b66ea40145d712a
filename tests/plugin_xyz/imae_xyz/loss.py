"""XyzLoss: a loss that is defined by its gradient, of L1 norm w(p) = 2 (1 - p)^gamma for each example.

p is the softmax probability of the annotated label. With gamma 1 this is the gradient of cross entropy; a
larger gamma gives examples that are fitted well less weight. The value is 2 (1 - p), which the log shows: the
gradient need not be its derivative. Bottoms and top: imae.layers.plugins.label_loss; the gradient:
imae.losses.designed.
"""

from torch import Tensor

from imae.layers.plugins import designed_loss
from imae.layers.registry import register_layer
from imae.losses.designed import DesignedLoss
from imae.losses.loss import check_number


class Xyz(DesignedLoss):
    """The arithmetic, as a torch module: Xyz(gamma=2)(logits, labels)."""

    settings = ("gamma",)

    def __init__(self, gamma: float = 1) -> None:
        super().__init__()
        check_number("gamma", gamma, exclusive=True)
        self.gamma = gamma

    def weight(self, p: Tensor, rest: Tensor) -> Tensor:
        """w(p); rest is 1 - p, without the digits that the difference loses near p = 1."""
        return 2 * rest**self.gamma


@register_layer("XyzLoss")
class XyzLoss(designed_loss.DesignedLoss):
    field = "xyz_loss_param"

    def make_loss(self) -> Xyz:
        return Xyz(self.param.xyz_loss_param.gamma)
