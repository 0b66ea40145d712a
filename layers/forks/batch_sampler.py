"""Windows that are drawn at random and kept if they hold enough of an object (SSD's data augmentation).

A batch_sampler draws up to max_trials windows, and keeps those that meet its sample_constraint, up to
max_sample of them. Where use_original_image is false it draws none, as in the fork.

A window takes four uniform values: scale, aspect ratio, left side, upper side. The aspect ratio is kept
between scale^2 and 1 / scale^2, so that the window fits. Width is scale * sqrt(aspect), height is
scale / sqrt(aspect), computed in double precision and then rounded.

A constraint is met if one object meets it. Where it has several kinds (Jaccard overlap, sample coverage,
object coverage) and one object has met one kind, the window is kept even if the object then fails another:
the fork forgets that only on a new window.

SSD (weiliu89/caffe): sampler.cpp. Differs: what the fork checks when a window is drawn is checked at set-up.
A fork that was compiled with a single-precision square root draws widths that differ in the last bit, and
ends where one is above 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from imae.layers.caffe_random import CaffeRandom
from imae.layers.forks.annotations import Box, coverage, jaccard_overlap
from imae.prototxt.caffe_pb2 import BatchSampler, SampleConstraint, Sampler

f32 = np.float32


def sampler_problem(param: BatchSampler) -> str | None:
    """What is wrong with a sampler that would draw, or None."""
    s = param.sampler
    if not (param.use_original_image and param.max_trials):
        return None
    if not 0 < s.min_scale <= s.max_scale <= 1:
        return f"0 < min_scale <= max_scale <= 1; got {s.min_scale:g} and {s.max_scale:g}"
    if not 0 < s.min_aspect_ratio <= s.max_aspect_ratio < float(np.finfo(f32).max):
        return (
            "0 < min_aspect_ratio <= max_aspect_ratio, both finite; "
            f"got {s.min_aspect_ratio:g} and {s.max_aspect_ratio:g}"
        )
    return None


def sampled_windows(
    samplers: Sequence[BatchSampler], objects: Sequence[Box], random: CaffeRandom
) -> list[Box]:
    """The windows that the samplers keep of an image with these objects."""
    windows = []
    for param in samplers:
        left = param.max_sample if param.HasField("max_sample") else param.max_trials
        for _ in range(param.max_trials if param.use_original_image else 0):
            if not left:
                break
            window = draw_window(param.sampler, random)
            if meets(param.sample_constraint, window, objects):
                windows.append(window)
                left -= 1
    return windows


def draw_window(param: Sampler, random: CaffeRandom) -> Box:
    """A window at random."""
    scale = float(random.uniform_value(param.min_scale, param.max_scale))
    aspect = random.uniform_value(param.min_aspect_ratio, param.max_aspect_ratio)
    aspect = min(max(aspect, f32(scale**2)), f32(1 / scale**2))
    root = math.sqrt(aspect)
    width, height = f32(scale * root), f32(scale / root)
    left = random.uniform_value(0, float(f32(1) - width))
    top = random.uniform_value(0, float(f32(1) - height))
    return Box(left, top, left + width, top + height)


def meets(constraint: SampleConstraint, window: Box, objects: Sequence[Box]) -> bool:
    """Whether the window meets the constraint with one of the objects; True without a constraint."""
    kinds = [kind for kind in KINDS if any(constraint.HasField(f"{side}_{kind}") for side in ("min", "max"))]
    if not kinds:
        return True
    met = False
    for box in objects:
        for kind in kinds:
            if not _in_range(constraint, kind, KINDS[kind](window, box)):
                break
            met = True
        if met:  # also where a later kind has failed
            return True
    return False


KINDS: dict[str, Callable[[Box, Box], np.float32]] = {
    "jaccard_overlap": jaccard_overlap,
    "sample_coverage": coverage,
    "object_coverage": lambda window, box: coverage(box, window),
}


def _in_range(constraint: SampleConstraint, kind: str, value: np.float32) -> bool:
    low, high = f"min_{kind}", f"max_{kind}"
    too_low = constraint.HasField(low) and value < f32(getattr(constraint, low))
    too_high = constraint.HasField(high) and value > f32(getattr(constraint, high))
    return not (too_low or too_high)
