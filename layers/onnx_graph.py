"""What a layer sees of the ONNX graph that it adds itself to.

    @register_layer("Shift")
    class Shift(Layer):  # top = x + shift, a blob with one value per channel
        ...
        def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
            num_axes = len(graph.shape(bottoms[0]))
            shift = self.blob(0).view(-1, *[1] * (num_axes - 2))
            graph.node("Add", [bottoms[0], graph.constant(shift)], tops)

The contract of `Layer.to_onnx`, which the exporter calls once for each layer, bottoms first:

- The nodes compute what `forward` computes in phase TEST, from values named `bottoms` into values named
  `tops`, in the order of the prototxt. Each top is the output of one node; a layer that only renames adds
  Identity.
- A value is never overwritten. A layer that is in-place in the prototxt gets another name for its top.
- Operators are those of `graph.opset`. With an operator that is newer, or for fields without an ONNX form, it
  raises `ExportError(f"layer {self.name!r}: ...")`, which says what to change.
- Axis 0 may be of any size in the model. So a shape that goes into the graph has no batch size: Reshape's 0
  keeps the size of an axis, its -1 is inferred. Where the batch is on another axis, `Layer.batch_axis` says
  so.
- Values are float32; constants keep their dtype, so a number is a np.float32 or a torch.tensor.
- Random numbers, losses and state have no place in it; `deployed = False` leaves a layer out of an export.

The model is then compared with the net on random inputs. `Layer.index_count` and `Layer.example` give a layer
inputs that it can use where any numbers would not do.
"""

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

    def constant(self, value: Tensor | NDArray[Any], blob: int | None = None) -> str:
        """Add an initializer (its dtype is kept; tensors are detached) and return its name.

        blob   the index of the layer's parameter blob that it is, perhaps in another form; it then has this
               blob's name: conv1.weight
        """

    def value(self, stem: str) -> str:
        """A name, LAYER/STEM, for a value inside of the layer, as an output of a node that has several."""

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
