"""Passes from a net's plan to a faster plan with the same blobs at its ends.

A blob that only the fused layers pass among themselves is no longer to be had; all others keep name and
value.
Layers are joined by the blobs that they pass on, never by their place in the list. The plain plan stays the
truth: tests compare every pass with it.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imae.layers.activation.relu import ReLU
from imae.layers.activation.scale import Scale
from imae.layers.common.inner_product import InnerProduct
from imae.layers.layer import Layer
from imae.layers.normalization.batch_norm import BatchNorm
from imae.layers.utility.eltwise import Eltwise
from imae.layers.utility.split import Split
from imae.layers.vision.conv import Convolution
from imae.net.kernels.conv import (
    Convolve,
    SubsampledConvolution,
    gains,
    subsamples_few_channels,
)
from imae.net.kernels.norm import added_within
from imae.net.net import Net
from imae.net.running_statistics import RunningStatistics, sole_owners
from imae.net.step import Step, mark_frees
from imae.prototxt import LayerParameter


def fuse_training(net: Net, keep: Collection[str] = ()) -> list[Step]:
    """BatchNorm + Scale (+ sum) (+ ReLU) as one step, their running statistics renewed together, other sums
    and ReLUs within the memory of a bottom where nobody needs that, splits that hand their bottom on as it
    is, convolutions whose weights' gradient is a kernel's of ours where it is faster.

    keep   names of blobs that somebody wants to have after a pass
    """
    plan, joinable = _Plan(net), _Joinable(net, keep)
    fused: list[tuple[int, FusedBatchNormScale]] = []
    for index, step in enumerate(net.steps):
        norm = step.layer
        if not isinstance(norm, BatchNorm) or plan.gone(index):
            continue
        members = _joined_with(net, plan, index)
        while len(members) > 1 and not joinable.may_join(members):
            members.pop()
        if len(members) == 1:
            continue
        scale, *later = (net.steps[member].layer for member in members[1:])
        assert isinstance(scale, Scale)
        run = FusedBatchNormScale(
            norm,
            scale,
            relu=any(isinstance(layer, ReLU) for layer in later),
            adds=any(isinstance(layer, Eltwise) for layer in later),
        )
        plan.join(members, run)
        fused.append((members[-1], run))
    _renew_together(net, [run for _, run in sorted(fused, key=lambda placed: placed[0])])
    for index, step in enumerate(net.steps):
        if plan.gone(index):
            continue
        if isinstance(step.layer, Convolution):
            shape = net.blob_shapes[step.bottoms[0]]
            if gains(step.layer, shape):
                plan.replace(index, Convolve(step.layer))
            elif subsamples_few_channels(step.layer, shape):
                plan.replace(index, SubsampledConvolution(step.layer))
        elif isinstance(step.layer, Split):
            plan.replace(index, partial(_handed_on, len(step.tops)))
        elif (
            isinstance(step.layer, Eltwise)
            and (place := _spare_bottom(net, plan, joinable, index, keep)) is not None
        ):
            plan.replace(index, partial(_sum_within, place))
        elif _is_plain_relu(step):
            source = plan.only_writer(index)
            if (
                source is not None
                and isinstance(net.steps[source].layer, Eltwise | Convolution | InnerProduct)
                and _makes_new_memory(net.steps[source].layer)
                and (
                    step.tops == step.bottoms
                    or not (step.bottoms[0] in keep or joinable.read_earlier(step.bottoms[0], index))
                )
            ):
                plan.replace(index, F.relu_)
    return plan.steps()


def _joined_with(net: Net, plan: _Plan, index: int) -> list[int]:
    """BatchNorm `index`, and the Scale, the sum with one other blob and the ReLU that follow, if they do."""
    members = [index]
    at = plan.only_reader(index)
    if at is None or not _scales_channels(net.steps[at].layer):
        return members
    members.append(at)
    at = plan.only_reader(at, bottoms=2)
    if at is not None and len(net.steps[at].bottoms) == 2 and _is_plain_sum(net.steps[at]):
        members.append(at)
        at = plan.only_reader(at)
    if at is not None and _is_plain_relu(net.steps[at]):
        members.append(at)
    return members


class FusedBatchNormScale:
    """BatchNorm, then Scale, perhaps a sum with another blob, perhaps ReLU, by one kernel forward and one
    backward.

    adds       whether there is a second bottom, to be added
    together   renews the running statistics of several such, this one being number `place` of them
    """

    def __init__(self, norm: BatchNorm, scale: Scale, relu: bool, adds: bool = False) -> None:
        self.norm, self.scale, self.relu, self.adds = norm, scale, relu, adds
        self.together: RunningStatistics | None = None
        self.place = 0

    def __call__(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        weight, bias = self.scale.blob(0), self.scale.blob(1) if len(self.scale.blobs) > 1 else None
        if self.together is None:
            return self.norm.normalize(x, weight, bias, self.relu, shortcut)
        return self.together.normalize(self.place, x, weight, bias, self.relu, shortcut)


def _renew_together(net: Net, fused: list[FusedBatchNormScale]) -> None:
    """Let fused layers whose statistics nobody else uses renew them at once; they run in this order."""
    owners = set(map(id, sole_owners((step.layer for step in net.steps), (run.norm for run in fused))))
    fused = [run for run in fused if id(run.norm) in owners]
    together = RunningStatistics([run.norm for run in fused])
    for place, run in enumerate(fused):
        run.together, run.place = together, place


def _spare_bottom(
    net: Net, plan: _Plan, joinable: _Joinable, index: int, keep: Collection[str]
) -> int | None:
    """Which of a plain sum's first two bottoms it may overwrite: one of its own, in memory of its own."""
    step = net.steps[index]
    if not _is_plain_sum(step):
        return None
    for place, name in enumerate(step.bottoms[:2]):
        writer = plan.only_writer(index, place)
        if writer is None or name in keep or name in net.loss_weights or joinable.read_earlier(name, index):
            continue
        joined = plan.joined(writer)
        if isinstance(joined, FusedBatchNormScale):
            if not joined.relu:  # whose backward pass reads what it gave
                return place
        elif joined is None and isinstance(net.steps[writer].layer, Convolution | InnerProduct):
            return place
    return None


