"""Stepwise: runs a Net as Caffe does, layer by layer. Every blob has its own memory for data and diff.

`Net.forward` builds one autograd graph: it is fast, and blobs are freed early. Here each layer has its own
graph. So a user can read and write any blob or diff between layers, run parts of the net, and read every diff
after `backward`. The values are the same (tests compare them).

Caffe: Net::ForwardFromTo, Net::BackwardFromTo. Parameter diffs add up until they are cleared; bottom diffs
are overwritten; the diff of a loss blob holds its loss_weight from the start. Differs: it also does after the
blob has grown, where Caffe leaves 0, and so no loss. If the backward pass of a layer runs without a forward
pass before it, the layer is computed again from its bottoms, and its tops stay unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from imae.layers.layer import DataLayer, Shape
from imae.layers.utility.synced_memory import SyncedMemory, parameter_diff, take_back
from imae.net.debug_info import log_backward, log_forward, log_totals
from imae.net.net import Net
from imae.net.step import Memory, Step, run_step

CPU = torch.device("cpu")
Callback = Callable[[int], object]
Place = tuple[Tensor, Tensor, tuple[Tensor, Tensor]]


# Scripts and solvers may change weights between a forward and a backward pass, which then reads the new ones.
# Autograd would refuse that where it notices it; it looks for changes only where there are no such hooks.
_UNCHECKED = torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved)


class BlobMemory:
    """data and diff of one blob: tensors that keep their memory until it must grow.

    loss_weight   the value that fills new memory of the diff
    """

    def __init__(
        self, shape: Shape, device: torch.device, dtype: torch.dtype, loss_weight: float = 0
    ) -> None:
        self.loss_weight = loss_weight
        self.data = torch.zeros(shape, dtype=dtype, device=device)
        self.diff = torch.full(shape, loss_weight, dtype=dtype, device=device)
        self._flat = self.data.view(-1), self.diff.view(-1)
        self.synced_data = SyncedMemory(lambda: self.data)
        self.synced_diff = SyncedMemory(lambda: self.diff)

    def reshape(self, shape: Sequence[int]) -> None:
        """Give the blob another shape; it keeps its memory, and the values in it, unless it needs more."""
        shape = tuple(shape)
        if shape == tuple(self.data.shape):
            return
        self.take_back()
        count = math.prod(shape)
        if count > len(self._flat[0]):
            self._flat = self.data.new_zeros(count), self.diff.new_full((count,), self.loss_weight)
        self.data, self.diff = (flat[:count].view(shape) for flat in self._flat)

    @property
    def place(self) -> Place:
        """Shape and memory: what `reshape` may change. May be set to what it was before."""
        return self.data, self.diff, self._flat

    @place.setter
    def place(self, place: Place) -> None:
        self.data, self.diff, self._flat = place

    def take_back(self) -> None:
        """Take data and diff back from scripts."""
        self.synced_data.take_back()
        self.synced_diff.take_back()

    def store(self, value: Tensor) -> None:
        """Copy a layer's top here, bypassing autograd, which would see it as a change of a saved bottom."""
        self.reshape(value.shape)
        value = value.detach()
        if _overlap(value, self.data):
            value = value.clone()  # an in-place layer's top may be its bottom in another order
        self.data.data.copy_(value)


