"""What each layer of a net has and costs: shapes, parameters, multiply-adds, memory, receptive field.

multiply-adds    products of weights with bottoms that a forward pass adds up, for the whole batch; a multiply
                 and its add are one. Padding counts as any place. Not counted: bias, pooling, normalization,
                 activation, losses, and Python layers.
memory           of the tops' data, once, without those that share a bottom's memory (in-place layers, Split);
                 a training has as much again for the diffs, and more
receptive field  how many rows and columns of the net's input a place of the first top depends on, padding
                 included, and how far apart those of neighbours lie (the stride). It is not defined where a
                 layer reads all places, or moves them.
parameters       numbers in the parameter blobs, BatchNorm's statistics included; shared ones count once
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from imae.files.errors import printable
from imae.layers.layer import Shape
from imae.net.step import Step

if TYPE_CHECKING:
    from imae.net.net import Net

HEADS = ("layer", "type", "top", "params", "MACs", "memory", "field", "stride")
NUMBERS = HEADS[3:]
CONVENTION = (
    "MACs, multiply-adds: of weights with bottoms, a multiply and its add are one; bias, pooling, "
    "normalization, activation and losses are not counted"
)


class Field(NamedTuple):
    """A receptive field, per spatial axis."""

    size: Shape
    stride: tuple[Fraction, ...]


class LayerSummary(NamedTuple):
    """One layer; `memory` in bytes."""

    name: str
    type: str
    tops: dict[str, Shape]
    parameters: int
    multiply_adds: int
    memory: int
    field: Field | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        result: dict[str, Any] = self._asdict() | {"tops": {name: list(s) for name, s in self.tops.items()}}
        field = result.pop("field")
        result["receptive_field"] = None if field is None else list(field.size)
        result["stride"] = None if field is None else [float(stride) for stride in field.stride]
        return result

    def cells(self) -> tuple[str, ...]:
        """The row of a table."""
        first = next(iter(self.tops.values()), ())
        more = f" +{len(self.tops) - 1}" if len(self.tops) > 1 else ""
        field = self.field
        return (
            printable(self.name),
            printable(self.type),
            "x".join(map(str, first)) + more if self.tops else "",
            short(self.parameters) if self.parameters else "",
            short(self.multiply_adds) if self.multiply_adds else "",
            size(self.memory) if self.memory else "",
            "" if field is None else _sizes(field.size),
            "" if field is None else _sizes(field.stride),
        )


class Summary(NamedTuple):
    """A net's layers, without the splits that were inserted; the totals are over all of them."""

    name: str
    layers: tuple[LayerSummary, ...]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def memory(self) -> int:
        return sum(layer.memory for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        totals = {name: getattr(self, name) for name in ("parameters", "multiply_adds", "memory")}
        return {
            "name": self.name,
            **totals,
            "convention": CONVENTION,
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def totals(self) -> str:
        """One line."""
        return (
            f"{len(self.layers)} layers, {self.parameters:,} parameters ({size(4 * self.parameters)} in "
            f"float32), {short(self.multiply_adds)} multiply-adds, {size(self.memory)} of blobs"
        )

    def as_text(self, width: int = 100) -> str:
        """A table at most `width` wide, as far as its numbers allow: long names are cut first."""
        rows = [HEADS, *(layer.cells() for layer in self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
        for column in (0, 1, 2):  # the names, the types, the shapes
            excess = sum(widths) + 2 * (len(widths) - 1) - width
            widths[column] -= max(0, min(excess, widths[column] - 12))
        lines = []
        for row in rows:
            cells = [_cut(cell, size) for cell, size in zip(row, widths, strict=True)]
            aligned = [
                cell.rjust(size) if head in NUMBERS else cell.ljust(size)
                for head, cell, size in zip(HEADS, cells, widths, strict=True)
            ]
            lines.append("  ".join(aligned).rstrip())
        words = [line for text in (self.totals(), CONVENTION) for line in textwrap.wrap(text, width)]
        return "\n".join([*lines, "", *words, ""])

    def as_html(self) -> str:
        """A table in HTML, complete in itself."""
        head = "".join(f"<th>{name}</th>" for name in HEADS)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in layer.cells()) + "</tr>\n"
            for layer in self.layers
        )
        name = html.escape(printable(self.name))
        return (
            f"<table>\n<caption>{name}: {self.totals()}</caption>\n<tr>{head}</tr>\n{body}</table>\n"
            f"<p><small>{CONVENTION}</small></p>\n"
        )


def summarize(net: Net) -> Summary:
    """The summary of a net as it was built."""
    fields: dict[str, Field | None] = {}
    counted: set[int] = set()
    layers = []
    for step in net.steps:
        shapes = {name: net.blob_shapes[name] for name in (*step.bottoms, *step.tops)}
        field = _field(step, shapes, fields)
        fields.update(dict.fromkeys(step.tops, field))
        if _is_inserted(step):
            continue
        layer = step.layer
        blobs = [blob for blob in layer.blobs if id(blob) not in counted]
        counted.update(map(id, blobs))
        own = {top for top in step.tops if top not in step.bottoms and net.memory_of(top) == top}
        bottoms, tops = ([shapes[name] for name in names] for names in (step.bottoms, step.tops))
        layers.append(
            LayerSummary(
                layer.name,
                layer.type,
                {top: tuple(shapes[top]) for top in step.tops},
                sum(blob.numel() for blob in blobs),
                layer.multiply_adds(bottoms, tops),
                sum(4 * prod(shapes[top]) for top in own),
                field if step.tops else None,
            )
        )
    return Summary(net.name, tuple(layers))


def _is_inserted(step: Step) -> bool:
    """Whether this is a Split that the prototxt does not have."""
    return step.layer.shares_memory and len(step.tops) > 1 and step.layer.name.endswith("_split")


def _field(step: Step, shapes: Mapping[str, Shape], fields: Mapping[str, Field | None]) -> Field | None:
    """The receptive field of the step's first top; (N, C, ...) is the form of its blobs."""
    if not step.tops:
        return None
    axes = len(shapes[step.tops[0]]) - 2
    if not step.bottoms:
        return Field((1,) * axes, (Fraction(1),) * axes) if axes > 0 else None
    below = fields[step.bottoms[0]]
    if below is None or len(below.size) != axes:
        return None
    window = step.layer.receptive_window(shapes[step.bottoms[0]])
    if window is not None:
        return _through(below, window.size, window.stride) if len(window.size) == axes else None
    if not step.layer.keeps_places:
        return None
    places = shapes[step.tops[0]][2:]
    bottoms = [name for name in step.bottoms if len(shapes[name]) == axes + 2]  # without a Scale's factors
    if any(shapes[name][2:] != places for name in bottoms):
        return None
    joined = [field for name in bottoms if (field := fields[name]) is not None]
    if len(joined) < len(bottoms) or len({field.stride for field in joined}) > 1:
        return None
    return Field(tuple(max(sizes) for sizes in zip(*(f.size for f in joined), strict=True)), below.stride)


def _through(below: Field, size: Shape, stride: Sequence[Fraction]) -> Field:
    """The field of a window over tops whose field is `below`."""
    sizes = zip(below.size, below.stride, size, strict=True)
    return Field(
        tuple(-int(-(field + (window - 1) * step) // 1) for field, step, window in sizes),  # rounded up
        tuple(a * b for a, b in zip(below.stride, stride, strict=True)),
    )


def short(number: int) -> str:
    """A number in three digits: 724 M. The units are powers of 1000."""
    value, unit = float(number), ""
    for larger in (" k", " M", " G", " T", " P"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g}{unit}" if unit else str(number)


def size(number: int) -> str:
    """A number of bytes: 1.2 MB."""
    text = short(number)
    return f"{text}B" if " " in text else f"{text} B"


def _sizes(sizes: Sequence[int | Fraction]) -> str:
    """One number where all axes are alike: 11, or 11x3."""
    texts = [str(size) for size in sizes]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
