"""Plans for TEST nets with fewer layers: BatchNorms and Scales as weights, shortcuts as one convolution.

He et al.'s shortcut A, which appends channels of zeros, is Pooling with kernel 1 (every second pixel), Power
with scale 0 (zeros) and Concat. Each value of its top is one of its bottom's, or 0: a 1x1 convolution whose
weights are 1 and 0, and exact for finite values. ONNX Runtime keeps convolutions in a layout of its own and
adds, rectifies and convolves there at once; the three layers made it leave that layout after every block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from imae.layers.activation.power import Power
from imae.layers.common.inner_product import InnerProduct
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

# Of the top. The products grow with the square of the channels, what they save only with their number.
MAX_CHANNELS = 1024


@dataclass(frozen=True)
class _Part:
    """A blob that holds every `stride`-th pixel of `source`, or zeros in their places."""

    source: str
    version: int  # how often the source had been written
    stride: tuple[int, int] = (1, 1)
    zero: bool = False


def fold_shortcuts(net: Net, steps: Sequence[Step]) -> list[Step]:
    """For a TEST net: `steps` with a convolution for each Concat of a blob's pixels and as many zeros."""
    parts: dict[str, _Part] = {}
    writes: Counter[str] = Counter()
    folded, makers = [], []
    for step in steps:
        part = _part(net, step, parts, writes)
        folded.append(_convolution(net, step, parts, writes) or step)
        makers.append(part is not None)
        for top in step.tops:
            writes[top] += 1
            parts.pop(top, None)
            if part is not None:
                parts[top] = part
    read, needed = {*net.outputs, *net.loss_weights}, []
    for step, maker in zip(reversed(folded), reversed(makers), strict=True):
        if not maker or read.intersection(step.tops):
            read.difference_update(step.tops)
            read.update(step.bottoms)
            needed.append(step)
    needed.reverse()
    mark_frees(needed)
    return needed


def _part(net: Net, step: Step, parts: dict[str, _Part], writes: Counter[str]) -> _Part | None:
    """What the tops of a step are if it only picks pixels of its bottom, makes zeros, or hands a part on."""
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
    if windows.counts(sizes) != every:  # one window more, outside of the image
        return None
    return replace(part, stride=(part.stride[0] * windows.stride[0], part.stride[1] * windows.stride[1]))


def _convolution(net: Net, step: Step, parts: dict[str, _Part], writes: Counter[str]) -> Step | None:
    """The convolution for a Concat of parts of one blob, some of them zeros; None for another step."""
    if not isinstance(step.layer, Concat):
        return None
    shape, channels = net.blob_shapes[step.tops[0]], [net.blob_shapes[name][1:2] for name in step.bottoms]
    found = [parts[bottom] for bottom in step.bottoms if bottom in parts]
    if len(shape) != 4 or shape[1] != sum(c[0] for c in channels) or len(found) < len(channels):
        return None
    first = found[0]
    if {part.zero for part in found} != {False, True}:
        return None
    if any(replace(part, zero=first.zero) != first for part in found):
        return None
    if writes[first.source] != first.version or shape[1] > MAX_CHANNELS:
        return None
    one = torch.eye(channels[0][0])
    weight = torch.cat([torch.zeros_like(one) if part.zero else one for part in found])
    layer = _one_by_one(step.layer, weight.to(next(net.parameters(), one)), first.stride)
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


def fold_batch_norm(net: Net) -> list[Step]:
    """A plan for a TEST net: BatchNorm and Scale become part of the weights of the layer before them.

    That layer is a convolution or an inner product. The new weights are computed in float64 and stored in
    layers of their own; the net's parameters stay as they are.
    """
    plan = Plan(net)
    for index, step in enumerate(net.steps):
        source = step.layer
        if not isinstance(source, Convolution | InnerProduct) or len(step.tops) != 1:
            continue
        if _channel_axis(source, len(net.blob_shapes[step.bottoms[0]])) != 1:
            continue
        members, layers, at = [index], [], plan.only_reader(index)
        while at is not None and _is_affine(net.steps[at].layer):
            members.append(at)
            layers.append(net.steps[at].layer)
            at = plan.only_reader(at)
        if layers:
            folded = _folded(source, layers)
            plan.fuse(members, folded, folded)
    return plan.steps()


def _folded(source: Layer, affine: Sequence[Layer]) -> Layer:
    weight = source.blob(0).detach().double()
    transposed = isinstance(source, InnerProduct) and source.param.inner_product_param.transpose
    channels = weight.shape[1] if transposed else weight.shape[0]
    factor = weight.new_ones(channels)
    offset = source.blob(1).detach().double() if len(source.blobs) > 1 else weight.new_zeros(channels)
    for layer in affine:
        if isinstance(layer, BatchNorm):
            mean, variance = (t.detach().double() for t in layer.statistics())
            times, plus = (variance + layer.eps).rsqrt(), -mean * (variance + layer.eps).rsqrt()
        else:
            times = layer.blob(0).detach().double()
            plus = layer.blob(1).detach().double() if len(layer.blobs) > 1 else torch.zeros_like(times)
        factor, offset = factor * times, offset * times + plus
    shape = [1] * weight.ndim
    shape[1 if transposed else 0] = channels
    param = LayerParameter()
    param.CopyFrom(source.param)
    kind = param.convolution_param if isinstance(source, Convolution) else param.inner_product_param
    kind.bias_term = True
    folded: Layer = type(source)(param)
    dtype = source.blob(0).dtype
    for values in (weight * factor.view(shape), offset):
        folded.blobs.append(nn.Parameter(values.to(dtype), requires_grad=False))
        folded.blob_shapes.append(tuple(values.shape))
    return folded


def _channel_axis(layer: Convolution | InnerProduct, num_axes: int) -> int:
    """The axis of the top that the outputs stand on."""
    param = layer.param
    kind = param.convolution_param if isinstance(layer, Convolution) else param.inner_product_param
    return layer.canonical_axis(kind.axis, num_axes)


def _is_affine(layer: Layer) -> bool:
    """A BatchNorm by its own statistics, not the batch's, or a Scale of channels."""
    return layer.use_global_stats if isinstance(layer, BatchNorm) else scales_channels(layer)
