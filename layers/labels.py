"""Bottoms that are read as whole numbers, class labels and indices: their checks and their place.

`LabelReader` (layer.py) reads the values.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from imae.layers.layer import Layer, Shape
from imae.prototxt.caffe_pb2 import AccuracyParameter, LossParameter


def ignored_label(param: LossParameter | AccuracyParameter) -> int | None:
    """The label whose items do not count, if there is one."""
    return param.ignore_label if param.HasField("ignore_label") else None


def check_labels(layer: Layer, axis_name: str, axis: int, predictions: Shape, labels: Shape) -> None:
    """LayerError unless there is one label for each place beside the class axis."""
    if prod(labels) != prod(predictions[:axis] + predictions[axis + 1 :]):
        raise layer.error(
            f"Number of labels must match number of predictions; e.g., if {axis_name} axis == 1 and "
            "prediction shape is (N, C, H, W), label count (number of labels) must be N*H*W, with integer "
            "values in {0, 1, ..., C-1}.; "
            f"got predictions {predictions}, labels {labels}, axis {axis}"
        )


def place_labels(label: Tensor, predictions: Tensor, axis: int) -> Tensor:
    """The labels in the shape of the predictions, with size 1 on the class axis."""
    return label.reshape(*predictions.shape[:axis], 1, *predictions.shape[axis + 1 :])


def refuse_gradient(layer: Layer, bottom_index: int, bottom: Tensor, message: str) -> None:
    """Let the backward pass of this call of the layer be a LayerError if a bottom that has none asks for a
    gradient. As in Caffe, the forward pass works all the same.
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
