"""pycaffe's Net and its blobs over imae's Net, run layer by layer.

A net computes on the CPU or, if it was made in GPU mode, on the GPU. In both cases `data` and `diff` of its
blobs are arrays in the CPU's memory (see imae.layers.utility.synced_memory for how they are synchronized).

Caffe: python/caffe/_caffe.cpp, pycaffe.py. Differs: the mode is read when a net is made, not at each pass.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imae.files.errors import ImaeError
from imae.files.read import AnyPath, is_own_pipe
from imae.layers.layer import Layer, Shape, blob_name
from imae.layers.run import Run
from imae.layers.utility.python import Python
from imae.layers.utility.python_blobs import BlobVec, ParameterBlob, PythonLayerBase, RawBlobVec
from imae.layers.utility.python_blobs import PythonBlob as Blob
from imae.net.net import Net as ModuleNet
from imae.net.stepwise import BlobMemory, Stepwise
from imae.net.weights import load_caffemodel, save_caffemodel
from imae.prototxt import LayerParameter, NetState
from imae.prototxt.dialects import read_net_text
from imae.prototxt.leftovers import strict_fields
from imae.prototxt.state import in_state
from imae.pycaffe.mode import current_device, current_random
from imae.pycaffe.vectors import DtypeVec, IntVec, LayerVec, StringVec

logger = logging.getLogger(__name__)

Array = NDArray[np.float32]


class PycaffeError(ImaeError, RuntimeError):
    """An error that is a RuntimeError in pycaffe: a missing file, a call that the net does not support."""


class NetBlob(Blob):
    """A blob between layers: data and diff are writable arrays that share memory with the net."""

    def __init__(self, memory: BlobMemory) -> None:
        self._memory = memory

    @property
    def data(self) -> Array:
        return self._memory.synced_data.array()

    @property
    def diff(self) -> Array:
        return self._memory.synced_diff.array()

    @property
    def shape(self) -> Shape:
        return tuple(self._memory.data.shape)

    def reshape(self, *shape: int) -> None:
        """Change the shape; `net.reshape()` or the next forward pass propagates it through the net."""
        self._memory.reshape(shape)


class NetLayer(PythonLayerBase):
    """A layer as `net.layers` lists it: its type and its parameter blobs."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(LayerParameter(phase=layer.param.phase))
        self._type = layer.type
        self.blobs = BlobVec(ParameterBlob().bind(layer, index) for index in range(len(layer.blobs)))

    @property
    def type(self) -> str:
        return self._type


