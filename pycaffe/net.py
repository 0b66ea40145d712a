"""pycaffe's Net and Blob over imae's Net, run layer by layer.

Source of the API: python/caffe/_caffe.cpp and pycaffe.py of BVLC Caffe 1.0.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from imae.converters.caffemodel import load_caffemodel, save_caffemodel
from imae.layers.layer import Layer
from imae.layers.net import Net as ModuleNet
from imae.layers.stepwise import BlobMemory, Stepwise, parameter_diff
from imae.layers.utility.python import PythonBlob as Blob
from imae.prototxt import NetParameter
from imae.prototxt.errors import ImaeError
from imae.prototxt.text import read_net
from imae.pycaffe.mode import current_random

Array = NDArray[np.float32]


class NetBlob(Blob):
    """A blob between layers: data and diff are writable arrays that share memory with the net."""

    def __init__(self, memory: BlobMemory) -> None:
        self._memory = memory

    @property
    def data(self) -> Array:
        return _array(self._memory.data)

    @property
    def diff(self) -> Array:
        return _array(self._memory.diff)

    def reshape(self, *shape: int) -> None:
        """Change the shape; call `net.reshape()` to carry it through the net (forward does so too)."""
        self._memory.reshape(shape)


class ParameterBlob(Blob):
    """A parameter blob, in the shape that its layer uses."""

    def __init__(self, layer: Layer, index: int) -> None:
        self._layer, self._index = layer, index

    @property
    def data(self) -> Array:
        return _array(self._parameter.detach().view(self._layer.blob_shapes[self._index]))

    @property
    def diff(self) -> Array:
        return _array(parameter_diff(self._parameter).view(self._layer.blob_shapes[self._index]))

    @property
    def _parameter(self) -> nn.Parameter:
        parameter = self._layer.blobs[self._index]
        assert isinstance(parameter, nn.Parameter)
        return parameter

    def reshape(self, *shape: int) -> None:
        """Give the parameter another shape (net surgery); values are kept where the count allows."""
        old = self._parameter
        values = old.detach()
        fresh = values.reshape(shape) if values.numel() == math.prod(shape) else values.new_zeros(shape)
        old.data, old.grad = fresh.clone(), None
        self._layer.blob_shapes[self._index] = tuple(shape)


class NetLayer:
    """A layer as `net.layers` lists it: its type and its parameter blobs."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self.type = layer.type
        self.blobs = [ParameterBlob(layer, index) for index in range(len(layer.blobs))]