def _is_plain_sum(step: Step) -> bool:
    """A sum of different blobs, each times 1."""
    layer = step.layer
    return (
        isinstance(layer, Eltwise)
        and layer.operation == layer.param.eltwise_param.SUM
        and all(coeff == 1 for coeff in layer.coeffs)
        and len(set(step.bottoms)) == len(step.bottoms)
    )


def _sum_within(place: int, *bottoms: Tensor) -> Tensor:
    """The sum of the bottoms in the memory of one of the first two, if it has the sum's type."""
    top = added_within(bottoms[place], bottoms[1 - place])
    for bottom in bottoms[2:]:
        top = top + bottom
    return top


def _handed_on(count: int, x: Tensor) -> tuple[Tensor, ...]:
    """The tops of a split. Without views between, autograd can add their gradients up in place."""
    return (x,) * count


def fold_batch_norm(net: Net) -> list[Step]:
    """For a TEST net: BatchNorm and Scale put into the weights of the convolution or inner product before
    them.

    The weights are computed in float64 and stored in layers of their own; the net's parameters stay as they
    are.
    """
    plan = _Plan(net)
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
            plan.join(members, folded, folded)
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


class _Joinable:
    """Which steps may run as one, in the place of the last: nobody misses what they pass among themselves."""

    def __init__(self, net: Net, keep: Collection[str]) -> None:
        self._net, self._steps, self._keep = net, net.steps, keep
        # By memory of a blob, the first step whose backward pass reads what later layers leave there.
        self._read_from: dict[str, int] = {}
        for index, step in enumerate(net.steps):
            if step.overwritten:
                self._read_from.setdefault(net.memory_of(step.tops[0]), index)
        self._users: defaultdict[int, list[int]] = defaultdict(list)  # the steps that use a blob, by its id
        for index, step in enumerate(net.steps):
            for blob in step.layer.blobs:
                self._users[id(blob)].append(index)

    def read_earlier(self, name: str, index: int) -> bool:
        """Whether a step before `index` reads, in its backward pass, what is left in this blob's memory."""
        return self._read_from.get(self._net.memory_of(name), index) < index

    def may_join(self, members: Sequence[int]) -> bool:
        first, last = members[0], members[-1]
        for member, following in pairwise(members):
            name = self._steps[member].tops[0]
            if name == self._steps[following].tops[0]:
                continue  # in the end the same blob holds the same value
            if name in self._keep or self.read_earlier(name, member):
                return False
        # Who shares their statistics, and runs between, would find them renewed too late.
        users = (self._users[id(blob)] for blob in self._steps[first].layer.blobs)
        return all(bisect_right(places, first) == bisect_left(places, last) for places in users)


@dataclass
class _Joined:
    members: list[int]
    run: FusedBatchNormScale | Layer
    layer: Layer


