"""Nets whose data layers are replaced by Input layers, optionally without drawing weights."""

from __future__ import annotations

import torch
from torch import Tensor

from imae.layers.layer import DataLayer
from imae.layers.registry import layer_class
from imae.net.net import Net
from imae.prototxt import TRAIN, NetParameter, Phase


def fed(net: NetParameter, *shape: int, phase: Phase = TRAIN) -> NetParameter:
    """The net with an Input layer of `data` (of this shape) and `label` in place of its data layers."""
    result = NetParameter(name=net.name)
    result.state.phase = phase
    shapes = [{"dim": shape}, {"dim": shape[:1]}]
    result.layer.add(name="data", type="Input", top=["data", "label"], input_param={"shape": shapes})
    result.layer.extend(layer for layer in net.layer if not issubclass(layer_class(layer.type), DataLayer))
    return result


def unfilled(net: NetParameter) -> NetParameter:
    """The net with weights of 0, which is built much faster."""
    result = NetParameter()
    result.CopyFrom(net)
    for layer in result.layer:
        if layer.type == "Convolution":
            layer.convolution_param.ClearField("weight_filler")
        elif layer.type == "InnerProduct":
            layer.inner_product_param.ClearField("weight_filler")
    return result


def learned(net: Net) -> int:
    """The number of values that the net learns; BatchNorm's statistics do not count."""
    return sum(blob.numel() for blob, mult in zip(net.learnable, net.lr_mults, strict=True) if mult)


def feed(*shape: int, classes: int) -> dict[str, Tensor]:
    """Normally distributed `data` and uniform `label`."""
    generator = torch.Generator().manual_seed(5)
    data = torch.randn(shape, generator=generator)
    return {"data": data, "label": torch.randint(classes, shape[:1], generator=generator).float()}
