"""The arithmetic of SSD's boxes: codes, overlaps, suppression, matching.

A box is four numbers on the last axis: xmin, ymin, xmax, ymax, as shares of the image's width and height. All
is computed in the dtype and on the device of the tensors, for all boxes at once.

SSD (weiliu89/caffe, branch ssd): src/caffe/util/bbox_util.cpp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imae.prototxt.caffe_pb2 import PriorBoxParameter, ResizeParameter

# An overlap that is not larger counts as none in the matching.
LEAST_OVERLAP = 1e-6
# A box that is smaller neither stays nor removes others where negatives are chosen (`suppress_for_mining`).
LEAST_SIZE = 1e-5
# Boxes that are compared with each other at once; it bounds the memory, and changes no result.
BLOCK = 256


def decode(
    code: PriorBoxParameter.CodeType, priors: Tensor, variances: Tensor | None, coded: Tensor
) -> Tensor:
    """The boxes that predictions stand for; the last two axes of `coded` are those of `priors`.

    CORNER       corner = prior's corner + v t
    CENTER_SIZE  centre = prior's centre + v t (prior's size), size = prior's size exp(v t)
    CORNER_SIZE  corner = prior's corner + v t (prior's size)

    variances   None: 1, the target's code has them
    """
    if variances is not None:
        coded = variances * coded
    if code == PriorBoxParameter.CORNER:
        return priors + coded
    size = priors[..., 2:] - priors[..., :2]
    if code == PriorBoxParameter.CORNER_SIZE:
        return priors + coded * torch.cat([size, size], -1)
    centre = coded[..., :2] * size + (priors[..., :2] + priors[..., 2:]) / 2
    half = coded[..., 2:].exp() * size / 2
    return torch.cat([centre - half, centre + half], -1)


def encode(
    code: PriorBoxParameter.CodeType, priors: Tensor, variances: Tensor | None, boxes: Tensor
) -> Tensor:
    """The inverse of `decode`."""
    size = priors[..., 2:] - priors[..., :2]
    if code == PriorBoxParameter.CENTER_SIZE:
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2 - (priors[..., :2] + priors[..., 2:]) / 2
        coded = torch.cat([centre / size, ((boxes[..., 2:] - boxes[..., :2]) / size).log()], -1)
    else:
        coded = boxes - priors
        if code == PriorBoxParameter.CORNER_SIZE:
            coded = coded / torch.cat([size, size], -1)
    return coded if variances is None else coded / variances


def sizes(boxes: Tensor, extra: float = 0) -> Tensor:
    """The areas; 0 where a corner is on the wrong side. `extra`: added to width and height (pixels: 1)."""
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return torch.where((width < 0) | (height < 0), 0, (width + extra) * (height + extra))


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Intersection by union of each box of `a` (A, 4) with each of `b` (B, 4): (A, B).

    0 where the intersection has no area.
    """
    width, height = _shared_sides(a, b)
    shared = width.clamp(min=0) * height.clamp(min=0)
    return torch.where(shared > 0, shared / (sizes(a)[:, None] + sizes(b) - shared), 0)


def pixel_overlaps(a: Tensor, b: Tensor, a_sizes: Tensor, b_sizes: Tensor) -> Tensor:
    """`overlaps` of boxes in pixels, of which both ends belong to the box; the areas are those given."""
    width, height = _shared_sides(a, b)
    # The fork takes the point (0, 0) for the intersection of boxes that are apart.
    apart = ((b[:, :2] > a[:, None, 2:]) | (b[:, 2:] < a[:, None, :2])).any(-1)
    width, height = torch.where(apart, 1, width + 1), torch.where(apart, 1, height + 1)
    shared = width * height
    return torch.where((width > 0) & (height > 0), shared / (a_sizes[:, None] + b_sizes - shared), 0)


