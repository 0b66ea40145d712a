"""What in-place layers, and layers that share memory, overwrite in Caffe. Here nothing is overwritten."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from imae.layers.layer import Layer
from imae.net.step import Step
from imae.prototxt import TEST, Phase

logger = logging.getLogger(__name__)


def note_in_place(steps: Sequence[Step], phase: Phase) -> dict[str, str]:
    """Set `memory` and `overwritten` of each step, and warn where Caffe's results differ.

    Returns, for each blob that in Caffe lies in another blob's memory, that blob (see `memory_of`).
    """
    memory: dict[str, str] = {}
    last_in_place: dict[str, tuple[int, str]] = {}  # by memory: the last step that overwrites it, its top
    for index, step in enumerate(steps):
        if step.layer.shares_memory:
            memory.update(dict.fromkeys(step.tops, memory_of(memory, step.bottoms[0])))
        for top in {*step.tops}.intersection(step.bottoms):
            last_in_place[memory_of(memory, top)] = index, top
    for index, step in enumerate(steps):
        if step.tops:
            last, step.memory = last_in_place.get(memory_of(memory, step.tops[0]), (-1, step.tops[0]))
            step.overwritten = _is_overwritten(step, last > index)
    spoilt = [f"'{step.layer.name}' ({step.layer.type})" for step in steps if _is_spoilt(step)]
    if spoilt:
        logger.warning(
            "layer %s: in place, Caffe overwrites what it still needs; here values and gradients are as "
            "if the top had a name of its own",
            ", ".join(spoilt),
        )
    for reader, blob, writer in _overwritten_for_others(steps, memory, phase):
        logger.warning(
            "layer '%s' (%s): in Caffe its bottom '%s' lies in memory that layer '%s' (%s), in place, "
            "has overwritten; here it has the values that it was given",
            reader.name, reader.type, blob, writer.name, writer.type,
        )  # fmt: skip
    return memory


def memory_of(memory: Mapping[str, str], blob: str) -> str:
    """The blob whose memory this one uses in Caffe: itself, unless its layer shares the bottom's."""
    return memory.get(blob, blob)


def _overwritten_for_others(
    steps: Sequence[Step], memory: Mapping[str, str], phase: Phase
) -> list[tuple[Layer, str, Layer]]:
    """(reader, blob, writer): layers that read a blob whose memory was overwritten under another name."""
    conflicts: list[tuple[Layer, str, Layer]] = []
    written: dict[str, int] = {}
    overwritten: dict[str, int] = {}  # by memory
    for index, step in enumerate(steps):
        for bottom in step.bottoms:
            writer = overwritten.get(memory_of(memory, bottom), -1)
            if writer > written.get(bottom, -1):
                conflicts.append((step.layer, bottom, steps[writer].layer))
        written.update(dict.fromkeys(step.tops, index))
        if not (step.layer.idle_in_test and phase == TEST):
            for top in {*step.tops}.intersection(step.bottoms):
                overwritten[memory_of(memory, top)] = index
    return conflicts


def _is_overwritten(step: Step, later: bool) -> bool:
    """Whether this or a later step overwrites in-place what the step's backward pass reads in Caffe."""
    in_place = bool(step.tops) and step.tops[0] in step.bottoms
    if in_place and step.layer.spoils_in_place:
        return False
    return (step.layer.reads_top and later) or (step.layer.reads_bottom and in_place)


def _is_spoilt(step: Step) -> bool:
    """Whether the step is in-place and Caffe would compute a wrong top or gradient."""
    in_place = not set(step.tops).isdisjoint(step.bottoms)
    return in_place and (
        step.layer.spoils_in_place == "data" or (step.layer.spoils_in_place == "diff" and step.need_backward)
    )
