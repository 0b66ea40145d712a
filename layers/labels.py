"""Bottoms that hold whole numbers (class labels, indices): how they are read, checked and reshaped."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn

from imae.files.errors import LayerError
from imae.layers.layer import Layer, Shape
from imae.prototxt.caffe_pb2 import AccuracyParameter, LossParameter


class LabelReader(nn.Module):
    """Labels of a loss or an accuracy: float blob to class indices, checked without a device sync.

    A label outside [0, classes) that is not `ignore_label` is wrong. On the CPU it raises at once. On a
    device the first wrong label is stored, and `check` raises it; the solver calls `check` when it reads the
    loss. A program of torch.export reads no values: it takes the nearest class instead.

    owner     the layer that errors name
    message   (label, classes) -> error text for a wrong label; the default is about class labels
    """

    NONE_SEEN = -(2**40)
    first_wrong: Tensor

    def __init__(
        self,
        owner: Layer,
        ignore_label: int | None = None,
        message: Callable[[int, int], str] | None = None,
    ) -> None:
        super().__init__()
        self.ignore_label = ignore_label
        self._message = message or self._wrong_class
        self._owner = [owner]  # in a list, so that torch does not register the owner as a child of its child
        self.register_buffer("first_wrong", torch.tensor(self.NONE_SEEN), persistent=False)
        self.classes = 0

    def forward(self, label: Tensor, classes: int) -> tuple[Tensor, Tensor | None]:
        """(indices, valid): indices int64 in [0, classes), valid a mask or None where no label is ignored.

        Labels are cut to integers towards zero, as Caffe casts them.
        """
        self.classes = classes
        index = label.long()
        valid = None if self.ignore_label is None else index != self.ignore_label
        wrong = (index < 0) | (index >= classes)
        if valid is not None:
            wrong &= valid
        if torch.compiler.is_exporting():
            pass
        elif self.at_once(label):
            if bool(wrong.any()):
                raise self._error(int(index[wrong][0]))
        else:
            seen = torch.take(index, wrong.to(torch.uint8).argmax())  # index[...] would wait for the device
            is_first = wrong.any() & (self.first_wrong == self.NONE_SEEN)
            self.first_wrong.copy_(torch.where(is_first, seen, self.first_wrong))
        return index.clamp(0, classes - 1), valid

    @staticmethod
    def at_once(label: Tensor) -> bool:
        """Whether labels can be read without waiting for a device."""
        return label.device.type == "cpu"

    def check(self) -> None:
        """Raise an error for a wrong label seen on a device since the net was built (one sync)."""
        label = int(self.first_wrong)
        if label != self.NONE_SEEN:
            raise self._error(label)

    def _error(self, label: int) -> LayerError:
        return self._owner[0].error(self._message(label, self.classes))

    def _wrong_class(self, label: int, classes: int) -> str:
        ignored = f" (ignore_label is {self.ignore_label})" if self.ignore_label is not None else ""
        return (
            f"label {label} is out of range: there are {classes} classes, so labels are 0 to {classes - 1}"
            f"{ignored}; mend the data, or the num_output of the classifier"
        )


def ignored_label(param: LossParameter | AccuracyParameter) -> int | None:
    """The label whose items are ignored, if there is one."""
    return param.ignore_label if param.HasField("ignore_label") else None


def check_labels(layer: Layer, axis_name: str, axis: int, predictions: Shape, labels: Shape) -> None:
    """LayerError unless there is one label for each position on the axes besides the class axis."""
    if prod(labels) != prod(predictions[:axis] + predictions[axis + 1 :]):
        raise layer.error(
            f"Number of labels must match number of predictions; e.g., if {axis_name} axis == 1 and "
            "prediction shape is (N, C, H, W), label count (number of labels) must be N*H*W, with integer "
            "values in {0, 1, ..., C-1}.; "
            f"got predictions {predictions}, labels {labels}, axis {axis}"
        )


def reshape_labels(label: Tensor, predictions: Tensor, axis: int) -> Tensor:
    """The labels in the shape of the predictions, with size 1 on the class axis."""
    return label.reshape(*predictions.shape[:axis], 1, *predictions.shape[axis + 1 :])


def refuse_gradient(layer: Layer, bottom_index: int, bottom: Tensor, message: str) -> None:
    """Make the backward pass of this call raise a LayerError if a gradient is needed for this bottom.

    As in Caffe, the forward pass works all the same.
    """
    if layer.bottom_need_backward:
        asked = layer.bottom_need_backward[bottom_index]
    elif layer.param.propagate_down:
        asked = layer.param.propagate_down[bottom_index]
    else:
        asked = bottom.requires_grad
    if asked and torch.is_grad_enabled() and layer.refusal is None:
        layer.refusal = layer.error(
            f"{message}; set propagate_down to false for bottom {layer.param.bottom[bottom_index]!r}"
        )
