"""Models whose images may have any height and width: which nets can be such models, and what pins the others.

What is free is found out, not looked up. The shapes of all blobs are computed for many sizes of the images;
the axes that differ are free. Each layer then adds its nodes for two sizes: a node or a constant that differs
depends on the size, so its layer pins the size of the net.

Some nets run at certain sizes only, as where a map that was made smaller and larger again is added to the map
before. Their sizes go in steps: the net's own size, and multiples of the smallest step that works.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import gcd
from typing import Literal, NamedTuple

import onnx

from imae.converters.cut_net import cut_before
from imae.converters.graph import Graph
from imae.converters.preprocessing import Size, size_text
from imae.files.errors import ExportError, LayerError
from imae.layers.layer import Layer, Shape
from imae.net.net import Net
from imae.net.step import Step

Sides = Literal["both", "height", "width"]  # that are free
Shapes = dict[str, Shape]
STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 256)
# An image smaller than this counts as one of this size when other sizes are chosen.
SMALL = 32
# The sizes at which model and net are compared: the first two pairs of these multiples of the net's own
# height and width that the net allows, or else larger ones.
SCALES = ((0.6, 1.3), (1.4, 0.7), (1.2, 1.7), (1.7, 1.3), (2.3, 2.8), (2.9, 2.2))
COMPARED = 2
LARGEST_RATIO = 8  # of two inputs' sizes, for both to be images of one scene


@dataclass
class DynamicSize:
    """The free axes of a net.

    size, step  of the first image: the net's own, and the step from one possible size to the next
    free_axes   blob -> its axes that follow the size of the images, where there are any
    own, other  the shapes of all blobs, for images of the net's own and of another size
    compared    size of the first image -> shapes of all blobs, for comparisons with a model
    names       blob -> free axis -> its name in a model
    """

    size: Size
    step: int
    free_axes: dict[str, tuple[int, ...]]
    own: Shapes
    other: Shapes
    compared: dict[Size, Shapes]
    names: dict[str, dict[int, str]]

    def check(self, layer: Layer, opset: int, bottoms: Mapping[str, str], tops: Mapping[str, str]) -> None:
        """ExportError where a layer's nodes depend on the size.

        bottoms, tops   value in the graph -> the net's blob that it holds
        """
        blobs = {**bottoms, **tops}
        free_axes = {value: self.free_axes.get(blob, ()) for value, blob in blobs.items()}
        if not any(free_axes.values()):
            return
        graphs = []
        for shapes in (self.own, self.other):
            graph = Graph(opset, {value: shapes[blob] for value, blob in blobs.items()}, free_axes)
            layer.to_onnx(graph, list(bottoms), list(tops))
            graphs.append(graph)
        if difference := _difference(*graphs):
            raise ExportError(
                f"--dynamic-size: layer {layer.name!r} ({layer.type}) is for one size of the image only: "
                f"{difference} depends on it"
            )


def find_dynamic_size(net: Net, sides: Sides = "both") -> DynamicSize:
    """The free axes of a net; ExportError, with the layer, where the net has one size only."""
    sizes = _find(net, sides)
    if isinstance(sizes, DynamicSize):
        return sizes
    one = "size" if sides == "both" else sides
    others: tuple[Sides, ...] = ("width", "height") if sides == "both" else ()
    possible = next((side for side in others if isinstance(_find(net, side), DynamicSize)), None)
    advice = f"; its {possible} alone can be free: --dynamic-size {possible}" if possible else ""
    raise ExportError(
        f"--dynamic-size: net {net.name!r} has one {one} only. With images of {size_text(sizes.size)}: "
        f"{sizes.error}{_fixed(net, sizes)}{advice}{cut_before(net, net.steps[sizes.place])}"
    )


def _find(net: Net, sides: Sides) -> DynamicSize | _Refusal:
    """The free axes; or, with any step, the layer that is the last one to refuse other sizes."""
    images = _Images.of(net, sides)
    refusals = []
    try:
        for step in STEPS:
            tried: list[Shapes] = []
            for size in images.larger(step):
                shapes, refusal = _shapes(net, images, size)
                if refusal is not None:
                    refusals.append(refusal)
                    break
                tried.append(shapes)
            else:
                return _dynamic_size(net, images, step, tried)
    finally:
        _shapes(net, images, images.unit)  # a layer may keep what belongs to a size
    return max(refusals, key=lambda refusal: refusal.place)


@contextmanager
def at_size(net: Net, shapes: Shapes) -> Iterator[None]:
    """Within it the net's blobs have other shapes."""
    own = net.blob_shapes
    net.blob_shapes = shapes
    try:
        yield
    finally:
        net.blob_shapes = own


