"""BatchNorm: subtract the mean and divide by the standard deviation, channel by channel.

    top = (x - mean) / sqrt(variance + eps)

over all axes but axis 1; the variance is the biased one. TRAIN takes mean and variance from the batch (m
values per channel), propagates the gradient through both, and in every forward pass adds them to the blobs:

    blob0 = f blob0 + mean    blob1 = f blob1 + m / (m - 1) variance    blob2 = f blob2 + 1

with f = moving_average_fraction (and the factor 1 where m is 1). TEST takes blob0 / blob2 and blob1 / blob2,
both 0 while blob2 is 0, and the gradient is divided like the values. `use_global_stats` overrules the phase.

bottom[0]  (N, C, ...); with one axis, one channel
top[0]     the same shape
blobs      blob0 (C), blob1 (C), blob2 (1), all from 0 on; not learned, their lr_mult is 0

stats_batch_size, of Intel's fork, is an error where it would part the batch. `filler` does nothing here: it
is the filler of a Scale layer (prototxt/upgrade.py).

Caffe: batch_norm_layer.cpp. Differs: Caffe intends to accept a bottom of one axis, but aborts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from imae.files.errors import ExportError
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.registry import register_layer
from imae.prototxt import TEST, FillerParameter, LayerParameter, ParamSpec


@register_layer("BatchNorm")
class BatchNorm(Layer):
    num_bottoms = num_tops = 1
    keeps_places = True
    blob_names = ("mean", "variance", "scale_factor")

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        norm = param.batch_norm_param
        self.eps, self.moving_average_fraction = norm.eps, norm.moving_average_fraction
        if norm.HasField("filler"):
            self.note_leftover("batch_norm_param.filler")
        is_set = norm.HasField("use_global_stats")
        self.use_global_stats = norm.use_global_stats if is_set else self.phase == TEST
        for spec in param.param:
            if spec.lr_mult != 0:
                raise self.error(
                    "Cannot configure batch normalization statistics as layer parameters.; "
                    f"got lr_mult {spec.lr_mult:g}, it must be 0"
                )

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        channels = self._channels(bottom_shapes[0])
        for shape in ((channels,), (channels,), (1,)):
            self.add_blob(shape, FillerParameter(type="constant", value=0))

    def param_specs(self) -> list[ParamSpec]:
        specs = list(self.param.param)
        return [specs[i] if i < len(specs) else ParamSpec(lr_mult=0) for i in range(len(self.blobs))]

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape, channels = bottom_shapes[0], self.blob_shapes[0][0]
        if self._channels(shape) != channels:
            raise self.error(f"bottom {shape} must have {channels} channels on axis 1")
        size = self.param.batch_norm_param.stats_batch_size
        if not self.use_global_stats and 0 < size < shape[0]:
            raise self.error(
                f"stats_batch_size {size}, of Intel's fork, would normalise every {size} of the {shape[0]} "
                "images by themselves, which is not supported; remove it, or make the batches as small"
            )
        return [shape]

    def _channels(self, shape: Shape) -> int:
        if not shape:
            raise self.error("the bottom must have at least 1 axis; it is a scalar")
        return 1 if len(shape) == 1 else shape[1]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and variance from the blobs, (C) each; zeros before the first update."""
        means, variances, weight = (self.blob(i).detach() for i in range(3))
        factor = torch.where(weight == 0, weight, 1 / weight)
        return means * factor, variances * factor

    @torch.no_grad()
    def update(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        """Add a batch's mean and unbiased variance, (C) each, to the blobs."""
        self.blob(0).mul_(self.moving_average_fraction).add_(mean)
        self.blob(1).mul_(self.moving_average_fraction).add_(unbiased_variance)
        self.blob(2).mul_(self.moving_average_fraction).add_(1)

    @property
    def repeatable(self) -> bool:
        return self.use_global_stats

    def forward(self, x: Tensor) -> Tensor:
        # No reshape unless needed: it gives a single image a stride with which torch computes a wrong weight
        # gradient of a grouped convolution.
        return self._normalize(x) if x.dim() > 1 else self._normalize(x.unsqueeze(1)).squeeze(1)

    def _normalize(self, x: Tensor) -> Tensor:
        """The top of a bottom (N, C, ...)."""
        if self.use_global_stats:
            return torch.batch_norm(x, None, None, *self.statistics(), False, 0, self.eps, True)
        # With momentum 1 torch leaves the batch's mean and unbiased variance in these two.
        mean, variance = torch.zeros_like(self.blob(0)), torch.zeros_like(self.blob(1))
        # In other memory formats, torch's sums on the CPU are less exact.
        top = torch.batch_norm(x.contiguous(), None, None, mean, variance, True, 1, self.eps, True)
        if x.numel() == x.shape[1]:  # m is 1: the variance is 0, and torch's unbiased one is 0/0
            variance = torch.zeros_like(variance)
        self.update(mean, variance)
        return top

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        if not self.use_global_stats:
            raise ExportError(
                f"layer {self.name!r}: use_global_stats is false, so it depends on the batch; set it to true"
            )
        mean, variance = self.statistics()
        if len(graph.shape(bottoms[0])) > 1:
            constants = [graph.constant(torch.ones_like(mean)), graph.constant(torch.zeros_like(mean))]
            constants += [graph.constant(mean, blob=0), graph.constant(variance, blob=1)]
            graph.node("BatchNormalization", [bottoms[0], *constants], tops, epsilon=self.eps)
        else:
            centred = graph.node("Sub", [bottoms[0], graph.constant(mean, blob=0)])
            graph.node("Div", [centred, graph.constant(torch.sqrt(variance + self.eps))], tops)
