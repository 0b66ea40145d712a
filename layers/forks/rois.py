"""Bottoms of regions of interest (ROIs), (R, 5): image, x1, y1, x2, y2; shapes as these forks count axes."""

from __future__ import annotations

from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imae.layers.labels import LabelReader
from imae.layers.layer import Layer, Shape
from imae.layers.onnx_graph import OnnxGraph
from imae.layers.precision import at_least_single

FAR = 2.0**30  # no edge of a bin lies further out; keeps edges within integers


def four_axes(layer: Layer, bottom_index: int, shape: Shape) -> Shape:
    """The shape with four axes: absent ones count as 1, as in Caffe's num(), channels() and so on."""
    if len(shape) > 4:
        raise layer.error(f"bottom[{bottom_index}] may have four axes at most; got {tuple(shape)}")
    return (*shape, 1, 1, 1, 1)[:4]


def check_rois(layer: Layer, bottom_index: int, shape: Shape) -> int:
    """The number of ROIs; LayerError unless each is five numbers."""
    if not shape or prod(shape[1:]) != 5:
        raise layer.error(
            f"bottom[{bottom_index}] must be (R, 5), for each of R ROIs: image, x1, y1, x2, y2; "
            f"got {tuple(shape)}"
        )
    return shape[0]


def image_reader(layer: Layer) -> LabelReader:
    """Reads and checks the ROIs' image numbers."""
    return LabelReader(
        layer,
        message=lambda image, images: (
            f"an ROI is of image {image}, but the map has {images} images, so they are 0 to {images - 1}"
        ),
    )


def round_away(x: Tensor) -> Tensor:
    """To the nearest whole number, halves away from zero, as C rounds; what is no number becomes 0."""
    whole = x.trunc()
    rounded = whole + x.sign() * ((x - whole).abs() >= 0.5)
    return torch.nan_to_num(rounded, nan=0, posinf=FAR, neginf=-FAR).clamp(-FAR, FAR)


def number(graph: OnnxGraph, value: float) -> str:
    """A number as a constant of a graph."""
    return graph.constant(np.array(value, np.float32))


def rounded(graph: OnnxGraph, value: str) -> str:
    """`round_away` in a graph: its own Round goes to the even neighbour."""
    from onnx import TensorProto  # here, because it is slow to import

    size = graph.node("Abs", [value])
    whole = graph.node("Floor", [size])
    up = graph.node("GreaterOrEqual", [graph.node("Sub", [size, whole]), number(graph, 0.5)])
    whole = graph.node("Add", [whole, graph.node("Cast", [up], to=TensorProto.FLOAT)])
    return graph.node("Mul", [whole, graph.node("Sign", [value])])


def in_enough_bits(rois: Tensor) -> Tensor:
    """ROIs by row, in single precision at least: bins are not to be computed in less."""
    return at_least_single(rois.reshape(len(rois), 5))


def example_rois(rois: int, images: int, height: float, width: float) -> NDArray[np.float32]:
    """Different ROIs in maps of this height and width, for the check of an export."""
    generator = np.random.default_rng(rois)
    size = np.array([width, height, width, height])
    corners = np.sort(generator.random((rois, 2, 2)), axis=1).reshape(rois, 4) * size
    return np.concatenate([generator.integers(0, images, (rois, 1)), corners], 1).astype(np.float32)
