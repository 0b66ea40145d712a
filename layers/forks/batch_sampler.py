"""Windows that are drawn at random and kept if they hold enough of an object (SSD's data augmentation).

A batch_sampler draws up to max_trials windows, and keeps those that meet its sample_constraint, up to
max_sample of them. Where use_original_image is false it draws none, as in the fork.

A window takes four uniform values: scale, aspect ratio, left side, upper side. The aspect ratio is kept
between scale^2 and 1 / scale^2, so that the window fits. Width is scale * sqrt(aspect), height is
scale / sqrt(aspect), computed in double precision and then rounded.

A constraint is met if one object meets it. Of its kinds (Jaccard overlap, sample coverage, object coverage,
in this order) the first that is set decides. The fork looks at the others, too, but does not forget that an
object has met the first when it fails another.

SSD (weiliu89/caffe): sampler.cpp. Differs: what the fork checks when a window is drawn is checked at set-up.
A fork that was compiled with a single-precision square root draws widths that differ in the last bit, and
ends where one is above 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from imae.layers.caffe_random import CaffeRandom
from imae.layers.forks.annotations import Box, size_of
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


class Objects:
    """The boxes of an image's objects: (N,) arrays of their sides and sizes."""

    def __init__(self, boxes: Sequence[Box]) -> None:
        sides = np.array([box[:4] for box in boxes], f32).reshape(-1, 4)
        self.xmin, self.ymin, self.xmax, self.ymax = sides.T
        self.sizes = np.array([size_of(box) for box in boxes], f32)

    def shared(self, window: Box) -> NDArray[np.float32]:
        """The area of each object in a window."""
        # As the fork's comparisons, also of NaN: max(a, b) is b only where a < b.
        left = np.where(window.xmin < self.xmin, self.xmin, window.xmin)
        top = np.where(window.ymin < self.ymin, self.ymin, window.ymin)
        right = np.where(self.xmax < window.xmax, self.xmax, window.xmax)
        bottom = np.where(self.ymax < window.ymax, self.ymax, window.ymax)
        width, height = right - left, bottom - top
        return np.where((width > 0) & (height > 0), width * height, f32(0))


def sampled_windows(samplers: Sequence[BatchSampler], boxes: Sequence[Box], random: CaffeRandom) -> list[Box]:
    """The windows that the samplers keep of an image with these objects."""
    windows, objects = [], Objects(boxes)
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


def meets(constraint: SampleConstraint, window: Box, objects: Objects) -> bool:
    """Whether the window meets the constraint with one of the objects; True without a constraint."""
    for kind, values_of in KINDS.items():
        low, high = f"min_{kind}", f"max_{kind}"
        if constraint.HasField(low) or constraint.HasField(high):
            values = values_of(window, objects)
            wrong = np.zeros(len(values), np.bool_)
            if constraint.HasField(low):
                wrong |= values < f32(getattr(constraint, low))
            if constraint.HasField(high):
                wrong |= values > f32(getattr(constraint, high))
            return not wrong.all()
    return True


def _jaccard_overlap(window: Box, objects: Objects) -> NDArray[np.float32]:
    shared = objects.shared(window)
    return np.where(shared > 0, shared / (size_of(window) + objects.sizes - shared), f32(0))


def _sample_coverage(window: Box, objects: Objects) -> NDArray[np.float32]:
    shared = objects.shared(window)
    return np.where(shared > 0, shared / size_of(window), f32(0))


def _object_coverage(window: Box, objects: Objects) -> NDArray[np.float32]:
    shared = objects.shared(window)
    return np.where(shared > 0, shared / objects.sizes, f32(0))


KINDS: dict[str, Callable[[Box, Objects], NDArray[np.float32]]] = {
    "jaccard_overlap": _jaccard_overlap,
    "sample_coverage": _sample_coverage,
    "object_coverage": _object_coverage,
}