class Net:
    """caffe.Net(network_file, phase, level=0, stages=None, weights=None), or (file, weights, phase)."""

    def __init__(
        self,
        network_file: str | os.PathLike[str],
        phase: int | str,
        level: int = 0,
        stages: Sequence[str] | None = None,
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(phase, str | os.PathLike):  # the older order of arguments
            phase, weights, level = level, phase, 0
        for name in (network_file, weights):
            if name is not None and not os.path.isfile(name):
                raise RuntimeError(f"Could not open file {name}")
        param = NetParameter()
        param.CopyFrom(read_net(network_file))
        param.state.phase = phase  # type: ignore[assignment]  # an int, checked by protobuf
        param.state.level = level
        param.state.stage.extend(stages or ())
        self._wrap(ModuleNet(param, current_random()))
        if weights is not None:
            self.copy_from(weights)

    @classmethod
    def around(cls, module: ModuleNet, stepwise: Stepwise | None = None) -> Net:
        """The pycaffe face of a net that exists already."""
        net = cls.__new__(cls)
        net._wrap(module, stepwise)
        return net

    def _wrap(self, module: ModuleNet, stepwise: Stepwise | None = None) -> None:
        self.module = module
        self.stepwise = stepwise if stepwise is not None else Stepwise(module)
        self.layers = [NetLayer(step.layer) for step in module.steps]
        self._layer_names = module.layer_names
        self._blob_names = list(self.stepwise.blobs)
        self.name, self.phase = module.name, module.phase
        self.blobs = OrderedDict((name, NetBlob(memory)) for name, memory in self.stepwise.blobs.items())
        self.layer_dict = OrderedDict(zip(self._layer_names, self.layers, strict=True))
        self.params = OrderedDict(
            (name, layer.blobs) for name, layer in self.layer_dict.items() if layer.blobs
        )
        self.blob_loss_weights = OrderedDict(
            (name, module.loss_weights.get(name, 0.0)) for name in self._blob_names
        )
        self.top_names = OrderedDict((step.layer.name, list(step.tops)) for step in module.steps)
        self.bottom_names = OrderedDict((step.layer.name, list(step.bottoms)) for step in module.steps)
        self.inputs, self.outputs = list(module.inputs), list(module.outputs)

    # -- running ---------------------------------------------------------------------------------------------

    def forward(
        self,
        blobs: Sequence[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **inputs: Array,
    ) -> dict[str, Array]:
        """Set the inputs given by name, run the layers start..end, return outputs (and the named blobs)."""
        first, last = self._range(start, end)
        names = (self.top_names[end] if end is not None else self.outputs) + list(blobs or ())
        if inputs:
            self._assign(
                "Input blob arguments do not match net inputs.", "Input", self.inputs, inputs, "data"
            )
        self._forward(first, last)
        return {name: self.blobs[name].data for name in names}

    def backward(
        self,
        diffs: Sequence[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **tops: Array,
    ) -> dict[str, Array]:
        """Set the top diffs given by name, run start..end downwards, return the inputs' (and named) diffs."""
        last, first = self._range(end, start)
        names = (self.bottom_names[end] if end is not None else self.inputs) + list(diffs or ())
        if tops:
            self._assign("Top diff arguments do not match net outputs.", "Diff", self.outputs, tops, "diff")
        self._backward(first, last)
        return {name: self.blobs[name].diff for name in names}

    def _range(self, start: str | None, end: str | None) -> tuple[int, int]:
        first = 0 if start is None else self._layer_names.index(start)
        last = len(self.layers) - 1 if end is None else self._layer_names.index(end)
        return first, last

    def _assign(
        self, mismatch: str, what: str, names: Sequence[str], values: Mapping[str, Array], side: str
    ) -> None:
        if set(values) != set(names):
            raise ImaeError(f"{mismatch} expected {', '.join(names)}, got {', '.join(values)}")
        for name, value in values.items():
            if value.shape[0] != self.blobs[name].shape[0]:
                raise ImaeError(
                    f"{what} is not batch sized: {name} has {len(value)}, its blob {len(self.blobs[name].data)}"
                )
            getattr(self.blobs[name], side)[...] = value

    def _forward(self, start: int, end: int) -> float:
        return self.stepwise.forward(start, end)

    def _backward(self, start: int, end: int) -> None:
        self.stepwise.backward(start, end)

    def forward_all(self, blobs: Sequence[str] | None = None, **inputs: Array) -> dict[str, Array]:
        """Run inputs of any length in batches; the padding of the last batch is cut off."""
        outs, _ = self._all(blobs, (), inputs, {}, backward=False)
        return outs

    def forward_backward_all(
        self, blobs: Sequence[str] | None = None, diffs: Sequence[str] | None = None, **values: Array
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Forward and backward of inputs (and top diffs) of any length in batches."""
        inputs = {name: values[name] for name in self.inputs if name in values}
        tops = {name: values[name] for name in self.outputs if name in values}
        return self._all(blobs, diffs, inputs, tops, backward=True)

    def _all(
        self,
        blobs: Sequence[str] | None,
        diffs: Sequence[str] | None,
        inputs: Mapping[str, Array],
        tops: Mapping[str, Array],
        backward: bool,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        count = len(next(iter(inputs.values())))
        outs: dict[str, list[Array]] = {name: [] for name in {*self.outputs, *(blobs or ())}}
        all_diffs: dict[str, list[Array]] = {name: [] for name in {*self.inputs, *(diffs or ())}}
        top_batches = list(self._batch(tops)) if tops else []
        for index, batch in enumerate(self._batch(inputs)):
            for name, value in self.forward(blobs=blobs, **batch).items():
                outs[name].extend(value.copy() if value.ndim else value.reshape(1).copy())
            if backward:
                given = top_batches[index] if top_batches else {}
                for name, value in self.backward(diffs=diffs, **given).items():
                    all_diffs[name].extend(value.copy())
        return (
            {name: np.asarray(rows[:count]) for name, rows in outs.items()},
            {name: np.asarray(rows[:count]) for name, rows in all_diffs.items()},
        )

    def _batch(self, values: Mapping[str, Array]) -> Iterator[dict[str, Array]]:
        size = next(iter(self.blobs.values())).shape[0]
        count = len(next(iter(values.values())))
        for begin in range(0, count, size):
            batch = {name: np.asarray(value[begin : begin + size]) for name, value in values.items()}
            short = size - len(next(iter(batch.values())))
            if short:
                batch = {n: np.concatenate([v, np.zeros((short, *v.shape[1:]))]) for n, v in batch.items()}
            yield batch

    def before_forward(self, callback: Callable[[int], object]) -> None:
        self.stepwise.before_forward.append(callback)

    def after_forward(self, callback: Callable[[int], object]) -> None:
        self.stepwise.after_forward.append(callback)

    def before_backward(self, callback: Callable[[int], object]) -> None:
        self.stepwise.before_backward.append(callback)

    def after_backward(self, callback: Callable[[int], object]) -> None:
        self.stepwise.after_backward.append(callback)

    def reshape(self) -> None:
        """Carry changed input shapes through the net."""
        self.stepwise.reshape()

    def clear_param_diffs(self) -> None:
        """Parameter diffs add up over backward passes; set them to 0."""
        self.stepwise.clear_param_diffs()

    def set_input_arrays(self, data: Array, labels: Array) -> None:
        """Give the first MemoryData layer its images (N, C, H, W) and labels (N,) or (N, 1, 1, 1)."""
        for step in self.module.steps:
            if step.layer.type == "MemoryData":
                step.layer.set_input_arrays(data, labels)
                return
        raise ImaeError("set_input_arrays may only be called if the net has a MemoryData layer")

    # -- weights ---------------------------------------------------------------------------------------------

    def copy_from(self, path: str | os.PathLike[str]) -> None:
        """Load the blobs of a .caffemodel or .caffemodel.h5 by layer name."""
        load_caffemodel(self.module, path)

    load_hdf5 = copy_from

    def share_with(self, other: Net) -> None:
        """Use the other net's parameters where layer names agree."""
        self.module.share_with(other.module)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a binary .caffemodel."""
        save_caffemodel(self.module, path)

    def save_hdf5(self, path: str | os.PathLike[str]) -> None:
        """Write a .caffemodel.h5."""
        save_caffemodel(self.module, path, hdf5=True)

    @property
    def _inputs(self) -> list[int]:
        return [self._blob_names.index(name) for name in self.inputs]

    @property
    def _outputs(self) -> list[int]:
        return [self._blob_names.index(name) for name in self.outputs]

    def _bottom_ids(self, index: int) -> list[Any]:
        return [self._blob_names.index(name) for name in self.module.steps[index].bottoms]

    def _top_ids(self, index: int) -> list[Any]:
        return [self._blob_names.index(name) for name in self.module.steps[index].tops]


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.numpy()
    return array
