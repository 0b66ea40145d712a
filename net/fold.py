"""Plans for TEST nets with fewer layers: BatchNorms and Scales as weights, shortcuts as one convolution.

He et al.'s shortcut A, which appends channels of zeros, is Pooling with kernel 1 (every second pixel), Power
with scale 0 (zeros) and Concat. Each value of its top is a value of its bottom, or 0. So it equals a 1x1
convolution whose weights are 1 and 0; for finite values exactly. ONNX Runtime keeps convolutions in its own
memory layout, and fuses sums and ReLUs into them; the three layers interrupt this layout after every block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from imae.layers.activation.power import Power
from imae.layers.common.inner_product import InnerProduct
from imae.layers.forks.channel_norm import ChannelNorm
from imae.layers.layer import Layer
from imae.layers.normalization.batch_norm import BatchNorm
from imae.layers.utility.concat import Concat
from imae.layers.utility.split import Split
from imae.layers.vision.conv import Convolution
from imae.layers.vision.pooling import Pooling
from imae.net.net import Net
from imae.net.plan import Plan, scales_channels
from imae.net.step import Step, mark_frees
from imae.prototxt import LayerParameter

# Of the top. The products' cost grows with the square of the channels, the time saved only linearly.
MAX_CHANNELS = 1024


@dataclass(frozen=True)
class _Part:
    """A blob that holds every `stride`-th pixel of `source`, or as many zeros."""

    source: str
    version: int  # how often the source had been written before
    stride: tuple[int, int] = (1, 1)
    zero: bool = False


def fold_shortcuts(
    net: Net, steps: Sequence[Step], keep: Sequence[str] = (), *, any_size: bool = False
) -> list[Step]:
    """For a TEST net: `steps` with a convolution for each Concat of a blob's pixels and as many zeros.

    keep       blobs that are still made
    any_size   only where that is right for images of all sizes
    """
    parts: dict[str, _Part] = {}
    writes: Counter[str] = Counter()
    folded, makers = [], []
    for step in steps:
        part = _part(net, step, parts, writes, any_size)
        folded.append(_convolution(net, step, parts, writes) or step)
        makers.append(part is not None)
        for top in step.tops:
            writes[top] += 1
            parts.pop(top, None)
            if part is not None:
                parts[top] = part
    read, needed = {*net.outputs, *net.loss_weights, *keep}, []
    for step, maker in zip(reversed(folded), reversed(makers), strict=True):
        if not maker or read.intersection(step.tops):
            read.difference_update(step.tops)
            read.update(step.bottoms)
            needed.append(step)
    needed.reverse()
    mark_frees(needed)
    return needed


def _part(
    net: Net, step: Step, parts: dict[str, _Part], writes: Counter[str], any_size: bool
) -> _Part | None:
    """The part in a step's tops if it only picks pixels of its bottom, makes zeros, or passes a part on."""
    layer = step.layer
    if isinstance(layer, Split):
        return parts.get(step.bottoms[0])
    if not isinstance(layer, Pooling | Power) or len(step.tops) != 1:
        return None
    part = parts.get(step.bottoms[0], _Part(step.bottoms[0], writes[step.bottoms[0]]))
    if isinstance(layer, Power):
        zero = layer.scale == layer.shift == 0 and layer.power > 0
        return replace(part, zero=True) if zero else None
    windows, sizes = layer.fixed, net.blob_shapes[step.bottoms[0]][2:]
    every = tuple((size - 1) // stride + 1 for size, stride in zip(sizes, windows.stride, strict=True))
    if layer.method == "STOCHASTIC" or (windows.kernel, windows.pad) != ((1, 1), (0, 0)):
        return None
    if windows.counts(sizes) != every or (any_size and not windows.floor and windows.stride != (1, 1)):
        # One more window, outside of the image.
        return None
    return replace(part, stride=(part.stride[0] * windows.stride[0], part.stride[1] * windows.stride[1]))


def _convolution(net: Net, step: Step, parts: dict[str, _Part], writes: Counter[str]) -> Step | None:
    """The convolution for a Concat of parts of one blob, some of them zeros; None for another step."""
    if not isinstance(step.layer, Concat):
        return None
    shape, channels = net.blob_shapes[step.tops[0]], [net.blob_shapes[name][1:2] for name in step.bottoms]
    joined = [parts[bottom] for bottom in step.bottoms if bottom in parts]
    if len(shape) != 4 or shape[1] != sum(c[0] for c in channels) or len(joined) < len(channels):
        return None
    first = joined[0]
    if {part.zero for part in joined} != {False, True}:
        return None
    if any(replace(part, zero=first.zero) != first for part in joined):
        return None
    if writes[first.source] != first.version or shape[1] > MAX_CHANNELS:
        return None
    identity = torch.eye(channels[0][0])
    weight = torch.cat([torch.zeros_like(identity) if part.zero else identity for part in joined])
    layer = _one_by_one(step.layer, weight.to(next(net.parameters(), identity)), first.stride)
    return Step(layer, layer, (first.source,), step.tops)


def _one_by_one(concat: Concat, weight: Tensor, stride: tuple[int, int]) -> Convolution:
    param = LayerParameter(name=concat.name, type="Convolution", phase=concat.param.phase)
    kind = param.convolution_param
    kind.num_output, kind.bias_term = len(weight), False
    kind.kernel_size.append(1)
    kind.stride_h, kind.stride_w = stride
    layer = Convolution(param)
    layer.blobs.append(nn.Parameter(weight[:, :, None, None], requires_grad=False))
    layer.blob_shapes.append((*weight.shape, 1, 1))
    return layer


def fold_batch_norm(net: Net, keep: Sequence[str] = ()) -> list[Step]:
    """A plan for a TEST net: BatchNorm and Scale are folded into the weights of the layer before them.

    That layer is a convolution or an inner product. The new weights are computed in float64 and stored in
    new layers; the net's parameters are unchanged.

    keep   blobs that are still made
    """
    plan = Plan(net, keep)
    for index, step in enumerate(net.steps):
        source = step.layer
        if not isinstance(source, Convolution | InnerProduct) or len(step.tops) != 1:
            continue
        if isinstance(source, InnerProduct) and source.normalize:
            continue
        if _channel_axis(source, len(net.blob_shapes[step.bottoms[0]])) != 1:
            continue
        members, layers, reader = [index], [], plan.only_reader(index)
        while reader is not None and is_affine(net.steps[reader].layer):
            members.append(reader)
            layers.append(net.steps[reader].layer)
            reader = plan.only_reader(reader)
        if layers:
            folded = folded_layer(source, layers)
            plan.fuse(members, folded, folded)
    return plan.steps()


class FixedNorm(NamedTuple):
    """top = weight (x - mean) / sqrt(variance + eps) + bias

    mean, ...      a number for each channel, (C), without gradients; weight and bias None: 1 and 0
    """

    mean: Tensor
    variance: Tensor
    eps: float
    weight: Tensor | None
    bias: Tensor | None


def fixed_norm(layer: Layer) -> FixedNorm:
    """What a layer computes for which `is_affine` holds."""
    if isinstance(layer, BatchNorm):
        return FixedNorm(*layer.statistics(), layer.eps, None, None)
    blobs = [blob.detach().reshape(-1) for blob in layer.blobs]
    weight, bias = blobs[0], blobs[1] if len(blobs) > 1 else None
    statistics = layer.fixed_statistics() if isinstance(layer, ChannelNorm) else None
    if statistics is None:
        return FixedNorm(torch.zeros_like(weight), torch.ones_like(weight), 0.0, weight, bias)
    return FixedNorm(*statistics, weight, bias)


def is_affine(layer: Layer) -> bool:
    """Whether the layer multiplies each channel by a number and adds one, and its top has the bottom's shape.

    A BatchNorm that uses its running statistics, a Scale of channels, a fork's BN.
    """
    if isinstance(layer, ChannelNorm):
        same_shape = layer.keeps_axes or layer.param.top[0] in layer.param.bottom
        return same_shape and layer.fixed_statistics() is not None
    return layer.use_global_stats if isinstance(layer, BatchNorm) else scales_channels(layer)


def folded_layer(source: Convolution | InnerProduct, affine: Sequence[Layer]) -> Convolution | InnerProduct:
    """A layer that computes `source` and then the layers `affine`, for which `is_affine` holds."""
    weight = source.blob(0).detach().double()
    transposed = isinstance(source, InnerProduct) and source.param.inner_product_param.transpose
    channels = weight.shape[1] if transposed else weight.shape[0]
    factor = weight.new_ones(channels)
    offset = source.blob(1).detach().double() if len(source.blobs) > 1 else weight.new_zeros(channels)
    for layer in affine:
        norm = fixed_norm(layer)
        times = (norm.variance.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            times = times * norm.weight.double()
        factor, offset = factor * times, (offset - norm.mean.double()) * times
        if norm.bias is not None:
            offset = offset + norm.bias.double()
    shape = [1] * weight.ndim
    shape[1 if transposed else 0] = channels
    param = LayerParameter()
    param.CopyFrom(source.param)
    folded: Convolution | InnerProduct
    if isinstance(source, Convolution):
        # A fork's type may find num_output and group in its bottom's shape; the plain type reads both.
        kind = param.convolution_param
        param.type, kind.bias_term = "Convolution", True
        kind.num_output, kind.group = source.num_output, source.group
        folded = Convolution(param)
    else:
        param.inner_product_param.bias_term = True
        folded = InnerProduct(param)
    dtype = source.blob(0).dtype
    for values in (weight * factor.view(shape), offset):
        folded.blobs.append(nn.Parameter(values.to(dtype), requires_grad=False))
        folded.blob_shapes.append(tuple(values.shape))
    return folded


def _channel_axis(layer: Convolution | InnerProduct, num_axes: int) -> int:
    """The top's axis of the outputs."""
    param = layer.param
    kind = param.convolution_param if isinstance(layer, Convolution) else param.inner_product_param
    return layer.canonical_axis(kind.axis, num_axes)