class _Plan:
    """The steps of a net while passes join some of them."""

    def __init__(self, net: Net) -> None:
        self._net = net
        self._steps = list(net.steps)
        self._joined: dict[int, _Joined] = {}
        self._gone: set[int] = set()
        self._readers: defaultdict[str, list[int]] = defaultdict(list)
        self._writers: defaultdict[str, list[int]] = defaultdict(list)
        for index, step in enumerate(self._steps):
            for users, names in ((self._readers, step.bottoms), (self._writers, step.tops)):
                for name in dict.fromkeys(names):
                    users[name].append(index)

    def gone(self, index: int) -> bool:
        return index in self._gone

    def only_reader(self, index: int, bottoms: int = 1) -> int | None:
        """The step that alone reads the only top of step `index`, and cuts no gradient.

        bottoms   how many it may have, that top included
        """
        step = self._steps[index]
        if len(step.tops) != 1 or step.tops[0] in self._net.loss_weights:
            return None
        readers = self._readers[step.tops[0]]
        following = bisect_right(readers, index)
        if following == len(readers):
            return None
        later = readers[following]  # splits see to it that every value has one reader
        reader = self._steps[later]
        alone = len(reader.bottoms) <= bottoms and len(reader.tops) == 1 and not any(reader.detach)
        return later if alone and not self.gone(later) else None

    def joined(self, index: int) -> FusedBatchNormScale | Layer | None:
        """What stands for step `index` and others; it must be the last of them."""
        joined = self._joined.get(index)
        return None if joined is None else joined.run

    def only_writer(self, index: int, place: int = 0) -> int | None:
        """The step whose only top is bottom `place` of step `index`."""
        writers = self._writers[self._steps[index].bottoms[place]]
        before = bisect_left(writers, index)
        if not before:
            return None
        earlier = writers[before - 1]
        return earlier if len(self._steps[earlier].tops) == 1 else None

    def join(self, members: list[int], run: FusedBatchNormScale | Layer, layer: Layer | None = None) -> None:
        """Let one step stand, in the place of the last, for all `members`."""
        self._joined[members[-1]] = _Joined(members, run, layer or self._steps[members[0]].layer)
        self._gone.update(members)

    def replace(self, index: int, run: object) -> None:
        step = copy.copy(self._steps[index])
        step.run = run  # type: ignore[assignment]  # mypy takes a callable in a dataclass field for a method
        self._steps[index] = step

    def steps(self) -> list[Step]:
        result = []
        for index, step in enumerate(self._steps):
            if index in self._joined:
                joined = self._joined[index]
                bottoms, detach = self._outer_bottoms(joined.members)
                members = tuple(self._steps[member] for member in joined.members)
                shapes = [self._net.blob_shapes[name] for name in bottoms]
                result.append(
                    Step(
                        joined.layer,
                        joined.run,
                        bottoms,
                        step.tops,
                        detach=detach,
                        members=members,
                        shapes=shapes,
                    )
                )
            elif index not in self._gone:
                result.append(copy.copy(step))
        mark_frees(result)
        return result

    def _outer_bottoms(self, members: list[int]) -> tuple[tuple[str, ...], tuple[bool, ...]]:
        """The bottoms of joined steps that none of them makes, and whether their gradients are cut."""
        first, *later = (self._steps[member] for member in members)
        made, others = first.tops, list[str]()
        for step in later:
            others.extend(bottom for bottom in step.bottoms if bottom not in made)
            made = step.tops
        cut = (*first.detach, *(False for _ in others)) if first.detach else ()
        return (*first.bottoms, *others), cut


def _scales_channels(layer: Layer) -> bool:
    """A Scale with a learned factor per channel (axis 1)."""
    return (
        isinstance(layer, Scale)
        and layer.axis == 1
        and bool(layer.blob_shapes)
        and len(layer.blob_shapes[0]) == 1
    )


def _channel_axis(layer: Convolution | InnerProduct, num_axes: int) -> int:
    """The axis of the top that the outputs stand on."""
    param = layer.param
    kind = param.convolution_param if isinstance(layer, Convolution) else param.inner_product_param
    return layer.canonical_axis(kind.axis, num_axes)


def _is_affine(layer: Layer) -> bool:
    """A BatchNorm by its own statistics, not the batch's, or a Scale of channels."""
    return layer.use_global_stats if isinstance(layer, BatchNorm) else _scales_channels(layer)


def _is_plain_relu(step: Step) -> bool:
    """A ReLU whose gradient is that of its top: no slope, and no later in-place layer (see Memory)."""
    return isinstance(step.layer, ReLU) and step.layer.negative_slope == 0 and not step.overwritten


def _makes_new_memory(layer: Layer) -> bool:
    """Whether the layer's top is neither a view of a bottom nor needed again by its own backward pass."""
    return not isinstance(layer, Eltwise) or layer.operation == layer.param.eltwise_param.SUM
