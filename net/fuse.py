"""A faster plan for training, with the same blobs at its ends.

A blob that only fused layers pass to each other is not available; all others keep their names and values.
Layers are fused by the blobs that they pass on, never by their place in the list. The plain plan stays the
reference: tests compare this one with it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from imae.layers.activation.relu import ReLU
from imae.layers.activation.scale import Scale
from imae.layers.common.inner_product import InnerProduct
from imae.layers.layer import Layer
from imae.layers.normalization.batch_norm import BatchNorm
from imae.layers.normalization.lrn import LRN
from imae.layers.utility.eltwise import Eltwise
from imae.layers.utility.split import Split
from imae.layers.vision.conv import Convolution
from imae.net.kernels import (
    FastConvolution,
    FastLRN,
    GroupedConvolution,
    NormCall,
    SingleProducts,
    SubsampledConvolution,
    add_in_place,
    normalize_by_batch,
    normalize_by_statistics,
    normalize_compiled,
)
from imae.net.net import Net
from imae.net.plan import Plan, scales_channels
from imae.net.running_statistics import RunningStatistics, sole_owners
from imae.net.step import Step


def fuse_training(
    net: Net, keep: Collection[str] = (), compiled: bool = False, single_products: bool = False
) -> list[Step]:
    """A plan for training on which

    - BatchNorm + Scale (+ sum) (+ ReLU) are one step, and update their running statistics together;
    - other BatchNorms, LRNs and, where they are faster, convolutions use the kernels of net/kernels;
    - other sums and ReLUs are in-place where no other step needs the bottom;
    - splits return their bottom unchanged.

    keep              names of further blobs that are needed after a pass
    compiled          let torch.compile make the kernels of the fused steps that use the batch's statistics
    single_products   let kernels for single precision compute convolutions and inner products of bfloat16
    """
    plan, fusable = Plan(net), _Fusable(net, keep)
    fused: list[tuple[int, FusedBatchNormScale]] = []
    for index, step in enumerate(net.steps):
        norm = step.layer
        if not isinstance(norm, BatchNorm) or plan.is_fused(index):
            continue
        members = _members_from(net, plan, index)
        while len(members) > 1 and not fusable.can_fuse(members):
            members.pop()
        if len(members) == 1:
            continue
        scale, *later = (net.steps[member].layer for member in members[1:])
        assert isinstance(scale, Scale)
        run = FusedBatchNormScale(
            norm,
            scale,
            relu=any(isinstance(layer, ReLU) for layer in later),
            has_shortcut=any(isinstance(layer, Eltwise) for layer in later),
            by_batch=normalize_compiled if compiled else normalize_by_batch,
        )
        plan.fuse(members, run)
        fused.append((members[-1], run))
    _update_together(net, [run for _, run in sorted(fused, key=lambda placed: placed[0])])
    for index, step in enumerate(net.steps):
        if plan.is_fused(index):
            continue
        if isinstance(step.layer, BatchNorm):
            plan.replace(index, FastBatchNorm(step.layer))
        elif isinstance(step.layer, Convolution):
            shape = net.blob_shapes[step.bottoms[0]]
            if SubsampledConvolution.is_needed(step.layer, shape):
                plan.replace(index, SubsampledConvolution(step.layer))
            elif FastConvolution.is_faster(step.layer, shape):
                plan.replace(index, FastConvolution(step.layer))
            elif GroupedConvolution.is_faster(step.layer, shape):
                plan.replace(index, GroupedConvolution(step.layer))
        elif isinstance(step.layer, LRN):
            if FastLRN.is_faster(step.layer) and not step.overwritten:
                plan.replace(index, FastLRN(step.layer))
        elif isinstance(step.layer, Split):
            plan.replace(index, partial(_split_tops, len(step.tops)))
        elif (
            isinstance(step.layer, Eltwise)
            and (place := _spare_bottom(net, plan, fusable, index, keep)) is not None
        ):
            plan.replace(index, partial(_sum_in_place, place))
        elif _is_plain_relu(step):
            source = plan.only_writer(index)
            if (
                source is not None
                and isinstance(net.steps[source].layer, Eltwise | Convolution | InnerProduct)
                and _makes_new_memory(net.steps[source].layer)
                and (
                    step.tops == step.bottoms
                    or not (step.bottoms[0] in keep or fusable.read_earlier(step.bottoms[0], index))
                )
            ):
                plan.replace(index, F.relu_)
    for index, step in enumerate(net.steps if single_products else ()):
        if SingleProducts.supports(step.layer):
            plan.replace(index, SingleProducts(step.layer, plan.run(index)))
    return plan.steps()


def fast_batch_norms(net: Net) -> list[Step]:
    """The plain plan with the kernels of net/kernels for its BatchNorms: every blob of the net exists."""
    plan = Plan(net)
    for index, step in enumerate(net.steps):
        if isinstance(step.layer, BatchNorm):
            plan.replace(index, FastBatchNorm(step.layer))
    return plan.steps()


def _members_from(net: Net, plan: Plan, index: int) -> list[int]:
    """BatchNorm `index`, and the Scale, the sum with one other blob and the ReLU that follow it, if any."""
    members = [index]
    reader = plan.only_reader(index)
    if reader is None or not scales_channels(net.steps[reader].layer):
        return members
    members.append(reader)
    reader = plan.only_reader(reader, bottoms=2)
    if reader is not None and len(net.steps[reader].bottoms) == 2 and _is_plain_sum(net.steps[reader]):
        members.append(reader)
        reader = plan.only_reader(reader)
    if reader is not None and _is_plain_relu(net.steps[reader]):
        members.append(reader)
    return members


Normalize = Callable[[NormCall, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class FastBatchNorm:
    """A BatchNorm by the kernels of net/kernels.

    by_batch             the kernel where the batch's own statistics are used
    running_statistics   updates the blobs of several BatchNorms together, `norm` being number `place`; None:
                         `norm` updates its own
    """

    def __init__(self, norm: BatchNorm, by_batch: Normalize = normalize_by_batch) -> None:
        self.norm, self.by_batch = norm, by_batch
        self.running_statistics: RunningStatistics | None = None
        self.place = 0

    def __call__(self, x: Tensor) -> Tensor:
        return self._normalize(NormCall(x, eps=self.norm.eps)) if x.dim() > 1 else self.norm.forward(x)

    def _normalize(self, call: NormCall) -> Tensor:
        norm = self.norm
        if norm.use_global_stats:
            return normalize_by_statistics(call, *norm.statistics())
        if self.running_statistics is not None:
            top, mean, variance = self.by_batch(call, *self.running_statistics.zeros(self.place))
            self.running_statistics.add(self.place, mean, variance)
        else:
            zeros = torch.zeros_like(norm.blob(0)), torch.zeros_like(norm.blob(1))
            top, mean, variance = self.by_batch(call, *zeros)
            norm.update(mean, variance)
        return top


class FusedBatchNormScale(FastBatchNorm):
    """BatchNorm, Scale, optionally a sum with another blob, optionally ReLU, as one kernel in each direction.

    has_shortcut   whether there is a second bottom, which is added
    """

    def __init__(
        self,
        norm: BatchNorm,
        scale: Scale,
        relu: bool,
        has_shortcut: bool = False,
        by_batch: Normalize = normalize_by_batch,
    ) -> None:
        super().__init__(norm, by_batch)
        self.scale, self.relu, self.has_shortcut = scale, relu, has_shortcut

    def __call__(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        weight, bias = self.scale.blob(0), self.scale.blob(1) if len(self.scale.blobs) > 1 else None
        return self._normalize(NormCall(x, weight, bias, self.norm.eps, self.relu, shortcut))


def _update_together(net: Net, fused: list[FusedBatchNormScale]) -> None:
    """Let the fused steps, in the order of a pass, update together those blobs that no other layer uses."""
    owners = set(map(id, sole_owners((step.layer for step in net.steps), (run.norm for run in fused))))
    fused = [run for run in fused if id(run.norm) in owners]
    running_statistics = RunningStatistics([run.norm for run in fused])
    for place, run in enumerate(fused):
        run.running_statistics, run.place = running_statistics, place


def _spare_bottom(net: Net, plan: Plan, fusable: _Fusable, index: int, keep: Collection[str]) -> int | None:
    """Which of a plain sum's first two bottoms it may overwrite: one that no other step reads; or None."""
    step = net.steps[index]
    if not _is_plain_sum(step):
        return None
    for place, name in enumerate(step.bottoms[:2]):
        writer = plan.only_writer(index, place)
        if writer is None or name in keep or name in net.loss_weights or fusable.read_earlier(name, index):
            continue
        fused = plan.fused(writer)
        if isinstance(fused, FusedBatchNormScale):
            if not fused.relu:  # a ReLU's backward pass reads its top
                return place
        elif fused is None and isinstance(net.steps[writer].layer, Convolution | InnerProduct):
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


