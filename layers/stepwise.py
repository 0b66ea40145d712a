"""Stepwise: runs a Net as Caffe does, layer by layer, every blob with data and diff in memory of its own.

`Net.forward` is one autograd graph: fast, and blobs come and go. Here each layer has a graph of its own, so a
user may read and write any blob or diff between layers, run parts of the net, and finds every diff after
`backward`. Values are the same (tests compare them).

Caffe: Net::ForwardFromTo, Net::BackwardFromTo. Parameter diffs add up until they are cleared; bottom diffs
are overwritten; the diff of a loss blob holds its loss_weight from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from imae.layers.layer import Shape
from imae.layers.net import Memory, Net

Callback = Callable[[int], object]


class BlobMemory:
    """data and diff of one blob: float32 CPU tensors that keep their identity until the shape changes."""

    def __init__(self, shape: Shape) -> None:
        self.data = torch.zeros(shape)
        self.diff = torch.zeros(shape)

    def reshape(self, shape: Sequence[int]) -> None:
        """Give the blob another shape; what it holds is kept where the count allows, as in Caffe."""
        shape = tuple(shape)
        if shape == tuple(self.data.shape):
            return
        if self.data.numel() == torch.Size(shape).numel():
            self.data, self.diff = self.data.reshape(shape), self.diff.reshape(shape)
        else:
            self.data, self.diff = torch.zeros(shape), torch.zeros(shape)

    def store(self, value: Tensor) -> None:
        """Copy a layer's top here; past autograd, which must not count it as a change of a saved bottom."""
        self.reshape(value.shape)
        self.data.data.copy_(value.detach())


class Stepwise:
    """Forward and backward of `net` over the memory `blobs` (by blob name)."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.blobs = {name: BlobMemory(shape) for name, shape in net.blob_shapes.items()}
        for name, weight in net.loss_weights.items():
            self.blobs[name].diff.fill_(weight)
        self.before_forward: list[Callback] = []
        self.after_forward: list[Callback] = []
        self.before_backward: list[Callback] = []
        self.after_backward: list[Callback] = []
        self._graphs: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def forward(self, start: int = 0, end: int | None = None) -> float:
        """Run the layers start..end (both included); returns the sum of their weighted losses."""
        loss = 0.0
        steps = self.net.steps
        for index in range(start, len(steps) if end is None else end + 1):
            _call(self.before_forward, index)
            loss += self._forward_step(index)
            _call(self.after_forward, index)
        return loss

    def _forward_step(self, index: int) -> float:
        step = self.net.steps[index]
        if step.layer.type == "Input":
            return 0.0
        bottoms = []
        for name, need in zip(step.bottoms, step.bottom_need_backward, strict=True):
            # The top of an in-place layer overwrites the memory that its backward pass still needs.
            data = self.blobs[name].data
            bottom = data.clone() if name in step.tops else data.detach()
            bottoms.append(bottom.requires_grad_(need))
        with torch.set_grad_enabled(step.need_backward):
            if step.overwritten:
                memory = self.blobs[step.tops[0]]
                result = Memory(lambda: memory.data).run(step, bottoms)
            else:
                result = step.layer(*bottoms)
        tops = [result] if isinstance(result, Tensor) else list(result)
        self._graphs[index] = (bottoms, tops)
        loss = 0.0
        for name, top in zip(step.tops, tops, strict=True):
            self.blobs[name].store(top)
            if name in self.net.loss_weights:
                # Caffe: the dot product of top and diff, which hold loss_weight unless the user changed it.
                loss += float((self.blobs[name].data * self.blobs[name].diff).sum())
        return loss

    def backward(self, start: int | None = None, end: int = 0) -> None:
        """Run the backward passes of layers start..end, downwards, from the diffs that lie in the tops."""
        for index in range(len(self.net.steps) - 1 if start is None else start, end - 1, -1):
            _call(self.before_backward, index)
            if self.net.steps[index].need_backward and index in self._graphs:
                self._backward_step(index)
            _call(self.after_backward, index)

    def _backward_step(self, index: int) -> None:
        step = self.net.steps[index]
        bottoms, tops = self._graphs[index]
        ends = [(name, top) for name, top in zip(step.tops, tops, strict=True) if top.requires_grad]
        starts = [(name, b) for name, b in zip(step.bottoms, bottoms, strict=True) if b.requires_grad]
        parameters = [p for p in step.layer.blobs if p.requires_grad]
        if not starts and not parameters:
            return
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

    def clear_param_diffs(self) -> None:
        """Set the diffs of all parameters to 0."""
        for parameter in self.net.learnable:
            parameter_diff(parameter).zero_()

    def reshape(self) -> None:
        """Carry the shapes of the inputs through all layers (Caffe: Net::Reshape)."""
        for step in self.net.steps:
            if step.layer.type == "Input":
                continue
            if step.bottoms:
                shapes = [tuple(self.blobs[name].data.shape) for name in step.bottoms]
                for name, shape in zip(step.tops, step.layer.checked_top_shapes(shapes), strict=True):
                    self.blobs[name].reshape(shape)
        self._graphs.clear()

    def forward_backward(self) -> tuple[Tensor, dict[str, Tensor]]:
        """One pass both ways, as the solver asks for it: the loss and the output blobs."""
        loss = torch.tensor(self.forward())
        self.backward()
        return loss, self.outputs()

    def forward_only(self) -> dict[str, Tensor]:
        """One forward pass; the output blobs."""
        self.forward()
        return self.outputs()

    def outputs(self) -> dict[str, Tensor]:
        """The net's output blobs."""
        return {name: self.blobs[name].data for name in self.net.outputs}


def parameter_diff(parameter: nn.Parameter) -> Tensor:
    """The diff of a parameter blob, made where it is not there yet."""
    if parameter.grad is None:
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
        else:  # torch allows a grad on a leaf that needs none
            parameter.grad = torch.zeros_like(parameter.detach())
    return parameter.grad


def _call(callbacks: list[Callback], index: int) -> None:
    for callback in callbacks:
        callback(index)
