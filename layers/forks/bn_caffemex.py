"""BN of CaffeMex: scale and shift of channels that are normalised.

    TRAIN   top = scale (x - mean) / sqrt(variance + var_eps) + shift
    TEST    top = scale (x - mean) / sqrt(variance) + shift

TRAIN takes mean and variance (the biased one) of the batch, over all axes but axis 1, and in every forward
pass

    blob = decay blob + (1 - decay) that of the batch

for the blobs of mean and variance. TEST takes these blobs or, where moving_average is false, the batch's own.

bottom[0]  (N, C, H, W), or two or three axes, the others being 1
top[0]     (N, C, H, W); in-place the bottom's shape
blobs      scale and shift (by scale_filler and shift_filler), mean (0), variance (1), (1, C, 1, 1) each

The blobs of mean and variance get no gradient. As in the fork their lr_mult is the prototxt's: without a
`param { lr_mult: 0 }` for each of them, weight decay makes them smaller. A backward pass replaces the diffs
of scale and shift: with iter_size the last pass counts. TEST divides the gradient like the values; where
moving_average is false there is none for the bottom (the fork divides what lies in its memory).

CaffeMex (sciencefans/CaffeMex_v2): bn_layer.cpp. Its bn_layer.cu adds var_eps in TEST, too. Differs: a bottom
of one axis, for the fork one channel, is an error; sync_forward, which takes the statistics over several
GPUs, is refused where several ranks train together; the fork crashes with one GPU. Blobs that several layers
share get the sum of their diffs (the fork: those of the first of these layers). In-place the top keeps the
bottom's axes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from imae.files.errors import ExportError
from imae.layers.forks.channel_norm import TWO_BLOBS, ChannelNorm
from imae.layers.layer import Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.run import Run
from imae.prototxt import TRAIN, FillerParameter, LayerParameter


class CaffeMexBN(ChannelNorm):
    num_tops = 1
    blob_names = ("scale", "shift", "mean", "variance")
    overwrites_diffs = True
    advice_by_blob_count = TWO_BLOBS

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        bn = param.bn_param
        self.decay, self.eps, self.moving_average = bn.decay, bn.var_eps, bn.moving_average

    def use_run(self, run: Run) -> None:
        if self.param.bn_param.sync_forward and run.ranks.size > 1:
            raise self.error(
                f"sync_forward takes the statistics over all ranks, which is not available; there are "
                f"{run.ranks.size}; set it to false, or train with one"
            )

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        bn = self.param.bn_param
        statistics = [FillerParameter(type="constant", value=value) for value in (0, 1)]
        self.add_channel_blobs(bottom_shapes[0], (bn.scale_filler, bn.shift_filler, *statistics))

    @property
    def repeatable(self) -> bool:
        return bool(self.phase != TRAIN)

    def fixed_statistics(self) -> tuple[Tensor, Tensor, float] | None:
        if self.phase == TRAIN or not self.moving_average:
            return None
        return self.blob(2).detach().reshape(-1), self.blob(3).detach().reshape(-1), 0.0

    def forward(self, x: Tensor) -> Tensor:
        shape = self.top_shapes([tuple(x.shape)])[0]
        x = x.reshape(self.legacy_shape(tuple(x.shape)))
        is_train = self.phase == TRAIN
        if is_train or not self.moving_average:
            mean, variance = self.batch_statistics(x)
        else:
            mean, variance = self.blob(2).detach(), self.blob(3).detach()
        if is_train:
            with torch.no_grad():
                for index, statistic in ((2, mean), (3, variance)):
                    self.blob(index).mul_(self.decay).add_(statistic, alpha=1 - self.decay)
            variance = variance + self.eps
        elif not self.moving_average and x.requires_grad and torch.is_grad_enabled():
            self.refusal = self.error(
                "in phase TEST it has no gradient for its bottom where moving_average is false; set it to "
                "true, or propagate_down to false"
            )
        return self.normalize(x, mean, variance.sqrt(), through=is_train).reshape(shape)

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        if not self.moving_average:
            raise ExportError(
                f"layer {self.name!r}: moving_average is false, so it depends on the batch; set it to true"
            )
        value = self.bottom_to_onnx(graph, bottoms[0], tops[0])
        mean = self.channel_constant(graph, tops[0], self.blob(2), blob=2)
        std = self.channel_constant(graph, tops[0], self.blob(3).sqrt())
        normed = graph.node("Div", [graph.node("Sub", [value, mean]), std])
        self.scale_to_onnx(graph, normed, tops[0])
