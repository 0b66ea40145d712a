"""The steps of a TEST net as nodes over values, each of which is written once; some of them fused.

A blob's name stands for one value after the other where layers work in-place. Here each of them has its own
number. So the only reader of a value is known, whatever the blobs are called, and splits and idle dropouts
are nothing but another name.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard, TypeVar

from imae.layers.activation.prelu import PReLU
from imae.layers.activation.relu import ReLU
from imae.layers.activation.scale import Scale
from imae.layers.common.inner_product import InnerProduct
from imae.layers.forks.bn_caffemex import CaffeMexBN
from imae.layers.forks.bn_segnet import SegNetBN
from imae.layers.forks.bn_tsn import TSNBN
from imae.layers.forks.detection_output import DetectionOutput
from imae.layers.forks.prior_box import PriorBox
from imae.layers.forks.shuffle_channel import ShuffleChannel
from imae.layers.layer import Layer
from imae.layers.normalization.batch_norm import BatchNorm
from imae.layers.normalization.lrn import LRN
from imae.layers.utility.concat import Concat
from imae.layers.utility.eltwise import Eltwise
from imae.layers.utility.split import Split
from imae.layers.vision.conv import Convolution
from imae.layers.vision.pooling import Pooling
from imae.net.fold import fold_shortcuts, is_affine
from imae.net.inference_operations import (
    AffineOperation,
    AverageOrMaximum,
    Concatenation,
    ConvolutionOperation,
    Detection,
    Neighbourhood,
    Operation,
    Priors,
    ProductOperation,
    ReLUOperation,
    Shuffle,
    SumOperation,
)
from imae.net.net import Net
from imae.net.step import Step

_Kind = TypeVar("_Kind", bound=Layer)


@dataclass(eq=False)
class PlainStep:
    """A step, with the numbers of the values that it reads and writes, and its place in the net."""

    step: Step
    bottoms: list[int]
    tops: list[int]
    order: int = 0


@dataclass(eq=False)
class Node:
    """One step or several fused ones, in the place of the last.

    operation   computes it faster; None: the layer does
    members     the steps, in order
    """

    bottoms: list[int]
    tops: list[int]
    members: list[PlainStep]
    operation: Operation | None = None

    @property
    def order(self) -> int:
        """The place among the nodes: that of the last member."""
        return self.members[-1].order


@dataclass
class Graph:
    """The nodes in the order of a pass.

    sources   steps that have no bottom, with the values that they write
    steps     all other steps of the net that write or read values
    ends      the value that each blob which a pass returns has at its end
    count     how many values there are
    """

    sources: list[PlainStep] = field(default_factory=list)
    steps: list[PlainStep] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)
    count: int = 0


def make_graph(net: Net, keep: Collection[str]) -> Graph:
    """The net's steps, fused where no value between them is needed."""
    graph = Graph()
    current: dict[str, int] = {}

    def write(step: Step) -> list[int]:
        numbers = list(range(graph.count, graph.count + len(step.tops)))
        graph.count += len(step.tops)
        current.update(zip(step.tops, numbers, strict=True))
        return numbers

    copies = [copy.copy(step) for step in net.steps]  # which are changed: see mark_frees
    for order, step in enumerate(fold_shortcuts(net, copies, tuple(keep), any_size=True)):
        bottoms = [current[name] for name in step.bottoms]
        if _passes_on(step):
            current.update(dict.fromkeys(step.tops, bottoms[0]))
            continue
        plain = PlainStep(step, bottoms, write(step), order)
        if not step.bottoms and step.tops:
            graph.sources.append(plain)
            continue
        graph.steps.append(plain)
        graph.nodes.extend(_nodes(plain))
    _leave_changing_weights(graph.nodes)
    kept = dict.fromkeys((*net.outputs, *net.loss_weights, *keep))
    graph.ends = {name: current[name] for name in kept if name in current}
    _Fusion(graph).fuse()
    return graph


def _passes_on(step: Step) -> bool:
    """Whether the tops are the bottom itself."""
    if isinstance(step.layer, Split):
        return True
    return step.layer.idle_in_test and len(step.bottoms) == len(step.tops) == 1


def _nodes(plain: PlainStep) -> list[Node]:
    """The node of a step; of a convolution of several bottoms, one for each."""
    layer, ends = plain.step.layer, (plain.bottoms, plain.tops)
    if _computes_as(layer, Convolution) and len(plain.tops) == len(plain.bottoms) > 1:
        return [
            Node(
                [bottom],
                [top],
                [PlainStep(_of_one(plain.step, index), [bottom], [top], plain.order)],
                ConvolutionOperation(layer),
            )
            for index, (bottom, top) in enumerate(zip(*ends, strict=True))
        ]
    return [Node(*ends, [plain], _operation(plain.step))]


def _of_one(step: Step, index: int) -> Step:
    """A convolution's step for one of its bottoms alone."""
    return Step(step.layer, step.run, (step.bottoms[index],), (step.tops[index],))


