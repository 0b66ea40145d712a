"""BN of TSN, PSPNet and caffe-windows: slope and bias of channels that are normalised.

    top = slope (x - mean) / sqrt(variance + eps) + bias

TRAIN takes mean and variance (the biased one) of the batch, over all axes but axis 1, and in every forward
pass

    blob = momentum blob + (1 - momentum) that of the batch

for the blobs of mean and variance. TEST and `frozen` take these blobs.

bottom[0]  (N, C, H, W), or two or three axes, the others being 1
top[0]     the same shape
blobs      slope, bias (by slope_filler and bias_filler: 0 without one), mean (0), variance (0; frozen: 1),
           (1, C, 1, 1) each; weights of shape (1, C), as yjxiong's fork writes them, fit as well

lr_mult and decay_mult of mean and variance are 0, with `frozen` those of all four, whatever the prototxt has.
Backward: TRAIN propagates the gradient through the batch's mean and variance, and so does TEST, as if the
blobs were those of the batch. With `frozen` only the bottom gets a gradient, slope / sqrt(variance + eps)
times the top's.

PSPNet (hszhao/PSPNet), TSN (yjxiong/caffe), caffe-windows (happynear/caffe-windows): bn_layer.cpp. `engine`
makes no difference here; the running variance of the forks' cuDNN engine is the unbiased one. Differs: a
bottom of one axis, for the forks one channel, is an error.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from imae.layers.forks.channel_norm import TWO_BLOBS, ChannelNorm
from imae.layers.layer import Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.prototxt import TEST, FillerParameter, LayerParameter, ParamSpec


class TSNBN(ChannelNorm):
    num_tops = 1
    blob_names = ("slope", "bias", "mean", "variance")
    keeps_axes = True
    trailing_ones_vary = True
    advice_by_blob_count = TWO_BLOBS

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        bn = param.bn_param
        self.momentum, self.eps, self.frozen = bn.momentum, bn.eps, bn.frozen

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        bn = self.param.bn_param
        statistics = [FillerParameter(type="constant", value=value) for value in (0, float(self.frozen))]
        self.add_channel_blobs(bottom_shapes[0], (bn.slope_filler, bn.bias_filler, *statistics))

    def param_specs(self) -> list[ParamSpec]:
        specs = []
        for index, written in enumerate(super().param_specs()):
            spec = ParamSpec()
            spec.CopyFrom(written)
            if self.frozen or index > 1:
                spec.lr_mult = spec.decay_mult = 0
            specs.append(spec)
        return specs

    @property
    def repeatable(self) -> bool:
        return self.frozen or self.phase == TEST

    def fixed_statistics(self) -> tuple[Tensor, Tensor, float] | None:
        if not self.repeatable:
            return None
        return self.blob(2).detach().reshape(-1), self.blob(3).detach().reshape(-1), self.eps

    def forward(self, x: Tensor) -> Tensor:
        shape = self.top_shapes([tuple(x.shape)])[0]
        x = x.reshape(self.legacy_shape(shape))
        if self.frozen or self.phase == TEST:
            mean, variance = self.blob(2).detach(), self.blob(3).detach()
        else:
            mean, variance = self.batch_statistics(x)
            with torch.no_grad():
                for index, statistic in ((2, mean), (3, variance)):
                    self.blob(index).mul_(self.momentum).add_(statistic, alpha=1 - self.momentum)
        std = (variance + self.eps).sqrt()
        return self.normalize(x, mean, std, through=not self.frozen, learns=not self.frozen).reshape(shape)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        blobs = [graph.constant(self.blob(index).reshape(-1), blob=index) for index in range(4)]
        graph.node("BatchNormalization", [bottoms[0], *blobs], tops, epsilon=self.eps)
