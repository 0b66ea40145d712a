"""Checks of a layer whose class a plugin brings: without them the layer after it would be blamed.

Our own layers need none: their tests check the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imae.layers.blob import shape_string

if TYPE_CHECKING:
    from imae.layers.layer import Layer, Shape

# The key under which a node of autograd's graph holds the layer that made it. An error in the node's backward
# pass has no other trace of the layer.
LAYER = "imae.layer"


def check_shapes(layer: Layer, shapes: object) -> None:
    """LayerError unless `top_shapes` has returned a shape for each top."""
    if isinstance(shapes, list | tuple) and all(
        isinstance(shape, list | tuple) and all(hasattr(d, "__index__") for d in shape) for shape in shapes
    ):
        return
    raise layer.error(
        f"top_shapes of the plugin {layer.plugin} must return a list with the shape of each top, as a tuple "
        f"of whole numbers; got {shapes!r:.200}"
    )


def check_tops(layer: Layer, bottoms: Sequence[Tensor], tops: object) -> None:
    """LayerError unless the tops are what `top_shapes` states; notes the layer in the graph of autograd."""
    if torch.compiler.is_compiling():  # sizes may be symbols
        return
    name = "next_batch" if hasattr(layer, "next_batch") else "forward"
    method = f"{name} of the plugin {layer.plugin}"
    several: Sequence[Any] = tops if isinstance(tops, tuple | list) else (tops,)
    if wrong := [type(top).__name__ for top in several if not isinstance(top, Tensor)]:
        raise layer.error(f"{method} must return a tensor, or a tuple of them; got {', '.join(wrong)}")
    shapes = layer.checked_top_shapes([tuple(bottom.shape) for bottom in bottoms])
    if len(several) != len(shapes):
        raise layer.error(f"{method} returned {len(several)} tops; top_shapes has shapes of {len(shapes)}")
    for index, (top, shape) in enumerate(zip(several, shapes, strict=True)):
        if not _fits(tuple(top.shape), shape, layer.open_axes):
            raise layer.error(
                f"{method} returned a top {index} of shape {shape_string(tuple(top.shape))}, and top_shapes "
                f"states {shape_string(shape)}; mend one of them"
            )
        if not top.is_floating_point() or (bottoms and top.device != bottoms[0].device):
            like = f"floating point on {bottoms[0].device}" if bottoms else "floating point"
            raise layer.error(f"{method} returned a top {index} of {top.dtype} on {top.device}; need {like}")
        if top.dtype == torch.float64 and bottoms and all(b.dtype != torch.float64 for b in bottoms):
            raise layer.error(
                f"{method} returned a top {index} of {top.dtype}; the bottoms are of {bottoms[0].dtype}"
            )
    _note_in_graph(layer, bottoms, several)


def _fits(shape: Shape, stated: Shape, open_axes: Sequence[int]) -> bool:
    return len(shape) == len(stated) and all(
        axis in open_axes or a == b for axis, (a, b) in enumerate(zip(shape, stated, strict=True))
    )


def _note_in_graph(layer: Layer, bottoms: Sequence[Tensor], tops: Sequence[Tensor]) -> None:
    """Note the layer in the nodes of autograd's graph between its bottoms and its tops."""
    nodes: list[Any] = [top.grad_fn for top in tops]
    seen: set[Any] = {bottom.grad_fn for bottom in bottoms} | {None}
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            node.metadata[LAYER] = (layer.name, layer.type)
            nodes.extend(following for following, _ in node.next_functions)
