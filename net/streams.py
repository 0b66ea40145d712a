"""What the next pass depends on besides the weights: data positions, random numbers, states of layers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imae.files.errors import SnapshotError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.common.dropout import Dropout
from imae.layers.layer import DataLayer, Layer
from imae.layers.vision.pooling import PoolingMethod
from imae.net.net import Net

logger = logging.getLogger(__name__)

Array = NDArray[np.generic]


class Streams:
    """The streams of a solver's nets.

    random   the run's random numbers
    nets     the train net, then the test nets
    device   where they compute
    masks    whether the device draws random numbers, too (dropout masks)
    """

    def __init__(
        self, random: CaffeRandom, nets: Sequence[Net], device: torch.device, masks: bool = False
    ) -> None:
        self.random, self.nets, self.device, self.masks = random, nets, device, masks

    def get_state(self) -> dict[str, Any]:
        """The state from which `set_state` continues: numbers, bytes and arrays in dicts and lists."""
        state: dict[str, Any] = {
            "random": self.random.get_state(),
            "data": [{layer.name: layer.get_state() for layer in net.data_layers()} for net in self.nets],
            "layers": [
                {layer.name: own for layer in _other_layers(net) if (own := layer.get_state())}
                for net in self.nets
            ],
            "buffers": [
                # copies: the next pass writes to the buffers
                {name: buffer.to("cpu", copy=True).numpy() for name, buffer in _kept_buffers(net).items()}
                for net in self.nets
            ],
        }
        if self.masks:
            state["device_random"] = torch.cuda.get_rng_state(self.device).numpy()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where `get_state` was called; SnapshotError or KeyError for a state of other nets."""
        self.random.set_state(state["random"])
        if self.masks and "device_random" in state:
            torch.cuda.set_rng_state(torch.from_numpy(state["device_random"]), self.device)
        for net, states in zip(self.nets, state.get("layers", ()), strict=False):  # earlier versions: none
            for other in _other_layers(net):
                if other.name in states:
                    other.set_state(states[other.name])
        for net, data, buffers in zip(self.nets, state["data"], state["buffers"], strict=False):
            for layer in net.data_layers():
                if layer.name in data:
                    layer.set_state(data[layer.name])
            kept = _kept_buffers(net)
            layers: dict[str, list[Layer]] = {}
            for step in net.steps:
                layers.setdefault(step.layer.name, []).append(step.layer)
            for name, values in buffers.items():
                layer_name, _, buffer_name = name.rpartition("/")
                for owner in layers.get(layer_name, []) if name in kept else []:
                    saved = _saved_buffer(kept[name], values, name)
                    buffer: Tensor = getattr(owner, buffer_name)
                    if saved.shape == buffer.shape:
                        buffer.copy_(saved)  # in-place, since a CUDA graph reads this memory
                    else:
                        setattr(owner, buffer_name, saved.to(self.device))


def _saved_buffer(kept: Tensor, values: Array, name: str) -> Tensor:
    """The saved values of a buffer; SnapshotError unless their type and shape fit."""
    saved = torch.from_numpy(values)
    if saved.dtype != kept.dtype or (kept.numel() and saved.shape != kept.shape):
        raise SnapshotError(
            f"{name}: the saved values are {values.dtype} of shape {values.shape}, the net's "
            f"{kept.dtype} of shape {tuple(kept.shape)}; the snapshot is of another net"
        )
    return saved


def _other_layers(net: Net) -> list[Layer]:
    """The layers that are no data layers."""
    return [step.layer for step in net.steps if not isinstance(step.layer, DataLayer)]


def _kept_buffers(net: Net) -> dict[str, Tensor]:
    """The buffers that layers keep from one forward pass to the next (an LSTM's state), by `layer/name`."""
    return {
        f"{step.layer.name}/{name}": buffer
        for step in net.steps
        for name, buffer in step.layer.named_buffers(recurse=False)
        if name not in step.layer.constant_buffers
    }


def draw_on_device(net: Net, device: torch.device, seed: int) -> bool:
    """Let a GPU draw dropout masks and the like, from its own stream, seeded with `seed`.

    Returns whether it does: False on the CPU, and where no layer of the net draws in each pass.
    """
    drawing = [
        layer
        for layer in net.layers
        if isinstance(layer, Dropout) or (isinstance(layer, PoolingMethod) and layer.draws)
    ]
    if device.type == "cpu" or not drawing:
        return False
    for layer in drawing:
        layer.device_masks = True
    with torch.cuda.device(device):
        torch.cuda.manual_seed(seed)
    logger.info(
        "The random numbers of %s layers are drawn by the GPU and differ from the CPU's; "
        "--gpu-dropout caffe draws the CPU's, more slowly",
        " and ".join(sorted({layer.type for layer in drawing})),
    )
    return True
