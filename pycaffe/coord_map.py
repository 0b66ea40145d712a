"""Map coordinates of one top to those of another, through the layers that connect them; used for cropping.

A map (axis, scale, shift) takes coordinate x of one top to scale * x + shift of the other, on all spatial
axes from `axis` + 1 on. Axis None means that the layer does not change coordinates. Scale and shift are
arrays if the axes differ.

    Convolution, Pooling, Im2col    scale 1 / stride    shift (pad - (kernel - 1) / 2) / stride
    Deconvolution                   scale stride        shift (kernel - 1) / 2 - pad
    Crop                            scale 1             shift -offset

kernel is the kernel's extent, dilation included. Caffe: python/caffe/coord_map.py. Differs: Clip and Swish
count as pointwise layers, which do not change coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from imae.files.errors import ImaeError
from imae.pycaffe.net_spec import Function, Top
from imae.pycaffe.net_spec import layers as L

Map = tuple[int | None, Any, Any]

IDENTITY: Map = (None, 1, 0)
PASS_THROUGH_LAYERS = [
    "AbsVal", "BatchNorm", "Bias", "BNLL", "Clip", "Dropout", "Eltwise", "ELU", "Exp", "Log", "LRN", "MVN",
    "Power", "PReLU", "ReLU", "Scale", "Sigmoid", "Split", "Swish", "TanH", "Threshold",
]  # fmt: skip


class UndefinedMapException(ImaeError):
    """The layer has no coordinate map."""


class AxisMismatchException(ImaeError):
    """Two maps start at different axes."""


class UnconnectedError(ImaeError, RuntimeError):
    """No spatial layers connect two tops."""


class CropError(ImaeError, AssertionError):
    """One top cannot be cropped to the other."""


def conv_params(fn: Function) -> tuple[int, Any, Any, Any]:
    """(axis, stride, extent of the kernel, pad) of a Convolution, Deconvolution, Im2col or Pooling."""
    param = fn.params.get("convolution_param", fn.params.get("pooling_param", fn.params))
    sided = [f"{field}_{side}" for field in ("kernel", "pad", "stride") for side in "hw"]
    if unsupported := [name for name in sided if name in param]:
        raise CropError(
            f"{fn.type_name}: cropping does not support {', '.join(unsupported)}; give lists instead"
        )
    if "kernel_size" not in param:
        raise UndefinedMapException(f"{fn.type_name} without kernel_size maps no coordinates")
    kernel, dilation, stride, pad = (
        np.array(param.get(name, default), ndmin=1)
        for name, default in (("kernel_size", 0), ("dilation", 1), ("stride", 1), ("pad", 0))
    )
    return param.get("axis", 1), stride, (kernel - 1) * dilation + 1, pad


def crop_params(fn: Function) -> tuple[int, Any]:
    """(axis, offset) of a Crop."""
    param = fn.params.get("crop_param", fn.params)
    return param.get("axis", 2), np.array(param.get("offset", 0), ndmin=1)


def coord_map(fn: Function) -> Map:
    """The map of one layer, from its top to its bottom."""
    if fn.type_name in ("Convolution", "Pooling", "Im2col"):
        axis, stride, kernel, pad = conv_params(fn)
        return axis, 1 / stride, (pad - (kernel - 1) / 2) / stride
    if fn.type_name == "Deconvolution":
        axis, stride, kernel, pad = conv_params(fn)
        return axis, stride, (kernel - 1) / 2 - pad
    if fn.type_name == "Crop":
        axis, offset = crop_params(fn)
        return axis - 1, 1, -offset  # a Crop's axis is the first one that it crops
    if fn.type_name in PASS_THROUGH_LAYERS:
        return IDENTITY
    raise UndefinedMapException(f"a layer of type {fn.type_name} maps no coordinates")


def compose(base_map: Map, next_map: Map) -> Map:
    """x -> base_map(next_map(x))."""
    axis, scale, shift = base_map
    next_axis, next_scale, next_shift = next_map
    if axis is None:
        axis = next_axis
    elif next_axis not in (None, axis):
        raise AxisMismatchException(f"one map is about axis {axis}, the next about axis {next_axis}")
    return axis, scale * next_scale, scale * next_shift + shift


def inverse(coord_map: Map) -> Map:
    """The map in the other direction."""
    axis, scale, shift = coord_map
    return axis, 1 / scale, -shift / scale


def coord_map_from_to(top_from: Top, top_to: Top) -> Map:
    """The map between two tops, through the nearest blob that both are computed from."""
    from_maps = _maps_below(top_from)
    for top, to_map in _maps_below(top_to).items():
        if top in from_maps:
            return compose(to_map, inverse(from_maps[top]))
    raise UnconnectedError("Could not compute map between tops; are they connected by spatial layers?")


def _maps_below(top: Top) -> dict[Top, Map]:
    """The maps from a top to all blobs below it that can be reached, the nearest first."""
    maps, reached = {top: IDENTITY}, [top]
    for above in reached:
        try:
            layer_map = coord_map(above.fn)
        except UndefinedMapException:
            continue
        for bottom in _mapped_bottoms(above.fn):
            if bottom not in maps:
                maps[bottom] = compose(maps[above], layer_map)
                reached.append(bottom)
    return maps


def _mapped_bottoms(fn: Function) -> Sequence[Top]:
    """The bottoms that the layer's map holds for: all, except a Crop's second one, which gives a size."""
    return fn.inputs[:1] if fn.type_name == "Crop" else fn.inputs


def crop(top_from: Top, top_to: Top) -> Top:
    """A Crop that cuts `top_from` to the region of `top_to`; CropError if there is no such crop."""
    axis, scale, shift = coord_map_from_to(top_from, top_to)
    scale, shift = np.asarray(scale), np.asarray(shift)
    if (scale != 1).any():
        raise CropError(f"scale mismatch on crop (a = {scale})")
    if (shift > 0).any():
        raise CropError(f"cannot crop negative offset (b = {shift})")
    if (shift != shift.round()).any():
        raise CropError(f"cannot crop noninteger offset (b = {shift})")
    offset = [int(-value) for value in shift.ravel()]
    top: Top = L.Crop(
        top_from, top_to, crop_param={"axis": 2 if axis is None else axis + 1, "offset": offset}
    )
    return top
