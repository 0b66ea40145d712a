"""The interface of users' Python layers: their blobs, and their base class.

pycaffe has them under Caffe's names: Blob, BlobVec, RawBlobVec, Layer.

Caffe: _caffe.cpp, python_layer.hpp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray
from torch import Tensor, nn

from imae.layers.blob import array_from_blob
from imae.layers.layer import Layer, Shape
from imae.layers.utility.synced_memory import ParameterMemory, announce_change, take_back
from imae.prototxt import LayerParameter


class PythonBlob:
    """data and diff of a blob as arrays: float32, or float64 in a net of double precision."""

    def __init__(self, shape: Sequence[int] = ()) -> None:
        self._data, self._diff = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    @property
    def data(self) -> NDArray[np.float32]:
        return self._data

    @property
    def diff(self) -> NDArray[np.float32]:
        return self._diff

    def reshape(self, *shape: int) -> None:
        """Change the shape; the values are kept where their number stays the same."""
        if self.count == math.prod(shape):
            self._data, self._diff = self.data.reshape(shape), self.diff.reshape(shape)
        else:
            self._data, self._diff = (np.zeros(shape, self._data.dtype) for _ in range(2))

    def cast(self, dtype: DTypeLike) -> None:
        """Convert data and diff to this dtype."""
        self._data, self._diff = (a.astype(dtype, copy=False) for a in (self._data, self._diff))

    @property
    def shape(self) -> Shape:
        return self._data.shape

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def num(self) -> int:
        return self._legacy_dim(0)

    @property
    def channels(self) -> int:
        return self._legacy_dim(1)

    @property
    def height(self) -> int:
        return self._legacy_dim(2)

    @property
    def width(self) -> int:
        return self._legacy_dim(3)

    def _legacy_dim(self, axis: int) -> int:
        if len(self.shape) > 4:
            raise ValueError(f"num, channels, height, width need at most 4 axes; the shape is {self.shape}")
        return self.shape[axis] if axis < len(self.shape) else 1

    def load(self, tensor: Tensor) -> None:
        """Take shape and data from a tensor."""
        self.reshape(*tensor.shape)
        self.data[...] = tensor.detach().cpu().numpy()


class ParameterBlob(PythonBlob):
    """A parameter blob, in the shape that its layer uses; until it is bound, it has its own memory."""

    def __init__(self, shape: Sequence[int] = ()) -> None:
        super().__init__(shape)
        self._layer: Layer | None = None
        self._index = 0

    def bind(self, layer: Layer, index: int) -> ParameterBlob:
        """Refer to parameter blob `index` of `layer` from now on."""
        self._layer, self._index = layer, index
        return self

    @property
    def data(self) -> NDArray[np.float32]:
        if self._layer is None:
            return self._data
        return ParameterMemory.of_parameter(self._parameter).array().reshape(self.shape)

    @property
    def diff(self) -> NDArray[np.float32]:
        if self._layer is None:
            return self._diff
        return ParameterMemory.of_parameter(self._parameter).diff.array().reshape(self.shape)

    @property
    def shape(self) -> Shape:
        return self._data.shape if self._layer is None else self._layer.blob_shapes[self._index]

    @property
    def _parameter(self) -> nn.Parameter:
        assert self._layer is not None
        parameter = self._layer.blobs[self._index]
        assert isinstance(parameter, nn.Parameter)
        return parameter

    def reshape(self, *shape: int) -> None:
        """Change the shape (net surgery); the values are kept where their number stays the same."""
        if self._layer is None:
            super().reshape(*shape)
            return
        parameter = self._parameter
        announce_change([parameter])
        take_back([parameter])
        old = parameter.detach()
        fresh = old.reshape(shape).clone() if self.count == math.prod(shape) else old.new_zeros(shape)
        parameter.data, parameter.grad = fresh, None
        self._layer.blob_shapes[self._index] = tuple(shape)


class BlobVec(list[ParameterBlob]):
    """The parameter blobs of a layer."""

    def add_blob(self, *shape: int) -> None:
        """Append a blob of this shape, filled with 0."""
        self.append(ParameterBlob(shape))


class RawBlobVec(list[PythonBlob]):
    """The bottoms or tops of a layer."""


class PythonLayerBase:
    """The base class of users' layers; `caffe.Layer` in pycaffe."""

    def __init__(self, param: LayerParameter) -> None:
        self.param_str = param.python_param.param_str
        self.param_str_ = self.param_str  # as Caffe called it in 2015, when Fast R-CNN's layers were written
        self.phase = int(param.phase)
        self.blobs = BlobVec()
        for blob in param.blobs:
            values = array_from_blob(blob)
            self.blobs.add_blob(*values.shape)
            self.blobs[-1].data[...] = values

    @property
    def type(self) -> str:
        return "Python"