class _Refusal(NamedTuple):
    """The step that cannot be computed with images of this size."""

    place: int
    error: LayerError
    size: Size
    shapes: Shapes


@dataclass
class _Images:
    """The inputs whose height and width are free.

    shapes   of these inputs
    unit     a height and width of which all of them have multiples
    sides    that are free
    """

    shapes: Shapes
    unit: Size
    sides: Sides

    @classmethod
    def of(cls, net: Net, sides: Sides) -> _Images:
        with_size = {name: net.blob_shapes[name] for name in net.inputs if len(net.blob_shapes[name]) == 4}
        # A vector with two axes of 1 is no image, unless no input has a size yet.
        with_size = {n: shape for n, shape in with_size.items() if shape[2:] != (1, 1)} or with_size
        if not with_size:
            raise ExportError(
                f"--dynamic-size: net {net.name!r} has no input of images, (N, C, H, W); its inputs are "
                f"{', '.join(f'{name} {net.blob_shapes[name]}' for name in net.inputs)}"
            )
        first = next(iter(with_size.values()))
        shapes = {n: s for n, s in with_size.items() if all(map(_are_related, s[2:], first[2:]))}
        height, width = (gcd(*(shape[axis] for shape in shapes.values())) for axis in (2, 3))
        return cls(shapes, (height, width), sides)

    def at(self, size: Size) -> Shapes:
        """The shapes of the images where the unit is of this size."""
        return {
            name: (n, c, *(d // u * t for d, u, t in zip((h, w), self.unit, size, strict=True)))
            for name, (n, c, h, w) in self.shapes.items()
        }

    def first(self, size: Size) -> Size:
        """The size of the first image."""
        _, _, height, width = next(iter(self.at(size).values()))
        return height, width

    def larger(self, step: int) -> list[Size]:
        """Sizes that lie a step apart, from about twice the net's own size on."""
        begins = [-(-max(unit, SMALL) // step) for unit in self.unit]
        count = max(4, 32 // step)
        return [
            self._free(
                self.unit[0] + step * (begins[0] + i), self.unit[1] + step * (begins[1] + (3 * i + 1) % count)
            )
            for i in range(count)
        ]

    def _free(self, height: int, width: int) -> Size:
        """This size; a side that is not free keeps the net's own."""
        return (
            self.unit[0] if self.sides == "width" else height,
            self.unit[1] if self.sides == "height" else width,
        )

    def scaled(self, step: int) -> Iterator[Size]:
        """Sizes of SCALES: odd ones, and an even height, where the step allows it."""
        for index, scales in enumerate(SCALES):
            sizes = []
            for unit, scale, parity in zip(self.unit, scales, (1 - index % 2, 1), strict=True):
                size = unit + step * round((max(unit, SMALL) * scale - unit) / step)
                sizes.append(size + step if step % 2 and size % 2 != parity else size)
            if min(sizes) > 0 and all(size != unit for size, unit in zip(sizes, self.unit, strict=True)):
                yield self._free(*sizes)


def _are_related(size: int, other: int) -> bool:
    small, large = sorted((size, other))
    return large % small == 0 and large // small <= LARGEST_RATIO


def _shapes(net: Net, images: _Images, size: Size) -> tuple[Shapes, _Refusal | None]:
    """The shapes of all blobs up to the first layer that refuses them."""
    shapes = {name: net.blob_shapes[name] for name in net.inputs} | images.at(size)
    for index, step in enumerate(net.steps):
        if step.layer.is_fed:
            continue
        try:
            tops = step.layer.reshape([shapes[bottom] for bottom in step.bottoms])
        except LayerError as error:
            return shapes, _Refusal(index, error, images.first(size), dict(shapes))
        shapes.update(zip(step.tops, tops, strict=True))
    return shapes, None


def _dynamic_size(net: Net, images: _Images, step: int, tried: Sequence[Shapes]) -> DynamicSize:
    own = dict(net.blob_shapes)
    free_axes = {}
    for blob, shape in own.items():
        axes = tuple(
            axis for axis, size in enumerate(shape) if any(shapes[blob][axis] != size for shapes in tried)
        )
        if axes:
            free_axes[blob] = axes
    compared: dict[Size, Shapes] = {}
    for size in (*images.scaled(step), *images.larger(step)):
        shapes, refusal = _shapes(net, images, size)
        if refusal is None:
            compared[images.first(size)] = shapes
        if len(compared) == COMPARED:
            break
    names = {
        blob: {axis: _name(blob, axis, images, [own, *tried]) for axis in axes}
        for blob, axes in free_axes.items()
    }
    return DynamicSize(images.first(images.unit), step, free_axes, own, tried[-1], compared, names)


def _name(blob: str, axis: int, images: _Images, tried: Sequence[Shapes]) -> str:
    """The name of a free axis: that of an image's height or width, where both are always equal."""
    if blob not in images.shapes:
        for image in images.shapes:
            for side in (2, 3) if axis != 3 else (3, 2):
                if all(shapes[blob][axis] == shapes[image][side] for shapes in tried):
                    return _name(image, side, images, tried)
    names = {2: "height", 3: "width"} if len(tried[0][blob]) == 4 else {}
    name = names.get(axis, f"size {axis}")
    return name if blob in images.shapes and len(images.shapes) == 1 else f"{name} of {blob}"


def _fixed(net: Net, refusal: _Refusal) -> str:
    """The layers whose tops have one size for images of any size, where that size meets another, or ""."""

    def follows(blob: str) -> bool:
        return refusal.shapes[blob][1:] != net.blob_shapes[blob][1:]

    def fixes(step: Step) -> bool:
        return any(map(follows, step.bottoms)) and not any(map(follows, step.tops))

    bottoms = set(net.steps[refusal.place].bottoms)
    if len({follows(blob) for blob in bottoms}) < 2:
        return ""
    needed, names = {blob for blob in bottoms if not follows(blob)}, []
    for step in reversed(net.steps[: refusal.place]):
        if needed.intersection(step.tops):
            if fixes(step):
                names.append(f"{step.layer.name!r} ({step.layer.type})")
            else:
                needed.update(step.bottoms)
    if not names:
        return ""
    return f"; the top of layer {', '.join(reversed(names))} has one size, whatever the size of the image"


def _difference(graph: Graph, other: Graph) -> str:
    """What differs in the nodes of one layer for two sizes; "" if nothing."""
    if [node.op_type for node in graph.nodes] != [node.op_type for node in other.nodes]:
        return "the choice of its ONNX nodes"
    for node, second in zip(graph.nodes, other.nodes, strict=True):
        for attribute, value in zip(node.attribute, second.attribute, strict=False):
            if attribute != value:
                return f"{attribute.name} of its {node.op_type}"
        if node != second:
            return f"its {node.op_type}"
    if len(graph.initializers) != len(other.initializers):
        return "the number of its constants"
    for constant, changed in zip(graph.initializers, other.initializers, strict=True):
        if constant != changed:
            return f"a constant of its {_reader(graph.nodes, constant.name)}"
    return ""


def _reader(nodes: Sequence[onnx.NodeProto], name: str) -> str:
    return next((node.op_type for node in nodes if name in node.input), "nodes")