class Net:
    """caffe.Net(network_file, phase, level=0, stages=None, weights=None), or (file, weights, phase).

    dialect             the fork that wrote the files, if it was not Caffe itself: "nvidia" or "other"
    strict              whether a field without effect is an error; by default a warning lists such fields

    name, phase         of the net
    blobs, params       blobs by name; lists of parameter blobs by layer name
    layers, layer_dict  in order; by name. A Python layer is the user's object
    inputs, outputs     names of blobs
    top_names, bottom_names, blob_loss_weights      by layer name; by blob name
    """

    def __init__(
        self,
        network_file: AnyPath,
        phase: int | AnyPath,
        level: int = 0,
        stages: Sequence[str] | None = None,
        weights: AnyPath | None = None,
        *,
        dialect: str | None = None,
        strict: bool = False,
    ) -> None:
        if isinstance(phase, str | os.PathLike):  # the older order of arguments
            logger.warning(
                "DEPRECATION WARNING - deprecated use of Python interface; write Net('%s', %s, weights='%s')",
                network_file, level, phase,
            )  # fmt: skip
            weights, phase, level = phase, level, 0
        for name in (network_file, weights):
            if name is not None and not os.path.isfile(name) and not is_own_pipe(name):
                raise PycaffeError(f"Could not open file {name}")
        state = NetState(level=level, stage=stages)
        state.phase = phase  # type: ignore[assignment]  # an int, checked by protobuf
        with strict_fields(strict):
            text = read_net_text(network_file, dialect, [weights] if weights is not None else [])
            param = in_state(text, state.phase, state)
            self._wrap(Stepwise(ModuleNet(param, Run(current_random())), current_device()))
        if weights is not None:
            self.copy_from(weights, dialect)

    @classmethod
    def around(cls, stepwise: Stepwise) -> Net:
        """Wrap an existing net."""
        net = cls.__new__(cls)
        net._wrap(stepwise)
        return net

    def _wrap(self, stepwise: Stepwise) -> None:
        module = stepwise.net
        self.module, self.stepwise = module, stepwise
        self.name, self.phase = module.name, module.phase
        self.layers = LayerVec(_script_layer(step.layer) for step in module.steps)
        self._layer_names = StringVec(module.layer_names)
        self._blob_names = StringVec(map(blob_name, stepwise.blobs))
        self._blobs = RawBlobVec(NetBlob(memory) for memory in stepwise.blobs.values())
        self._blob_ids = {name: index for index, name in enumerate(stepwise.blobs)}
        self._blob_loss_weights = DtypeVec(module.loss_weights.get(name, 0.0) for name in stepwise.blobs)
        # Caffe: if blobs or layers share a name, it means the last of them; in `params` the last with blobs.
        self.blobs = OrderedDict(zip(self._blob_names, self._blobs, strict=True))
        self.blob_loss_weights = OrderedDict(zip(self._blob_names, self._blob_loss_weights, strict=True))
        self.layer_dict = OrderedDict(zip(self._layer_names, self.layers, strict=True))
        self.params = OrderedDict(
            (name, layer.blobs)
            for name, layer in zip(self._layer_names, self.layers, strict=True)
            if layer.blobs
        )
        self.top_names = OrderedDict(
            (step.layer.name, list(map(blob_name, step.tops))) for step in module.steps
        )
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
        """Set the named inputs, run the layers start..end, return the outputs and the named `blobs`."""
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
        """Set the named top diffs, run start..end downwards, return the diffs of inputs and named `diffs`."""
        last, first = self._range(end, start)
        names = (self.bottom_names[end] if end is not None else self.inputs) + list(diffs or ())
        if tops:
            self._assign("Top diff arguments do not match net outputs.", "Diff", self.outputs, tops, "diff")
        self._backward(first, last)
        return {name: self.blobs[name].diff for name in names}

    def _range(self, start: str | None, end: str | None) -> tuple[int, int]:
        first = 0 if start is None else self._place(start)
        last = len(self.layers) - 1 if end is None else self._place(end)
        return first, last

    def _place(self, layer: str) -> int:
        if layer not in self._layer_names:
            raise ImaeError(f"the net has no layer {layer!r}; it has {', '.join(self._layer_names)}")
        return self._layer_names.index(layer)

    def _assign(
        self, mismatch: str, what: str, names: Sequence[str], values: Mapping[str, Array], side: str
    ) -> None:
        if set(values) != set(names):
            raise ImaeError(f"{mismatch} expected {', '.join(names)}, got {', '.join(values)}")
        for name, value in values.items():
            if value.shape[0] != self.blobs[name].shape[0]:
                raise ImaeError(
                    f"{what} is not batch sized: {name} has {len(value)}, its blob {self.blobs[name].num}"
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
        if not inputs and not tops:
            raise ImaeError(f"give the inputs: {', '.join(self.inputs)}")
        count = len(next(iter((inputs or tops).values())))
        outs: dict[str, list[Array]] = {name: [] for name in {*self.outputs, *(blobs or ())}}
        all_diffs: dict[str, list[Array]] = {name: [] for name in {*self.inputs, *(diffs or ())}}
        none: dict[str, Any] = {}
        for batch, top_batch in zip_longest(self._batch(inputs), self._batch(tops), fillvalue=none):
            for name, value in self.forward(blobs=blobs, **batch).items():
                outs[name].extend(value.copy() if value.ndim else value.reshape(1).copy())
            if backward:
                for name, value in self.backward(diffs=diffs, **top_batch).items():
                    all_diffs[name].extend(value.copy())
        return (
            {name: np.asarray(rows[:count]) for name, rows in outs.items()},
            {name: np.asarray(rows[:count]) for name, rows in all_diffs.items()},
        )

    def _batch(self, values: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
        """Batches of the size of the first blob, the last one padded with 0; none if `values` is empty."""
        if not values:
            return
        size = next(iter(self.blobs.values())).shape[0]
        count = len(next(iter(values.values())))
        for begin in range(0, count, size):
            batch = {name: np.asarray(value[begin : begin + size]) for name, value in values.items()}
            short = size - len(next(iter(batch.values())))
            if short:
                zeros = {name: np.zeros((short, *value.shape[1:])) for name, value in batch.items()}
                batch = {name: np.concatenate([value, zeros[name]]) for name, value in batch.items()}
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
        """Propagate changed input shapes through the net."""
        self.stepwise.reshape()

    def clear_param_diffs(self) -> None:
        """Set the parameter diffs to 0; backward passes add to them."""
        self.stepwise.clear_param_diffs()

    def set_input_arrays(self, data: Array, labels: Array) -> None:
        """Give the first MemoryData layer its images (N, C, H, W) and labels (N,) or (N, 1, 1, 1)."""
        from imae.layers.data.memory_data import MemoryData  # here: it loads OpenCV

        for step in self.module.steps:
            if isinstance(step.layer, MemoryData):
                step.layer.reset(data, labels)
                return
        raise PycaffeError("set_input_arrays may only be called if the net has a MemoryData layer")

    # -- weights ---------------------------------------------------------------------------------------------

    def copy_from(self, path: AnyPath, dialect: str | None = None) -> None:
        """Load the blobs of a .caffemodel(.h5) by layer name. `dialect`: the fork that wrote the file."""
        self.stepwise.take_back_parameters()
        load_caffemodel(self.module, path, dialect)

    load_hdf5 = copy_from

    def share_with(self, other: Net) -> None:
        """Use the other net's parameters in layers of the same name."""
        if self.stepwise.device != other.stepwise.device:
            raise ImaeError(
                f"nets on different devices cannot share parameters: {self.stepwise.device} and "
                f"{other.stepwise.device}; make both in one mode"
            )
        self.module.share_with(other.module)

    def save(self, path: AnyPath) -> None:
        """Write a binary .caffemodel."""
        self.stepwise.take_back_parameters()
        save_caffemodel(self.module, path)

    def save_hdf5(self, path: AnyPath) -> None:
        """Write a .caffemodel.h5."""
        self.stepwise.take_back_parameters()
        save_caffemodel(self.module, path, hdf5=True)

    # -- names that pycaffe's own modules use ----------------------------------------------------------------

    _set_input_arrays = set_input_arrays

    @property
    def _inputs(self) -> IntVec:
        return self._ids(self.inputs)

    @property
    def _outputs(self) -> IntVec:
        return self._ids(self.outputs)

    def _bottom_ids(self, index: int) -> IntVec:
        return self._ids(self.module.steps[index].bottoms)

    def _top_ids(self, index: int) -> IntVec:
        return self._ids(self.module.steps[index].tops)

    def _repr_html_(self) -> str:
        """A notebook shows the net's layers as a table."""
        return self.module._repr_html_()

    def _ids(self, blobs: Sequence[str]) -> IntVec:
        return IntVec(self._blob_ids[name] for name in blobs)


def _script_layer(layer: Layer) -> Any:
    return layer.user_layer if isinstance(layer, Python) else NetLayer(layer)
