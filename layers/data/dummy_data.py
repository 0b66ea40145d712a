"""DummyData: tops made by fillers, anew in every forward pass unless they are constant.

top[i]  of `shape`, or num x channels x height x width: one for all tops, or one per top; data_filler
        likewise, constant 0 if there is none

The draws come from the run's stream, top after top, when the layer runs, or ahead of that (drawn_ahead.py).

Caffe: dummy_data_layer.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from imae.layers.data.drawn_ahead import DrawnAhead
from imae.layers.data.input import shapes_of_tops
from imae.layers.filler import fill
from imae.layers.layer import Layer, Shape
from imae.layers.registry import register_layer
from imae.prototxt import BlobShape, FillerParameter

LEGACY = ("num", "channels", "height", "width")


@register_layer("DummyData")
class DummyData(Layer):
    num_bottoms = 0
    min_tops = 1
    makes_input = True

    device_and_dtype: Tensor

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        dummy = self.param.dummy_data_param
        num_tops = len(self.param.top)
        if len(dummy.data_filler) not in (0, 1, num_tops):
            raise self.error(
                f"Number of data fillers must be 0, 1 or equal to the number of tops: {num_tops}; "
                f"you specified {len(dummy.data_filler)} data fillers."
            )
        fillers = list(dummy.data_filler) or [FillerParameter(type="constant")]
        self.fillers = fillers if len(fillers) == num_tops else fillers * num_tops
        self.shapes = shapes_of_tops(self, self._shapes(num_tops))
        self.register_buffer("device_and_dtype", torch.zeros(0), persistent=False)
        self.constants = [
            torch.from_numpy(fill(shape, filler, self.random)) if filler.type == "constant" else None
            for shape, filler in zip(self.shapes, self.fillers, strict=True)
        ]
        drawn = [index for index, constant in enumerate(self.constants) if constant is None]
        self.ahead = DrawnAhead([self.shapes[i] for i in drawn], [self.fillers[i] for i in drawn])

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return self.shapes

    @property
    def capturable(self) -> bool:
        return False

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        """The tops."""
        drawn = map(torch.from_numpy, self.ahead.draw(self.random))
        tops = (next(drawn) if constant is None else constant for constant in self.constants)
        return tuple(top.to(self.device_and_dtype) for top in tops)

    def _shapes(self, num_tops: int) -> list[BlobShape]:
        """One shape, or one per top, from `shape` or from the legacy fields."""
        dummy = self.param.dummy_data_param
        legacy = {field: list(getattr(dummy, field)) for field in LEGACY}
        if not any(legacy.values()):
            self._check_once_or_per_top("shape", len(dummy.shape), num_tops)
            return list(dummy.shape)
        if dummy.shape:
            raise self.error(
                "Both shape and legacy fields were specified; leave num, channels, height, width out"
            )
        for field, values in legacy.items():
            self._check_once_or_per_top(field, len(values), num_tops)
        columns = [values if len(values) == num_tops else values * num_tops for values in legacy.values()]
        return [BlobShape(dim=dims) for dims in zip(*columns, strict=True)]

    def _check_once_or_per_top(self, field: str, got: int, num_tops: int) -> None:
        if got not in (1, num_tops):
            raise self.error(
                f"Must specify '{field}' once, or once per top blob ({num_tops}); specified {got}."
            )
