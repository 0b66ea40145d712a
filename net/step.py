"""A step of a net: one layer with the blobs that it reads and writes, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from imae.layers.layer import Layer, Shape


@dataclass
class Step:
    """One layer in its place: which blobs it reads and writes.

    run                   computes the tops from the bottoms: the layer, or a function that replaces it
    bottom_need_backward  which bottoms get a gradient (`propagate_down`, `force_backward`, Caffe's own rules)
    need_backward         whether Caffe runs this layer's backward pass at all
    detach                for each bottom, whether it is detached from autograd's graph; () for none
    frees                 blobs that no step after this one reads
    overwritten           whether in-place layers change the memory that this step's backward pass reads
    memory                the name of the blob that the last of these layers writes there
    members               the steps that this one replaces, in order, if several were fused
    shapes                the bottoms' shapes at the last check
    """

    layer: Layer
    run: Callable[..., Tensor | tuple[Tensor, ...]]
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    bottom_need_backward: list[bool] = field(default_factory=list)
    need_backward: bool = False
    detach: tuple[bool, ...] = ()
    frees: tuple[str, ...] = ()
    overwritten: bool = False
    memory: str = ""
    members: tuple[Step, ...] = ()
    shapes: list[Shape] = field(default_factory=list)

    def check(self, bottoms: Sequence[Tensor]) -> None:
        """LayerError for bottoms that do not fit. While their shapes stay the same, only a comparison.

        While torch traces the net for a batch of any size, nothing: sizes are symbols then, and to compare
        one fixes it.
        """
        shapes: list[Shape] = [bottom.shape for bottom in bottoms]
        if torch.compiler.is_compiling() and any(isinstance(d, torch.SymInt) for s in shapes for d in s):
            return
        if shapes == self.shapes:
            return
        known = dict(zip(self.bottoms, shapes, strict=True))
        for step in self.members or (self,):
            tops = step.layer.reshape([tuple(known[name]) for name in step.bottoms])
            known.update(zip(step.tops, tops, strict=False))
        self.shapes = shapes


class Memory:
    """The memory of a layer's top, as its backward pass reads it after in-place layers have overwritten it.

    Caffe: a layer that reads its top (TanH, Sigmoid, ...) in its backward pass reads the current content of
    that memory, so an in-place Dropout after an in-place TanH changes TanH's gradient. When a step is run
    with a Memory, its backward pass uses `read()`, if that is a tensor by then, instead of the saved top
    (and, for an in-place layer, instead of the saved bottom).
    """

    def __init__(self, read: Callable[[], Tensor | None]) -> None:
        self._read = read
        self._addresses: set[int] = set()

    def watch(self) -> AbstractContextManager[object]:
        """A context; the backward pass looks up here what autograd saves in it."""
        return torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, self._unpack)

    def note(self, step: Step, bottoms: Sequence[Tensor], tops: Sequence[Tensor]) -> None:
        """Note the addresses of the blobs that Caffe's backward pass of this step reads again."""
        if step.layer.reads_top:
            self._addresses.add(tops[0].data_ptr())
        if step.layer.reads_bottom and step.tops[0] in step.bottoms:
            self._addresses.add(bottoms[0].data_ptr())

    def _unpack(self, saved: Tensor) -> Tensor:
        current = self._read()
        if current is None or saved.data_ptr() not in self._addresses:
            return saved
        return current.detach().reshape(saved.shape)


def run_step(step: Step, values: Mapping[str, Tensor], memory: Memory | None = None) -> tuple[Tensor, ...]:
    """Run a step on the bottoms that `values` holds by name; returns its tops.

    memory   for a step whose backward pass reads memory that in-place layers overwrite

    LayerError for bottoms that do not fit the layer.
    """
    bottoms = [values[name] for name in step.bottoms]
    step.check(bottoms)
    if step.detach:
        bottoms = [b.detach() if cut else b for b, cut in zip(bottoms, step.detach, strict=True)]
    if memory is None:
        tops = step.run(*bottoms)
    else:
        with memory.watch():
            tops = step.run(*bottoms)
    tops = (tops,) if isinstance(tops, Tensor) else tuple(tops)
    if memory is not None:
        memory.note(step, bottoms, tops)
    return tops


def run_checked(step: Step, *bottoms: Tensor) -> tuple[Tensor, ...]:
    """Run a step, without gradients, on bottoms whose shapes have been checked; returns its tops."""
    tops = step.run(*bottoms)
    return (tops,) if isinstance(tops, Tensor) else tuple(tops)


def mark_frees(steps: Sequence[Step]) -> None:
    """Note for each step the blobs that no later step reads."""
    last_reader = {bottom: index for index, step in enumerate(steps) for bottom in step.bottoms}
    for index, step in enumerate(steps):
        step.frees = tuple(b for b in {*step.bottoms}.difference(step.tops) if last_reader[b] == index)
