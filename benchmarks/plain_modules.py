"""A net's message as modules of plain PyTorch, as a user of PyTorch writes them, to compare imae with.

`PlainNet(net)` has the layers of an imae Net and copies of its weights: one module for each layer, BatchNorm
with its Scale one BatchNorm2d, ReLU in place where the layer is, losses by torch's own functions. In TRAIN a
pass returns the sum of the losses; in TEST the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imae.layers.layer import Layer
from imae.net.net import Net
from imae.prototxt import TRAIN, LayerParameter, PoolingParameter


class Part(NamedTuple):
    """A module with the blobs that it reads and the one that it makes; `last` lists those not read again."""

    module: nn.Module
    bottoms: tuple[str, ...]
    top: str
    last: tuple[str, ...] = ()


class PlainNet(nn.Module):
    """The layers of `net` in torch's own modules.

    outputs   the blobs that a pass in TEST returns
    """

    def __init__(self, net: Net, outputs: Sequence[str] = ()) -> None:
        super().__init__()
        self.losses = dict(net.loss_weights) if net.phase == TRAIN else {}
        self.outputs = tuple(self.losses) or tuple(outputs)
        self.parts = _parts(net, self.outputs)
        self.modules_in_order = nn.ModuleList(part.module for part in self.parts)
        self.train(net.phase == TRAIN)

    def forward(self, **blobs: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = dict(blobs)
        for module, bottoms, top, last in self.parts:
            value = module(*[values[name] for name in bottoms])
            for name in last:
                del values[name]
            values[top] = value
        if not self.losses:
            return tuple(values[name] for name in self.outputs)
        total = torch.zeros(())
        for name, weight in self.losses.items():
            total = total + values[name] * weight
        return total


def _parts(net: Net, outputs: Sequence[str]) -> list[Part]:
    """One part for each layer; splits, and a Scale after a BatchNorm, have none."""
    layers = {layer.name: layer for layer in net.layers}
    source: dict[str, str] = {}  # the blob that a split's top is
    parts: list[Part] = []
    norms: dict[str, nn.BatchNorm2d] = {}  # by top, those that wait for their Scale
    priors: dict[str, Tensor] = {}
    for param in net.param.layer:
        bottoms = tuple(source.get(name, name) for name in param.bottom)
        if param.type in ("Input", "Given"):
            continue
        if param.type == "Split":
            source.update(dict.fromkeys(param.top, bottoms[0]))
            continue
        if param.type == "PriorBox" or all(name in priors for name in bottoms):  # constants, made once
            known = [priors.get(name, torch.empty(net.blob_shapes[name])) for name in bottoms]
            priors[param.top[0]] = layers[param.name](*known)
            continue
        if param.type == "Scale":
            norm = norms.pop(bottoms[0])
            _copy((norm.weight, norm.bias), layers[param.name].blobs)
            continue
        if param.type == "MultiBoxLoss":
            module: nn.Module = MultiBox(priors[bottoms[2]])
            bottoms = (bottoms[0], bottoms[1], bottoms[3])
        else:
            module = MODULES[param.type](param, layers[param.name])
        if isinstance(module, nn.BatchNorm2d):
            norms[param.top[0]] = module
        parts.append(Part(module, bottoms, param.top[0]))
    return _with_last(parts, outputs)


def _with_last(parts: Sequence[Part], outputs: Sequence[str]) -> list[Part]:
    """The parts that lead to an output, with `last` set."""
    needed, used = set(outputs), list[Part]()
    for part in reversed(parts):
        if part.top in needed:
            last = tuple(name for name in dict.fromkeys(part.bottoms) if name not in needed)
            used.append(part._replace(last=last))
            needed.update(part.bottoms)
    return used[::-1]


def _copy(parameters: Sequence[Tensor], blobs: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, blob in zip(parameters, blobs, strict=True):
            parameter.copy_(blob)


def _convolution(param: LayerParameter, layer: Layer) -> nn.Module:
    fields, (outputs, channels, *kernel) = param.convolution_param, layer.blob_shapes[0]
    stride, pad = (tuple(values) or (default,) for values, default in ((fields.stride, 1), (fields.pad, 0)))
    module = nn.Conv2d(
        channels * fields.group, outputs, (kernel[0], kernel[1]), stride[0], pad[0],
        groups=fields.group, bias=fields.bias_term,
    )  # fmt: skip
    _copy([*module.parameters()], layer.blobs)
    return module


def _inner_product(param: LayerParameter, layer: Layer) -> nn.Module:
    linear = nn.Linear(layer.blob_shapes[0][1], layer.blob_shapes[0][0])
    _copy([*linear.parameters()], layer.blobs)
    return nn.Sequential(nn.Flatten(), linear)


def _pooling(param: LayerParameter, layer: Layer) -> nn.Module:
    fields = param.pooling_param
    if fields.global_pooling:
        return nn.AdaptiveAvgPool2d(1)
    kind = nn.MaxPool2d if fields.pool == PoolingParameter.MAX else nn.AvgPool2d
    return kind(fields.kernel_size, fields.stride, fields.pad, ceil_mode=True)


def _lrn(param: LayerParameter, layer: Layer) -> nn.Module:
    fields = param.lrn_param
    return nn.LocalResponseNorm(fields.local_size, fields.alpha, fields.beta, fields.k)


def _batch_norm(param: LayerParameter, layer: Layer) -> nn.Module:
    module = nn.BatchNorm2d(layer.blob_shapes[0][0], eps=param.batch_norm_param.eps)
    mean, variance, count = layer.blobs
    running = [module.get_buffer(name) for name in ("running_mean", "running_var")]
    _copy(running, (mean / count, variance / count))
    return module


class Concat(nn.Module):
    """torch.cat."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *bottoms: Tensor) -> Tensor:
        return torch.cat(bottoms, self.axis)


