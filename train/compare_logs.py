"""Compare two training logs: where they begin to differ, and by how much.

Two numbers are compared if they have the same kind (loss: the smoothed one, lr, train and test outputs),
iteration, test net and output. A relative difference is relative to the first log's number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from imae.files.caffe_log import LogDifference, LogNumber, number, relative_difference
from imae.files.errors import printable
from imae.files.read import AnyPath
from imae.train.curve_style import add_legend, look, style_axes, write_picture
from imae.train.plot_log import KINDS, Chart, draw_panel, looks, panels


def summary(differences: Sequence[LogDifference]) -> str:
    """The differences as a table with one line for each kind of numbers.

    both, missing, extra   how many numbers are in both logs, only in the first, only in the second
    parts at               the first iteration whose difference exceeds the tolerance
    worst                  where the largest absolute difference is
    """
    lines = [["what", "both", "missing", "extra", "max abs", "max rel", "parts at", "worst"]]
    for d in differences:
        values = ["-"] * 4
        if d.common:
            parted = "-" if d.parted is None else str(d.parted)
            values = [number(d.absolute), number(d.relative), parted, f"{d.iteration} {d.name}"]
        lines.append([d.what, str(d.common), str(d.missing), str(d.extra), *values])
    return aligned(lines)


def side_by_side(first: Iterable[LogNumber], second: Iterable[LogNumber]) -> str:
    """All numbers of both logs, one line for each compared pair; - where a log lacks the number."""
    a, b = ({n[:5]: number(n.value) for n in log} for log in (first, second))
    keys = sorted({**a, **b}, key=lambda key: key[1])
    rows = [(str(key[1]), key[0], key[4], str(key[2]), a.get(key, "-"), b.get(key, "-")) for key in keys]
    return aligned([("iteration", "what", "name", "net", "first", "second"), *rows])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table of text with its columns aligned to the right."""
    lines = [[printable(cell) for cell in line] for line in lines]  # a name may hold control characters
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = ([cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(map("  ".join, cells))


def draw_comparison(path: AnyPath, logs: Sequence[tuple[str, list[LogNumber]]]) -> None:
    """Draw a chart for each kind of numbers, one below the other, and one of the relative differences."""
    first, second = ({n[:5]: n.value for n in numbers} for _, numbers in logs)
    kinds = [kind for kind in KINDS if any(key[0] == kind for key in (*first, *second))]
    parts = [panel for kind in kinds for panel in panels(logs, Chart(kind))]

    def draw(figure: Any) -> None:
        *charts, last = figure.subplots(len(parts) + 1, squeeze=False, sharex=True)[:, 0]
        styles = looks(parts)
        for panel, axes in zip(parts, charts, strict=True):
            draw_panel(axes, panel, seconds=False, styles=styles)
            axes.label_outer()
        add_legend(figure)
        for index, kind in enumerate(kinds):
            differences = [
                (key[1], difference)
                for key in sorted(first.keys() & second.keys())
                if key[0] == kind
                and 0 < (difference := relative_difference(first[key], second[key])) < math.inf
            ]
            if differences:
                colour = look(index)["color"]
                last.semilogy(*zip(*differences, strict=True), ".", color=colour, label=str(Chart(kind)))
        title = f"difference of {logs[1][0]}, relative to {logs[0][0]}"
        style_axes(last, title, "iterations", "relative difference")
        if last.get_legend_handles_labels()[0]:  # beside the axes, where it hides no point
            last.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))

    write_picture(path, draw, height=3.2 * (len(parts) + 1))
