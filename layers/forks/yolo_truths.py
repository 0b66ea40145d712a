"""The boxes of a label, for YOLO's losses and evaluation, and which cells they belong to.

A label has one of two forms: (N, 1, B, 5), rows of class, centre x, centre y, width, height of each image; or
(1, 1, G, 8), rows of image, class + 1, instance, xmin, ymin, xmax, ymax, difficult of a batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from imae.layers.autograd import apply
from imae.layers.forks.yolo_boxes import overlap
from imae.layers.labels import LabelReader
from imae.layers.layer import Layer


class Truths(NamedTuple):
    """The boxes of each image, B of them, some of which may not count.

    boxes     (N, B, 4)
    labels    (N, B), classes as integers, 0 where a box does not count
    overlaps  (N, B), whether a prediction that overlaps the box is no false one
    matched   (N, B), whether the box is to be predicted
    """

    boxes: Tensor
    labels: Tensor
    overlaps: Tensor
    matched: Tensor


class TruthReader(torch.nn.Module):
    """Reads labels, and checks classes, images and centres without a device sync."""

    def __init__(self, owner: Layer, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.label = LabelReader(owner)
        self.image = LabelReader(
            owner,
            -1,
            lambda image, images: f"the label has a box of image {image}; the batch has {images}, from 0",
        )
        self.cell = LabelReader(
            owner,
            message=lambda cell, cells: (
                f"the label has a box whose centre is outside of the image, in cell {cell} of {cells}, from 0"
            ),
        )

    def per_image(self, label: Tensor) -> Truths:
        """Of a label (N, 1, B, 5).

        The list of an image's boxes ends where x is 0 for `overlaps`, and where the width is 0 for `matched`.
        """
        rows = label.reshape(len(label), label.shape[2], 5)
        ends = [(rows[..., column] != 0).cumprod(1).bool() for column in (1, 3)]
        rows, overlaps, matched = self._without_end(rows, *ends)
        return self._truths(rows[..., 0], rows[..., 1:], overlaps, matched)

    def per_batch(self, label: Tensor, images: int) -> Truths:
        """Of a label (1, 1, G, 8), in whose rows the image -1 is none."""
        rows = label.reshape(label.shape[2], 8)
        image, counts = self.image(rows[:, 0], images)
        assert counts is not None  # an image that is ignored was given
        is_of = (image.unsqueeze(1) == torch.arange(images, device=label.device)) & counts.unsqueeze(1)
        place = is_of.long().cumsum(0).gather(1, image.unsqueeze(1)).squeeze(1) - 1
        slots = torch.where(counts, image * len(rows) + place, images * len(rows))
        low, high = rows[:, 3:5], rows[:, 5:7]
        row = torch.cat((rows[:, 1:2] - 1, (low + high) / 2, high - low, torch.ones_like(low[:, :1])), 1)
        table = row.new_zeros(images * len(rows) + 1, 6).index_copy(0, slots, row)
        table = table[:-1].reshape(images, len(rows), 6)
        present = table[..., 5] > 0
        table, present, _ = self._without_end(table, present, present)
        return self._truths(table[..., 0], table[..., 1:5], present, present)

    def cells(self, truths: Truths, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Row and column (N, B) of the cell with each box's centre; 0 where a box does not count."""
        centres = torch.where(truths.matched.unsqueeze(-1), truths.boxes[..., :2], 0)
        column, _ = self.cell(centres[..., 0] * width, width)
        row, _ = self.cell(centres[..., 1] * height, height)
        return row, column

    def _truths(self, label: Tensor, boxes: Tensor, overlaps: Tensor, matched: Tensor) -> Truths:
        labels, _ = self.label(torch.where(matched, label, 0), self.classes)
        return Truths(boxes, labels, overlaps, matched)

    def _without_end(self, rows: Tensor, *masks: Tensor) -> tuple[Tensor, ...]:
        """Without the places that no image uses, where to know them the host need not wait."""
        if not LabelReader.at_once(rows):
            return rows, *masks
        used = torch.stack(masks).flatten(0, 1).any(0)
        count = int(used.nonzero().max()) + 1 if used.any() else 0
        return rows[:, :count], *(mask[:, :count] for mask in masks)


def best_overlap(boxes: Tensor, truths: Truths, overlaps: Tensor) -> Tensor:
    """The largest overlap, 0 at least, of each of the boxes (N, ...) with a truth.

    overlaps  (N, ..., B): of each box with each truth
    """
    counts = truths.overlaps[(slice(None), *[None] * (boxes.dim() - 2))]
    found = torch.where(counts, overlaps.nan_to_num(0), 0)
    return found.amax(-1).clamp(min=0) if found.shape[-1] else boxes.new_zeros(boxes.shape[:-1])


def overlap_of_sizes(sizes: Tensor, others: Tensor) -> Tensor:
    """The overlap of two boxes with the same centre."""
    return overlap(*(torch.cat((torch.zeros_like(size), size), -1) for size in (sizes, others)))


def one_hot(labels: Tensor, classes: int, like: Tensor) -> Tensor:
    """(K, classes): 1 at the label, else 0. (torch's own asks some devices for the labels.)"""
    return (labels.unsqueeze(1) == torch.arange(classes, device=labels.device)).to(like.dtype)


def ends_of_runs(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of values that are written to `rows` one after another: which are the first and the last of a row.

    rows  (K), from 0 to count; `count` is no row
    """
    order = torch.arange(len(rows), device=rows.device)
    first = order.new_full((count + 1,), len(rows)).scatter_reduce(0, rows, order, "amin")
    last = order.new_full((count + 1,), -1).scatter_reduce(0, rows, order, "amax")
    is_row = rows < count
    return is_row & (first[rows] == order), is_row & (last[rows] == order)


def loss_with_gradient(x: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
    """`loss`, whose gradient with respect to x is `gradient`."""
    return apply(_LossWithGradient, x, loss, gradient)


class _LossWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, top_diff: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return top_diff * gradient, None, None
