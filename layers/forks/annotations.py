"""The boxes of an annotated record, as they follow their image: clipped, projected, resized, mirrored.

All numbers are single precision, rounded after each operation as the fork's are. A box's sides are shares of
the image's width and height. A box that a projection has clipped keeps the size that it had then, and the
overlaps of the next step use that size, as in the fork.

SSD (weiliu89/caffe): bbox_util.cpp, im_transforms.cpp; data_transformer.cpp, TransformAnnotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from imae.files.errors import DataError
from imae.layers.data.image_transform import aspects
from imae.prototxt.caffe_pb2 import AnnotatedDatum, EmitConstraint, NormalizedBBox, ResizeParameter

f32 = np.float32
ZERO, ONE, TWO = f32(0), f32(1), f32(2)


class Box(NamedTuple):
    """The sides of a box; `size`: its area, where it is stored."""

    xmin: np.float32
    ymin: np.float32
    xmax: np.float32
    ymax: np.float32
    difficult: bool = False
    size: np.float32 | None = None


class Annotation(NamedTuple):
    """One object."""

    instance: int
    box: Box


class Group(NamedTuple):
    """The objects of one class."""

    label: int
    annotations: list[Annotation]


def groups_of(record: AnnotatedDatum) -> list[Group]:
    """The annotations of a record."""
    return [
        Group(group.group_label, [Annotation(a.instance_id, _box(a.bbox)) for a in group.annotation])
        for group in record.annotation_group
    ]


def _box(box: NormalizedBBox) -> Box:
    size = f32(box.size) if box.HasField("size") else None
    return Box(f32(box.xmin), f32(box.ymin), f32(box.xmax), f32(box.ymax), box.difficult, size)


def boxes_of(groups: Sequence[Group]) -> list[Box]:
    """All boxes, group after group."""
    return [annotation.box for group in groups for annotation in group.annotations]


# -- sizes and overlaps --------------------------------------------------------------------------------------


def size_of(box: Box) -> np.float32:
    """The area: 0 where a side is negative, else the stored one, else width by height."""
    if box.xmax < box.xmin or box.ymax < box.ymin:
        return ZERO
    if box.size is not None:
        return box.size
    return (box.xmax - box.xmin) * (box.ymax - box.ymin)


def intersection(a: Box, b: Box) -> Box:
    """The box that two boxes share; all 0 where there is none."""
    if b.xmin > a.xmax or b.xmax < a.xmin or b.ymin > a.ymax or b.ymax < a.ymin:
        return Box(ZERO, ZERO, ZERO, ZERO)
    return Box(max(a.xmin, b.xmin), max(a.ymin, b.ymin), min(a.xmax, b.xmax), min(a.ymax, b.ymax))


def coverage(a: Box, b: Box) -> np.float32:
    """The share of `a` that lies in `b`."""
    area = size_of(intersection(a, b))
    return area / size_of(a) if area > 0 else ZERO


def clipped(box: Box) -> Box:
    """The part of a box within the image, with its size stored."""
    xmin, ymin, xmax, ymax = (max(min(side, ONE), ZERO) for side in box[:4])
    cut = Box(xmin, ymin, xmax, ymax, box.difficult)
    return cut._replace(size=size_of(cut))


def projected(source: Box, box: Box) -> Box | None:
    """A box as seen from `source`, a window of the image, clipped; None where nothing of it is inside."""
    outside_x = box.xmin >= source.xmax or box.xmax <= source.xmin
    if outside_x or box.ymin >= source.ymax or box.ymax <= source.ymin:
        return None
    width, height = source.xmax - source.xmin, source.ymax - source.ymin
    seen = clipped(
        Box(
            (box.xmin - source.xmin) / width,
            (box.ymin - source.ymin) / height,
            (box.xmax - source.xmin) / width,
            (box.ymax - source.ymin) / height,
            box.difficult,
        )
    )
    return seen if size_of(seen) > 0 else None


def is_emitted(window: Box, box: Box, constraint: EmitConstraint) -> bool:
    """Whether a box is kept when the image is cut to `window`."""
    if constraint.emit_type == EmitConstraint.MIN_OVERLAP:
        return bool(coverage(box, window) > f32(constraint.emit_overlap))
    x, y = (box.xmin + box.xmax) / TWO, (box.ymin + box.ymax) / TWO
    return bool(window.xmin <= x <= window.xmax and window.ymin <= y <= window.ymax)


# -- resizing ------------------------------------------------------------------------------------------------


def resized(box: Box, param: ResizeParameter, height: int, width: int) -> Box:
    """A box of an image (height, width) in the resized one; the stored size stays."""
    old_height, old_width = f32(height), f32(width)
    new_height, new_width = f32(param.height), f32(param.width)
    old, new = aspects(param, height, width)
    pad_x = pad_y = ZERO
    if param.resize_mode == ResizeParameter.FIT_LARGE_SIZE_AND_PAD:
        if old > new:
            pad_y = (new_height - new_width / old) / TWO
        else:
            pad_x = (new_width - old * new_height) / TWO
    elif param.resize_mode == ResizeParameter.FIT_SMALL_SIZE:
        if old < new:
            new_height = new_width / old
        else:
            new_width = old * new_height

    def low(side: np.float32, old_side: np.float32, new_side: np.float32, pad: np.float32) -> np.float32:
        return (pad + max(ZERO, side * old_side * (new_side - TWO * pad) / old_side)) / new_side

    def high(side: np.float32, old_side: np.float32, new_side: np.float32, pad: np.float32) -> np.float32:
        return (pad + min(new_side, side * old_side * (new_side - TWO * pad) / old_side)) / new_side

    return box._replace(
        xmin=low(box.xmin, old_width, new_width, pad_x),
        ymin=low(box.ymin, old_height, new_height, pad_y),
        xmax=high(box.xmax, old_width, new_width, pad_x),
        ymax=high(box.ymax, old_height, new_height, pad_y),
    )


def extrapolated(box: Box, param: ResizeParameter, height: int, width: int, window: Box) -> Box:
    """A box in units of width_scale and height_scale, where FIT_SMALL_SIZE has resized the image.

    DataError where the cut image is smaller than these.
    """
    wanted = f32(param.height_scale), f32(param.width_scale)
    if param.resize_mode != ResizeParameter.FIT_SMALL_SIZE or not all(wanted):
        return box
    old, new = aspects(param, height, width)
    new_height, new_width = f32(param.height), f32(param.width)
    if old < new:
        new_height = new_width / old
    else:
        new_width = new_height * old
    cut_height = new_height * (window.ymax - window.ymin)
    cut_width = new_width * (window.xmax - window.xmin)
    if cut_width < wanted[1] or cut_height < wanted[0]:
        raise DataError(
            f"the cut image, {cut_height:g} x {cut_width:g}, is smaller than height_scale x width_scale, "
            f"{param.height_scale} x {param.width_scale}; lower these"
        )
    return box._replace(
        xmin=box.xmin * cut_width / wanted[1],
        xmax=box.xmax * cut_width / wanted[1],
        ymin=box.ymin * cut_height / wanted[0],
        ymax=box.ymax * cut_height / wanted[0],
    )


# -- all boxes of a record -----------------------------------------------------------------------------------


def transformed(
    groups: Sequence[Group],
    window: Box,
    constraint: EmitConstraint | None,
    *,
    resize: ResizeParameter | None = None,
    size: tuple[int, int] = (0, 0),
    flip: bool = False,
) -> list[Group]:
    """The annotations of an image that is resized, cut to `window` and mirrored; groups that are left.

    constraint   which boxes are kept at all; None: those of which a part is inside
    size         (height, width) of the image before the resizing
    """
    if resize is not None and 0 in size:
        raise DataError(
            f"its height and width are {size[0]} and {size[1]}, which its boxes need to be resized; "
            "store them in the Datum"
        )
    changed = []
    for group in groups:
        annotations = []
        for instance, box in group.annotations:
            if resize is not None:
                box = resized(box, resize, *size)
            if constraint is not None and not is_emitted(window, box, constraint):
                continue
            seen = projected(window, box)
            if seen is None:
                continue
            if flip:
                seen = seen._replace(xmin=ONE - seen.xmax, xmax=ONE - seen.xmin)
            if resize is not None:
                seen = extrapolated(seen, resize, *size, window)
            annotations.append(Annotation(instance, seen))
        if annotations:
            changed.append(Group(group.label, annotations))
    return changed
