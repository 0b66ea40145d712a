"""What a layer sees of the ONNX graph that it adds itself to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor

# (states, items) -> (the next states, results): adds the nodes of one step of a Loop.
LoopStep = Callable[[list[str], list[str]], tuple[list[str], list[str]]]


class OnnxGraph(Protocol):
    """The exporter's side of `Layer.to_onnx`."""

    opset: int

    def node(
        self, op_type: str, inputs: Sequence[str], outputs: Sequence[str] | None = None, **attributes: Any
    ) -> str:
        """Add a node; without `outputs` it has one, freshly named. Returns the first output's name."""

    def constant(self, value: Tensor | NDArray[Any]) -> str:
        """Add an initializer (its dtype is kept; tensors are detached) and return its name."""

    def loop(
        self, step: LoopStep, states: Sequence[str], sequences: Sequence[str], width: int
    ) -> tuple[list[str], list[str]]:
        """Add a Loop, which does `step` for each item on axis 0 of the sequences, one after another.

        States and results are (N, width) each, with the N of the sequences (steps, N, ...).

        Returns the states after the last step, and the results of all steps, on a new axis 0 each.
        """

    def shape(self, value: str) -> tuple[int, ...]:
        """Shape of a net blob; axis 0 is the batch size of the export, which may be dynamic in the model.

        So may be other axes: see `free_axes`.
        """

    def free_axes(self, value: str) -> tuple[int, ...]:
        """The axes of a net blob whose size follows that of the image, where that is free in the model.

        The nodes must hold for any size of these axes; `shape` has one of many.
        """
