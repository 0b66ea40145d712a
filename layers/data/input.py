"""Input: blobs that the user fills.

top[i]  of the shape in input_param: one for all tops, or one per top

Caffe: input_layer.cpp. Without a shape a top is a scalar until it is reshaped (in Caffe: an empty blob).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from imae.files.limits import MAX_AXES, MAX_COUNT
from imae.layers.layer import Layer, Shape
from imae.layers.registry import register_layer
from imae.prototxt import BlobShape


@register_layer("Input")
class Input(Layer):
    num_bottoms = 0
    min_tops = 1
    makes_input = is_fed = True

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        shapes = self.param.input_param.shape
        num_tops = len(self.param.top)
        if len(shapes) not in (0, 1, num_tops):
            raise self.error(
                "Must specify 'shape' once, once per top blob, or not at all: "
                f"{num_tops} tops vs. {len(shapes)} shapes."
            )

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return shapes_of_tops(self, self.param.input_param.shape)


def shapes_of_tops(layer: Layer, shapes: Sequence[BlobShape]) -> list[Shape]:
    """A shape for each top, from none, one or as many as tops; LayerError for an impossible shape."""
    dims: list[Shape] = [tuple(shape.dim) for shape in shapes] or [()]
    for shape in dims:
        if len(shape) > MAX_AXES or any(dim < 0 for dim in shape) or math.prod(shape) > MAX_COUNT:
            raise layer.error(
                f"shape {shape} is impossible: a blob has at most {MAX_AXES} axes, none negative, and "
                f"at most {MAX_COUNT} values"
            )
    return dims if len(dims) > 1 else dims * len(layer.param.top)