def _operation(step: Step) -> Operation | None:
    """What computes a step of these types faster than its layer, if anything does."""
    layer = step.layer
    if len(step.tops) != 1:
        return None
    if _computes_as(layer, Convolution):
        return ConvolutionOperation(layer)
    if _computes_as(layer, InnerProduct) and not layer.normalize:
        return ProductOperation(layer)
    if _is_affine(layer) and len(step.bottoms) == 1:
        return AffineOperation([layer])
    if _computes_as(layer, Eltwise) and layer.operation == layer.param.eltwise_param.SUM:
        return SumOperation(layer)
    if _computes_as(layer, ReLU) or _computes_as(layer, PReLU):
        return ReLUOperation(layer)
    if _computes_as(layer, Pooling) and layer.method in ("MAX", "AVE"):
        return AverageOrMaximum(layer)
    if _computes_as(layer, Concat):
        return Concatenation(layer)
    if _computes_as(layer, DetectionOutput):
        return Detection(layer)
    if _computes_as(layer, PriorBox):
        return Priors(layer)
    if _computes_as(layer, ShuffleChannel):
        return Shuffle(layer)
    if _computes_as(layer, LRN) and not layer.within_channel:
        return Neighbourhood(layer)
    return None


def _leave_changing_weights(nodes: Sequence[Node]) -> None:
    """Leave blobs to their layers that other layers use as well, which may change them in a pass."""
    used = {id(blob) for node in nodes if node.operation is None for blob in _layer(node).blobs}
    for node in nodes:
        if used and node.operation is not None and not used.isdisjoint(map(id, _layer(node).blobs)):
            node.operation = None


def _layer(node: Node) -> Layer:
    return node.members[0].step.layer


def _is_affine(layer: Layer) -> bool:
    """Whether `is_affine` holds, and the layer's forward pass is that of its type."""
    return is_affine(layer) and any(
        _computes_as(layer, kind) for kind in (BatchNorm, Scale, TSNBN, SegNetBN, CaffeMexBN)
    )


def _computes_as(layer: Layer, kind: type[_Kind]) -> TypeGuard[_Kind]:
    """Whether the layer is of this type, or of one that only sets it up in another way."""
    return isinstance(layer, kind) and getattr(layer.forward, "__func__", None) is kind.forward


class _Fusion:
    """Fuses the nodes of a graph. A node that is fused into an earlier one takes its place in the order."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._reads = Counter(graph.ends.values())
        self._reader: dict[int, Node] = {}
        self._writer: dict[int, Node] = {}
        for node in graph.nodes:
            for bottom in node.bottoms:
                self._reads[bottom] += 1
                self._reader[bottom] = node
            for top in node.tops:
                self._writer[top] = node

    def fuse(self) -> None:
        """BatchNorm and Scale into what comes before them, then sums, then ReLUs."""
        for fuse in (self._fuse_affine, self._fuse_sum, self._fuse_relu):
            for node in list(self._graph.nodes):
                if node.members:  # not yet a part of another one
                    fuse(node)
        # The sort is stable: the nodes of one step stay in their order.
        self._graph.nodes = sorted((n for n in self._graph.nodes if n.members), key=lambda n: n.order)

    def _only_reader(self, node: Node) -> Node | None:
        """The one node that reads the node's top, which is not needed elsewhere."""
        (top,) = node.tops
        return self._reader[top] if self._reads[top] == 1 and top in self._reader else None

    def _fuse_affine(self, node: Node) -> None:
        operation = node.operation
        if not isinstance(operation, ConvolutionOperation | ProductOperation | AffineOperation):
            return
        while (reader := self._only_reader(node)) is not None:
            if not isinstance(reader.operation, AffineOperation):
                return
            if not operation.append_affine(reader.operation.layers):
                return
            self._merge(node, reader)

    def _fuse_sum(self, node: Node) -> None:
        """A sum of two blobs into the last convolution before it whose top is one of them."""
        if (
            not (isinstance(node.operation, SumOperation) and node.operation.is_plain)
            or len(node.bottoms) != 2
        ):
            return
        # Values are numbered in the order of their writers.
        for place in sorted((0, 1), key=lambda place: node.bottoms[place], reverse=True):
            source = self._writer.get(node.bottoms[place])
            if source is None or not isinstance(source.operation, ConvolutionOperation):
                continue
            if self._only_reader(source) is node and not source.operation.adds:
                source.operation.adds = True
                source.bottoms = [*source.bottoms, node.bottoms[1 - place]]
                self._reader[node.bottoms[1 - place]] = source
                self._merge(source, node)
                return

    def _fuse_relu(self, node: Node) -> None:
        operation = node.operation
        if operation is None or not operation.supports_relu:
            return
        reader = self._only_reader(node)
        if reader is None or not isinstance(reader.operation, ReLUOperation):
            return
        if reader.operation.is_plain:
            operation.relu = True
        elif isinstance(operation, ConvolutionOperation):
            operation.rectifier = reader.operation.layer
        else:
            return
        self._merge(node, reader)

    def _merge(self, first: Node, second: Node) -> None:
        """`second`, which alone reads the top of `first`, becomes a part of it, in the place of `second`."""
        first.members = [*first.members, *second.members]
        first.tops = second.tops
        self._writer[first.tops[0]] = first
        second.members = []


def layers_of(nodes: Sequence[Node]) -> list[Layer]:
    """The layers whose parameters are folded or packed when a pass is planned."""
    return [m.step.layer for node in nodes if node.operation is not None for m in node.members]
