"""A step of a net: one layer in its place, and how it is run."""

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

    run                   computes the tops from the bottoms: the layer, or what stands for it
    bottom_need_backward  which bottoms get a gradient (`propagate_down`, `force_backward`, Caffe's own rules)
    need_backward         whether Caffe runs this layer's backward pass at all
    detach                bottoms through which autograd must not reach further down
    frees                 blobs that nobody reads after this step
    overwritten           whether in-place layers change the memory that this step's backward pass reads
    memory                the blob that they leave there, under its last name
    members               the steps for which this one stands, in order, where it stands for several
    shapes                those of the bottoms that were checked last
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
        """LayerError for bottoms that do not fit. No more than a comparison while their shapes stay."""
        shapes: list[Shape] = [bottom.shape for bottom in bottoms]
        if shapes == self.shapes:
            return
        known = dict(zip(self.bottoms, shapes, strict=True))
        for step in self.members or (self,):
            tops = step.layer.reshape([tuple(known[name]) for name in step.bottoms])
            known.update(zip(step.tops, tops, strict=False))
        self.shapes = shapes


class Memory:
    """What a layer's backward pass finds in the memory of its top after in-place layers have overwritten it.

    Caffe: a layer that reads its top (TanH, Sigmoid, ...) in its backward pass reads what lies there by
    then, so an in-place Dropout after an in-place TanH changes TanH's gradient. A step that is run with a
    Memory has its tops computed so that autograd takes `read()`, once that gives a tensor, for the top (and,
    of an in-place layer, the bottom) that it saved.
    """

    def __init__(self, read: Callable[[], Tensor | None]) -> None:
        self._read = read
        self._places: set[int] = set()

    def watch(self) -> AbstractContextManager[object]:
        """What autograd saves in this context is looked up here in the backward pass."""
        return torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, self._saved)

    def note(self, step: Step, bottoms: Sequence[Tensor], tops: Sequence[Tensor]) -> None:
        """Note where the blobs lie that Caffe's backward pass of this step reads again."""
        if step.layer.reads_top:
            self._places.add(tops[0].data_ptr())
        if step.layer.reads_bottom and step.tops[0] in step.bottoms:
            self._places.add(bottoms[0].data_ptr())

    def _saved(self, saved: Tensor) -> Tensor:
        now = self._read()
        if now is None or saved.data_ptr() not in self._places:
            return saved
        return now.detach().reshape(saved.shape)


def run_step(step: Step, values: Mapping[str, Tensor], memory: Memory | None = None) -> tuple[Tensor, ...]:
    """The tops of a step, from the bottoms that `values` holds by name.

    memory   where later in-place layers overwrite what the step's backward pass reads: what it finds there

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


def mark_frees(steps: Sequence[Step]) -> None:
    """Note for each step which blobs nobody reads after it."""
    last_reader = {bottom: index for index, step in enumerate(steps) for bottom in step.bottoms}
    for index, step in enumerate(steps):
        step.frees = tuple(b for b in {*step.bottoms}.difference(step.tops) if last_reader[b] == index)