class Sum(nn.Module):
    """The sum of two blobs, as residual nets are written."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


class Permute(nn.Module):
    """(N, C, H, W) to (N, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class CrossEntropy(nn.Module):
    """The mean cross entropy of a softmax."""

    def forward(self, scores: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(scores, label.long())


class MultiBox(nn.Module):
    """SSD's loss: match by overlap, three negatives for each match, smooth L1 and cross entropy.

    prior   (1, 2, 4 P): boxes and variances
    """

    def __init__(self, prior: Tensor, classes: int = 21) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("boxes", prior[0, 0].view(-1, 4).clone())
        self.register_buffer("variances", prior[0, 1].view(-1, 4).clone())

    def forward(self, loc: Tensor, conf: Tensor, truths: Tensor) -> Tensor:
        boxes, variances = self.get_buffer("boxes"), self.get_buffer("variances")
        loc, conf = loc.view(len(loc), -1, 4), conf.view(len(conf), -1, self.classes)
        rows = truths.view(-1, 8)
        labels = torch.zeros(conf.shape[:2], dtype=torch.long)
        targets = torch.zeros_like(loc)
        centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        for image in range(len(loc)):
            own = rows[rows[:, 0] == image]
            overlap = _overlap(own[:, 3:7], boxes)
            largest, truth = overlap.max(0)
            best = overlap.argmax(1)
            truth[best] = torch.arange(len(own))
            largest[best] = 1
            labels[image] = torch.where(largest >= 0.5, own[truth, 1].long(), 0)
            box = own[truth, 3:7]
            moved = ((box[:, :2] + box[:, 2:]) / 2 - centre) / size
            scaled = ((box[:, 2:] - box[:, :2]) / size).log()
            targets[image] = torch.cat([moved, scaled], 1) / variances
        matched = labels > 0
        with torch.no_grad():
            background = -F.log_softmax(conf, 2)[:, :, 0].masked_fill(matched, 0)
            rank = background.sort(1, descending=True)[1].sort(1)[1]
            chosen = matched | (rank < 3 * matched.sum(1, keepdim=True))
        by_class = F.cross_entropy(conf[chosen], labels[chosen], reduction="sum")
        by_place = F.smooth_l1_loss(loc[matched], targets[matched], reduction="sum")
        return (by_class + by_place) / matched.sum().clamp(min=1)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection by union of each box of `a` with each of `b`."""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1] - shared)


MODULES: dict[str, Callable[[LayerParameter, Layer], nn.Module]] = {
    "Convolution": _convolution,
    "InnerProduct": _inner_product,
    "Pooling": _pooling,
    "LRN": _lrn,
    "BatchNorm": _batch_norm,
    "ReLU": lambda param, _: nn.ReLU(inplace=param.bottom == param.top),
    "Dropout": lambda param, _: nn.Dropout(param.dropout_param.dropout_ratio),
    "Concat": lambda param, _: Concat(param.concat_param.axis),
    "Eltwise": lambda *_: Sum(),
    "Flatten": lambda *_: nn.Flatten(),
    "Permute": lambda *_: Permute(),
    "Softmax": lambda *_: nn.Softmax(1),
    "SoftmaxWithLoss": lambda *_: CrossEntropy(),
}