def _sum_in_place(place: int, *bottoms: Tensor) -> Tensor:
    """The sum of the bottoms in the memory of one of the first two, if it has the sum's type."""
    top = add_in_place(bottoms[place], bottoms[1 - place])
    for bottom in bottoms[2:]:
        top = top + bottom
    return top


def _split_tops(count: int, x: Tensor) -> tuple[Tensor, ...]:
    """The tops of a split. They are not views, so autograd can add up their gradients in-place."""
    return (x,) * count


class _Fusable:
    """Which steps may be fused, in the place of the last: no other step reads the blobs between them."""

    def __init__(self, net: Net, keep: Collection[str]) -> None:
        self._net, self._steps, self._keep = net, net.steps, keep
        # By memory: the first step whose backward pass reads what later layers write there.
        self._read_from: dict[str, int] = {}
        for index, step in enumerate(net.steps):
            if step.overwritten:
                self._read_from.setdefault(net.memory_of(step.tops[0]), index)
        self._users: defaultdict[int, list[int]] = defaultdict(list)  # the steps that use a blob, by its id
        for index, step in enumerate(net.steps):
            for blob in step.layer.blobs:
                self._users[id(blob)].append(index)

    def read_earlier(self, name: str, index: int) -> bool:
        """Whether the backward pass of a step before `index` reads what later steps write to this memory."""
        return self._read_from.get(self._net.memory_of(name), index) < index

    def can_fuse(self, members: Sequence[int]) -> bool:
        first, last = members[0], members[-1]
        for member, following in pairwise(members):
            name = self._steps[member].tops[0]
            if name == self._steps[following].tops[0]:
                continue  # the fused step leaves the same value in this blob
            if name in self._keep or self.read_earlier(name, member):
                return False
        # A step between them that shares their statistics would read them before they are updated.
        users = (self._users[id(blob)] for blob in self._steps[first].layer.blobs)
        return all(bisect_right(places, first) == bisect_left(places, last) for places in users)


def _is_plain_relu(step: Step) -> bool:
    """A ReLU whose gradient is that of its top: no slope, and no later in-place layer (see Memory)."""
    return isinstance(step.layer, ReLU) and step.layer.negative_slope == 0 and not step.overwritten


def _makes_new_memory(layer: Layer) -> bool:
    """Whether the layer's top is neither a view of a bottom nor needed again by its own backward pass."""
    return not isinstance(layer, Eltwise) or layer.operation == layer.param.eltwise_param.SUM