def _shared_sides(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height of the intersections (A, B); below 0 where boxes are apart."""
    width, height = (
        torch.minimum(a[:, None, axis + 2], b[:, axis + 2]) - torch.maximum(a[:, None, axis], b[:, axis])
        for axis in (0, 1)
    )
    return width, height


def suppress(boxes: Tensor, threshold: float, eta: float = 1) -> Tensor:
    """Which boxes stay, a mask: those that overlap no better one that stays by more than the threshold.

    boxes   the best first
    eta     below 1: with each box that stays the threshold is multiplied by it as long as it is above 0.5
    """
    stays = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    if eta < 1:
        return _suppress_adaptively(boxes, threshold, eta, stays)
    for start in range(0, len(boxes), BLOCK):
        block = boxes[start : start + BLOCK]
        free = torch.ones(len(block), dtype=torch.bool, device=boxes.device)
        if start:
            # `not <=`: an overlap that is NaN removes a box, as in the fork.
            free = (overlaps(block, boxes[:start][stays[:start]]) <= threshold).all(1)
        removes = (~(overlaps(block, block) <= threshold)).tril(-1)  # [i, j]: j is better and removes i
        kept = free
        while True:
            # What stays among the first n is right after n rounds; usually two or three are enough.
            again = free & ~(removes & kept).any(1)
            if torch.equal(again, kept):
                break
            kept = again
        stays[start : start + BLOCK] = kept
    return stays


def _suppress_adaptively(boxes: Tensor, threshold: float, eta: float, stays: Tensor) -> Tensor:
    largest = torch.zeros(len(boxes), dtype=boxes.dtype, device=boxes.device)  # overlap with one that stays
    limit = torch.tensor(threshold, dtype=torch.float32, device=boxes.device)  # the fork has it as a float
    for index in range(len(boxes)):
        stays[index] = largest[index] <= limit
        overlap = overlaps(boxes, boxes[index : index + 1])[:, 0]
        largest = torch.where(stays[index], torch.maximum(largest, overlap), largest)
        limit = torch.where(stays[index] & (limit > 0.5), limit * eta, limit)
    return stays


def suppress_for_mining(boxes: Tensor, threshold: float, top_k: int) -> Tensor:
    """The indices of the boxes that stay among the first `top_k` (-1: all), at most as many.

    boxes   the best first; too small ones are left out
    """
    if top_k > -1:
        boxes = boxes[:top_k]
    large = (sizes(boxes) >= LEAST_SIZE).nonzero().squeeze(1)
    return large[suppress(boxes[large], threshold)]


def cross_boundary(boxes: Tensor) -> Tensor:
    """Which boxes leave the image."""
    return ((boxes < 0) | (boxes > 1)).any(-1)


def match(
    boxes: Tensor, truths: Tensor, threshold: float | None, outside: Tensor | None
) -> tuple[Tensor, Tensor]:
    """For each box the index of its truth, -1: none, -2: left out; and its largest overlap with any truth.

    First each truth gets a box of its own: the pair with the largest overlap, then the next among what is
    left (equal ones: the lower box, then the earlier truth). Then each other box gets the truth that it
    overlaps most, if that is at least the threshold.

    threshold   None: truths get one box each, and that is all
    outside     mask of the boxes to leave out
    """
    index = torch.full((len(boxes),), -1, device=boxes.device)
    if not len(truths) or not len(boxes):
        return index, boxes.new_zeros(len(boxes))
    overlap = overlaps(boxes, truths)
    overlap = torch.where(overlap > LEAST_OVERLAP, overlap, 0)
    if outside is not None:
        overlap = overlap.masked_fill(outside[:, None], 0)
        index = index.masked_fill(outside, -2)
    largest, best = overlap.max(1)
    rows = torch.arange(len(boxes), device=boxes.device)[:, None]
    columns = torch.arange(len(truths), device=boxes.device)
    free = overlap
    for _ in range(len(truths)):  # no value is read on the host
        pair = free.argmax()  # the first of equal ones
        is_pair = free.amax() > 0
        row, column = rows == pair // len(truths), columns == pair % len(truths)
        index = torch.where(row[:, 0] & is_pair, pair % len(truths), index)
        free = free.masked_fill((row | column) & is_pair, 0)
    one_to_one = index > -1
    own = overlap.gather(1, index.clamp(min=0)[:, None])[:, 0]
    if threshold is not None:
        index = torch.where((index == -1) & (largest > 0) & (largest >= threshold), best, index)
    return index, torch.where(one_to_one, own, largest)


def output_boxes(
    boxes: Tensor, height: int, width: int, resize: ResizeParameter | None
) -> tuple[Tensor, Tensor]:
    """Boxes (K, 4) in pixels of the image before it was resized, and the areas that the fork gives them.

    resize   how the image was resized; None: to the net's input, whatever its shape was
    """
    if resize is None or resize.resize_mode == ResizeParameter.WARP:
        return _scaled(boxes.clamp(0, 1), height, width)
    if resize.resize_mode == ResizeParameter.FIT_SMALL_SIZE:
        if not resize.height_scale or not resize.width_scale:
            return _scaled(boxes.clamp(0, 1), height, width)
        scaled = _scaled(boxes, resize.height_scale, resize.width_scale)[0]
        limits = scaled.new_tensor([width, height, width, height])
        scaled = torch.minimum(scaled, limits).clamp(min=0)
        return scaled, sizes(scaled)
    # FIT_LARGE_SIZE_AND_PAD: undo the padding
    aspect = width / height
    x = y = 0.0
    if aspect > resize.width / resize.height:
        y = (resize.height - resize.width / aspect) / 2 / resize.height
    else:
        x = (resize.width - resize.height * aspect) / 2 / resize.width
    low, high = boxes.new_tensor([x, y, x, y]), boxes.new_tensor([1 - x, 1 - y, 1 - x, 1 - y])
    apart = (boxes[:, :2] >= high[:2]) | (boxes[:, 2:] <= low[:2])
    projected = (boxes - low) / (high - low)
    # A box in the padding stays as it is.
    projected = torch.where(apart.any(1, keepdim=True), boxes, projected)
    return _scaled(projected.clamp(0, 1), height, width)


def _scaled(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    scaled = boxes * boxes.new_tensor([width, height, width, height])
    return scaled, sizes(scaled, 1 if width > 1 or height > 1 else 0)
