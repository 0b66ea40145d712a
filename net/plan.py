"""The steps of a net while they are fused and replaced into a faster plan: see fuse.py and fold.py.

Neighbouring layers are found by the blobs that connect them, never by their place in the list.
"""

from __future__ import annotations

import copy
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from imae.layers.activation.scale import Scale
from imae.layers.layer import Layer
from imae.net.net import Net
from imae.net.step import Step, mark_frees

StepFunction = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass
class _Fused:
    """One step that replaces several; it is named after `layer`."""

    members: list[int]
    run: StepFunction
    layer: Layer


class Plan:
    """The steps of a net, some of them fused or replaced. Steps are numbered as in the net.

    keep   blobs that the plan must make, besides the net's outputs
    """

    def __init__(self, net: Net, keep: Iterable[str] = ()) -> None:
        self._net = net
        self._kept = {*net.loss_weights, *keep}
        self._steps = list(net.steps)
        self._fused: dict[int, _Fused] = {}
        self._members: set[int] = set()  # of all fused steps
        self._readers: defaultdict[str, list[int]] = defaultdict(list)
        self._writers: defaultdict[str, list[int]] = defaultdict(list)
        for index, step in enumerate(self._steps):
            for users, names in ((self._readers, step.bottoms), (self._writers, step.tops)):
                for name in dict.fromkeys(names):
                    users[name].append(index)

    def is_fused(self, index: int) -> bool:
        """Whether step `index` is one of several that were fused."""
        return index in self._members

    def only_reader(self, index: int, bottoms: int = 1) -> int | None:
        """The one step that reads the only top of step `index`, and cuts no gradient; or None.

        bottoms   how many bottoms it may have
        """
        step = self._steps[index]
        if len(step.tops) != 1 or step.tops[0] in self._kept:
            return None
        readers = self._readers[step.tops[0]]
        following = bisect_right(readers, index)
        if following == len(readers):
            return None
        later = readers[following]  # thanks to the splits every value has one reader
        reader = self._steps[later]
        alone = len(reader.bottoms) <= bottoms and len(reader.tops) == 1 and not any(reader.detach)
        return later if alone and not self.is_fused(later) else None

    def fused(self, index: int) -> StepFunction | None:
        """The function of the fused step whose last member is step `index`; None if there is none."""
        fused = self._fused.get(index)
        return None if fused is None else fused.run

    def run(self, index: int) -> StepFunction:
        """The function that computes the tops of step `index`, which is not fused."""
        return self._steps[index].run

    def only_writer(self, index: int, place: int = 0) -> int | None:
        """The step whose only top is bottom `place` of step `index`; or None."""
        writers = self._writers[self._steps[index].bottoms[place]]
        before = bisect_left(writers, index)
        if not before:
            return None
        earlier = writers[before - 1]
        return earlier if len(self._steps[earlier].tops) == 1 else None

    def fuse(self, members: list[int], run: StepFunction, layer: Layer | None = None) -> None:
        """Replace all `members` by one step, in the place of the last."""
        self._fused[members[-1]] = _Fused(members, run, layer or self._steps[members[0]].layer)
        self._members.update(members)

    def replace(self, index: int, run: StepFunction) -> None:
        """Let `run` compute the tops of step `index` instead of its layer."""
        step = copy.copy(self._steps[index])
        step.run = run
        self._steps[index] = step

    def steps(self) -> list[Step]:
        """The plan so far; its steps are copies."""
        result = []
        for index, step in enumerate(self._steps):
            if (fused := self._fused.get(index)) is not None:
                bottoms, detach = self._outer_bottoms(fused.members)
                members = tuple(self._steps[member] for member in fused.members)
                shapes = [self._net.blob_shapes[name] for name in bottoms]
                result.append(
                    Step(
                        fused.layer,
                        fused.run,
                        bottoms,
                        step.tops,
                        detach=detach,
                        members=members,
                        shapes=shapes,
                    )
                )
            elif index not in self._members:
                result.append(copy.copy(step))
        mark_frees(result)
        return result

    def _outer_bottoms(self, members: list[int]) -> tuple[tuple[str, ...], tuple[bool, ...]]:
        """The bottoms of fused steps that come from other steps, and whether their gradients are cut."""
        first, *later = (self._steps[member] for member in members)
        made, others = first.tops, list[str]()
        for step in later:
            others.extend(bottom for bottom in step.bottoms if bottom not in made)
            made = step.tops
        cut = (*first.detach, *(False for _ in others)) if first.detach else ()
        return (*first.bottoms, *others), cut


def scales_channels(layer: Layer) -> bool:
    """A Scale with a learned factor per channel (axis 1)."""
    return (
        isinstance(layer, Scale)
        and layer.axis == 1
        and bool(layer.blob_shapes)
        and len(layer.blob_shapes[0]) == 1
    )