class Stepwise:
    """Forward and backward of `net`, moved to `device`, over the memory `blobs` (by blob name).

    Lists of callbacks, called with the index of the layer:
    before_forward, after_forward, before_backward, after_backward   as in pycaffe
    before_compute, after_compute     around the layer's own forward pass, without the copying of its blobs
                                      (Caffe's layers write directly into them)
    """

    def __init__(self, net: Net, device: torch.device = CPU) -> None:
        self.net, self.device = net.to(device), device
        self.blobs = {
            name: BlobMemory(shape, device, net.dtype, net.loss_weights.get(name, 0))
            for name, shape in net.blob_shapes.items()
        }
        self.before_forward: list[Callback] = []
        self.after_forward: list[Callback] = []
        self.before_compute: list[Callback] = []
        self.after_compute: list[Callback] = []
        self.before_backward: list[Callback] = []
        self.after_backward: list[Callback] = []
        self._graphs: dict[int, tuple[dict[str, Tensor], tuple[Tensor, ...]]] = {}

    def forward(self, start: int = 0, end: int | None = None, keep: Iterable[str] = ()) -> float:
        """Run the layers start..end (both included); returns the sum of their weighted losses.

        keep   blobs that will be looked at; here all are stored
        """
        loss = 0.0
        steps = self.net.steps
        for index in range(start, len(steps) if end is None else end + 1):
            _call(self.before_forward, index)
            loss += self._forward_step(index)
            if self.net.debug_info:
                log_forward(steps[index], {name: self.blobs[name].data for name in steps[index].tops})
            _call(self.after_forward, index)
        if self.device != CPU:
            self.net.check_labels()  # on the CPU a layer does this itself
        return loss

    def _forward_step(self, index: int) -> float:
        step = self.net.steps[index]
        self._take_back(step)
        if step.layer.is_fed:
            return 0.0
        loss = 0.0
        for name, top in zip(step.tops, self._compute(index), strict=True):
            self.blobs[name].store(top)
            if name in self.net.loss_weights:
                # Caffe: the dot product of top and diff, which holds loss_weight unless the user changed it.
                loss += float((self.blobs[name].data * self.blobs[name].diff).sum())
        return loss

    def _compute(self, index: int) -> tuple[Tensor, ...]:
        """The tops of a layer, and the graph that its backward pass needs."""
        step = self.net.steps[index]
        bottoms: dict[str, Tensor] = {}
        for name, need in zip(step.bottoms, step.bottom_need_backward, strict=True):
            # An in-place layer's top overwrites memory that its backward pass still needs.
            data = self.blobs[name].data
            bottom = data.clone() if name in step.tops and step.need_backward else data.detach()
            bottoms[name] = bottom.requires_grad_(need)
        memory = None
        if step.overwritten:
            blob = self.blobs[step.memory]
            memory = Memory(lambda: blob.data)
        _call(self.before_compute, index)
        unchecked = _UNCHECKED if step.layer.blobs else nullcontext()
        with torch.set_grad_enabled(step.need_backward), unchecked:
            tops = run_step(step, bottoms, memory)
        if isinstance(step.layer, DataLayer):
            tops = tuple(top.to(self.device, non_blocking=True) for top in tops)
        _call(self.after_compute, index)
        self._graphs[index] = (bottoms, tops)
        return tops

    def backward(self, start: int | None = None, end: int = 0) -> None:
        """Run the backward passes of layers start..end, downwards, from the diffs of their tops."""
        steps = self.net.steps
        for index in range(len(steps) - 1 if start is None else start, end - 1, -1):
            _call(self.before_backward, index)
            if steps[index].need_backward:
                self._backward_step(index)
            if self.net.debug_info:
                log_backward(steps[index], {name: self.blobs[name].diff for name in steps[index].bottoms})
            _call(self.after_backward, index)
        if self.net.debug_info and start is None:  # Caffe: after Net::Backward, not after BackwardFromTo
            log_totals(self.net.learnable)

    def _backward_step(self, index: int) -> None:
        step = self.net.steps[index]
        parameters = [p for p in step.layer.blobs if p.requires_grad]
        if not any(step.bottom_need_backward) and not parameters:
            return
        self._take_back(step)
        if index not in self._graphs:
            self._compute(index)
        bottoms, tops = self._graphs[index]
        ends = [(name, top) for name, top in zip(step.tops, tops, strict=True) if top.requires_grad]
        starts = [(name, bottom) for name, bottom in bottoms.items() if bottom.requires_grad]
        grads: Sequence[Tensor | None] = [None] * (len(starts) + len(parameters))
        if ends:
            grads = torch.autograd.grad(
                [top for _, top in ends],
                [bottom for _, bottom in starts] + parameters,
                [self.blobs[name].diff for name, _ in ends],
                retain_graph=True,
                allow_unused=True,
            )
        for (name, bottom), grad in zip(starts, grads[: len(starts)], strict=True):
            diff = self.blobs[name].diff
            diff.copy_(torch.zeros_like(bottom) if grad is None else grad)
        for parameter, grad in zip(parameters, grads[len(starts) :], strict=True):
            if grad is not None:
                parameter_diff(parameter).add_(grad)

    def _take_back(self, step: Step) -> None:
        """Take the layer's blobs and parameters back from scripts."""
        for name in (*step.bottoms, *step.tops):
            self.blobs[name].take_back()
        take_back(step.layer.blobs)

    def take_back_parameters(self) -> None:
        """Take all parameter blobs back from scripts."""
        take_back(self.net.learnable)

    def clear_param_diffs(self) -> None:
        """Set the diffs of all parameters to 0."""
        self.take_back_parameters()
        for parameter in self.net.learnable:
            parameter_diff(parameter).zero_()

    def reshape(self) -> None:
        """Propagate the shapes of the inputs through all layers (Caffe: Net::Reshape)."""
        for step in self.net.steps:
            if step.bottoms:
                shapes = [tuple(self.blobs[name].data.shape) for name in step.bottoms]
                for name, shape in zip(step.tops, step.layer.checked_top_shapes(shapes), strict=True):
                    self.blobs[name].reshape(shape)
        self._graphs.clear()

    def look(self, name: str) -> None:
        """To be called before a script gets the array of a blob."""

    def look_at_shape(self, name: str) -> None:
        """To be called before a script gets the shape of a blob."""

    def reshape_blob(self, name: str, shape: Shape) -> None:
        """Give one blob another shape."""
        self.blobs[name].reshape(shape)

    def replace_parameters(self) -> None:
        """To be called before the net gets other parameters."""

    def outputs(self) -> dict[str, Tensor]:
        """The net's output blobs."""
        return {name: self.blobs[name].data for name in self.net.outputs}


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape lie in one memory, and not with each value in the same place."""
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    return (a.data_ptr(), a.stride()) != (b.data_ptr(), b.stride())


def _call(callbacks: list[Callback], index: int) -> None:
    for callback in callbacks:
        callback(index)
