"""The identity shortcut that appends channels of zeros, as one convolution.

He et al.'s shortcut A is Pooling with kernel 1 (every second pixel), Power with scale 0 (zeros) and Concat.
Each value of its top is one of its bottom's, or 0: a 1x1 convolution whose weights are 1 and 0, and exact for
finite values. ONNX Runtime keeps convolutions in a layout of its own and adds, rectifies and convolves there
in one go; the three layers made it leave that layout in every block behind them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from imae.layers.activation.power import Power
from imae.layers.utility.concat import Concat
from imae.layers.utility.split import Split
from imae.layers.vision.conv import Convolution
from imae.layers.vision.pooling import Pooling
from imae.net.net import Net
from imae.net.step import Step, mark_frees
from imae.prototxt import LayerParameter

# Of the top. The products grow with the square of the channels, what they save only with their number.
MOST_CHANNELS = 1024


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
    if writes[first.source] != first.version or shape[1] > MOST_CHANNELS:
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
