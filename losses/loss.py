"""The base of the losses: logits and labels to a scalar, or to a loss for each label.

Both a torch module and a layer of `layers/plugins` call `Loss.compute`, so that there is one arithmetic.

    logits  (N, C, ...), C >= 2
    labels  classes 0 to C - 1, one for each position on the other axes: (N, ...) or (N, 1, ...)
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, TypedDict, get_args

import torch
from torch import Tensor, nn

from imae.files.errors import LossError

Reduction = Literal["mean", "sum", "none"]


class Options(TypedDict, total=False):
    """The arguments that all losses have: see Loss."""

    reduction: Reduction
    ignore_label: int | None


class Loss(nn.Module):
    """A loss of logits and class labels; types define `compute`.

    reduction     "mean" over the labels that are not ignored (0 if there is none), "sum", or "none": the loss
                  of each label, in the labels' shape
    ignore_label  labels with this value have loss and gradient 0, as Caffe's loss_param.ignore_label; None:
                  there is no such label
    classes       the number of classes that the loss is made for; None: any
    """

    classes: int | None = None
    # Single numbers of the constructor, for `extra_repr`.
    settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, reduction: Reduction = "mean", ignore_label: int | None = None) -> None:
        super().__init__()
        if reduction not in get_args(Reduction):
            raise LossError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}")
        self.reduction = reduction
        self.ignore_label = ignore_label

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        index, valid = self._read(logits, labels)
        count: Tensor | float = 1
        if self.reduction == "mean":
            count = max(index.numel(), 1) if valid is None else valid.sum().clamp(min=1)
        loss = self.compute(logits, index, valid, 1, count, self.reduction != "none")
        return loss.reshape(labels.shape) if self.reduction == "none" else loss

    def compute(
        self,
        logits: Tensor,
        index: Tensor,
        valid: Tensor | None,
        axis: int,
        count: Tensor | float,
        reduce: bool = True,
    ) -> Tensor:
        """The losses divided by `count`, summed if `reduce`.

        index   int64 classes in [0, C), shaped like the logits, with size 1 on `axis`, that of the classes
        valid   a mask like `index`, False where a label is ignored; None: none is
        """
        raise LossError(f"{type(self).__name__} defines no compute")

    def _read(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """(index, valid) of `compute`; LossError for labels that do not fit. Nothing waits for a device."""
        name = type(self).__name__
        if logits.dim() < 2 or logits.shape[1] < 2:
            raise LossError(
                f"{name}: logits must have the shape (N, C, ...) with at least 2 classes, got "
                f"{tuple(logits.shape)}"
            )
        if not logits.is_floating_point():
            raise LossError(f"{name}: logits must be floating-point numbers, got {logits.dtype}")
        if self.classes not in (None, logits.shape[1]):
            raise LossError(f"{name} is made for {self.classes} classes, the logits have {logits.shape[1]}")
        shape = (logits.shape[0], 1, *logits.shape[2:])
        if tuple(labels.shape) not in {shape, (logits.shape[0], *logits.shape[2:])}:
            raise LossError(
                f"{name}: logits {tuple(logits.shape)} need labels {(shape[0], *shape[2:])}, got "
                f"{tuple(labels.shape)}"
            )
        index = labels.detach().reshape(shape).long()
        valid = None if self.ignore_label is None else index != self.ignore_label
        classes = logits.shape[1]
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():
            if labels.is_floating_point():
                read = labels.detach().reshape(shape)
                broken = read != index
                if bool(broken.any()):
                    raise LossError(
                        f"{name}: label {float(read[broken][0]):g} is no whole number: "
                        f"labels are classes, for {classes} classes they are 0 to {classes - 1}; mixed or "
                        "smoothed labels are no input of this loss"
                    )
            wrong = (index < 0) | (index >= classes)
            if valid is not None:
                wrong &= valid
            if bool(wrong.any()):
                raise LossError(
                    f"{name}: label {int(index[wrong][0])} is out of range: there are {classes} classes, so "
                    f"labels are 0 to {classes - 1}; mend the labels, or name one to ignore by ignore_label"
                )
        # On a device a wrong label stays wrong, and torch's own check of an index stops the program.
        return (index if valid is None else index.masked_fill(~valid, 0)), valid

    def extra_repr(self) -> str:
        named = [f"{name.rstrip('_')}={getattr(self, name):g}" for name in self.settings]
        named += [f"reduction={self.reduction!r}"] * (self.reduction != "mean")
        named += [f"ignore_label={self.ignore_label}"] * (self.ignore_label is not None)
        return ", ".join(named)


def check_number(name: str, value: float, least: float = 0, exclusive: bool = False) -> None:
    """LossError unless `value` is finite and at least `least`, or above it if `exclusive`."""
    if not (least < value if exclusive else least <= value) or not value < math.inf:
        bound = f" above {least:g}" if exclusive else f", {least:g} or above"
        raise LossError(f"{name} must be a number{bound}, got {value:g}")


def check_share(name: str, value: float) -> None:
    """LossError unless `value` is a share, from 0 to 1."""
    if not 0 <= value <= 1:
        raise LossError(f"{name} must be a number from 0 to 1, got {value:g}")


def least_log(dtype: torch.dtype) -> float:
    """What a logarithm is raised to, so that no sum of such ones is infinite."""
    return max(-1e30, torch.finfo(dtype).min / 16)
