"""The look of images of curves, in one place: colours, dashes, quiet axes, one legend below.

Colours and dashes can be told apart by colour-blind people and in print. matplotlib is imported only when
something is drawn.
"""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Callable, Mapping
from typing import Any

from imae.files.atomic import write_atomically
from imae.files.errors import ImaeError
from imae.files.read import AnyPath

INK, FAINT = "#1b1f24", "#d5dae0"  # text and axes; the grid
COLOURS = ("#0a66b0", "#c8500a", "#00805c", "#8a4fa3", "#96720a", "#7a0f3c", "#6b6f76", "#2c8a4a")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2.5)), (0, (7, 2, 1.5, 2)), (0, (1.2, 1.8)))
WIDTH = 8.0  # of an image, in inches


def look(index: int, dash: int = 0) -> dict[str, Any]:
    """How the curve of the run number `index` is drawn; `dash` tells several curves of a run apart."""
    rounds = index // len(COLOURS)  # so that a colour that comes again has other dashes
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[(index + rounds + dash) % len(DASHES)],
        "linewidth": 1.5,
    }


def style_axes(axes: Any, title: str, x: str, y: str) -> None:
    """Title, names of the axes, a faint grid, and no frame on the right and above."""
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)
    axes.tick_params(labelsize=8, color=INK, labelcolor=INK)
    axes.margins(x=0.02)
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(INK)


def add_legend(figure: Any) -> None:
    """One legend below all axes of a figure, with each label once."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    longest = max(map(len, handles))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=max(1, min(len(handles), int(110 / (longest + 10)))),
        fontsize=8,
        frameon=False,
        handlelength=3.5,
    )


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib Figure, sizes in inches; ImaeError without matplotlib."""
    try:
        figure_module = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError:
        raise ImaeError("a figure needs the package matplotlib: pip install matplotlib") from None
    return figure_module.Figure(figsize=(width, height), dpi=120, layout="constrained")


def write_picture(path: AnyPath, draw: Callable[[Any], None], height: float = 5) -> None:
    """Write the Figure that `draw` fills, `height` inches high, to a file; ImaeError without matplotlib."""
    figure = new_figure(WIDTH, height)
    draw(figure)
    ending = os.path.splitext(path)[1].removeprefix(".").lower()
    formats = figure.canvas.get_supported_filetypes()
    if ending not in formats:
        raise ImaeError(
            f"'{os.fspath(path)}': the ending must be that of an image: {', '.join(sorted(formats))}"
        )
    write_atomically(path, image_bytes(figure, ending))


def image_bytes(figure: Any, ending: str, settings: Mapping[str, Any] | None = None, **options: Any) -> bytes:
    """A Figure as an image file; the same bytes for the same curves.

    An SVG else has the date, and names that are drawn at random.

    settings   of matplotlib, while it is written
    options    of Figure.savefig
    """
    image = io.BytesIO()
    metadata = {"Date": None} if ending == "svg" else None
    with importlib.import_module("matplotlib").rc_context({"svg.hashsalt": "imae", **(settings or {})}):
        figure.savefig(image, format=ending, metadata=metadata, **options)
    return image.getvalue()
