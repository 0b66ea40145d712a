"""SyncedMemory: tensors as scripts see them, as arrays in the CPU's memory.

A tensor in the CPU's memory is used directly. A tensor on a device has a copy, which is updated when a script
asks for it, and written back before the device computes with the tensor again. As in Caffe, an array that a
script got before that is then detached from the tensor: it does not show later results, and what is written
to it is lost.

Caffe: syncedmem.cpp.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class SyncedMemory:
    """`current` returns the tensor, whose size and memory may change from call to call."""

    def __init__(self, current: Callable[[], Tensor]) -> None:
        self._current = current
        self._copy = np.empty(0, np.float32)
        self._is_lent = False
        self._lent: list[tuple[weakref.ref[NDArray[np.float32]], tuple[object, ...]]] = []

    def array(self) -> NDArray[np.float32]:
        """The values, to read and to write."""
        tensor = self._current().detach()
        if in_cpu_memory(tensor):
            return self._view(tensor)
        if not self._is_lent:
            copy = torch.from_numpy(self._copy)
            if copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
                self._copy = copy.numpy()
            copy.copy_(tensor)
            self._is_lent = True
        return self._copy

    @property
    def is_seen(self) -> bool:
        """Whether a script still has an array of the tensor's own memory, or a view of such an array."""
        return any(lent() is not None for lent, _ in self._lent)

    def _view(self, tensor: Tensor) -> NDArray[np.float32]:
        """A view of the one array of this tensor, which lives as long as any of its views.

        numpy sets `base` of a view, and of a view of a view, to the array that has no array as its base.
        """
        key = tensor.data_ptr(), tensor.shape, tensor.stride()
        self._lent = [entry for entry in self._lent if entry[0]() is not None]
        for lent, lent_key in self._lent:
            array = lent()
            if lent_key == key and array is not None:
                return array.view()
        whole: NDArray[np.float32] = tensor.numpy()
        self._lent.append((weakref.ref(whole), key))
        return whole.view()

    def take_back(self) -> None:
        """Write the copy back to the tensor, if a script has asked for it since the last time."""
        if self._is_lent:
            # .data: autograd must not notice the write, as it does not on the CPU, where numpy writes.
            self._current().data.copy_(torch.from_numpy(self._copy))
            self._is_lent = False


class ParameterReader(Protocol):
    """Who has computed with parameters, and must know when they change."""

    def is_lent(self, parameter: nn.Parameter) -> None:
        """Called before a script gets an array, which it may write to at any time."""

    def will_change(self, parameters: Iterable[nn.Parameter]) -> None:
        """Called before the values or the shapes of these parameters change otherwise."""


class ParameterMemory:
    """data and diff of a parameter blob; there is one for all layers that share it (`of_parameter`).

    readers   who must know of changes
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = weakref.ref(parameter)  # which refers to this, so that both end with their net
        self.data = SyncedMemory(self._current)
        self.diff = SyncedMemory(lambda: parameter_diff(self._current()))
        self.readers: weakref.WeakSet[ParameterReader] = weakref.WeakSet()

    def array(self) -> NDArray[np.float32]:
        """The values, to read and to write."""
        for reader in self.readers:
            reader.is_lent(self._current())
        return self.data.array()

    def _current(self) -> nn.Parameter:
        parameter = self._parameter()
        assert parameter is not None, "it holds this memory"
        return parameter

    @classmethod
    def of_parameter(cls, parameter: Any) -> ParameterMemory:
        """The memory of this parameter."""
        if not hasattr(parameter, "synced_memory"):
            parameter.synced_memory = cls(parameter)
        memory: ParameterMemory = parameter.synced_memory
        return memory


def take_back(parameters: Iterable[Any]) -> None:
    """Write back to parameters what scripts may have written to their copies."""
    for parameter in parameters:
        if hasattr(parameter, "synced_memory"):
            parameter.synced_memory.data.take_back()
            parameter.synced_memory.diff.take_back()


def is_diff_seen(parameter: Any) -> bool:
    """Whether a script still has an array of the memory of the parameter's diff."""
    return hasattr(parameter, "synced_memory") and parameter.synced_memory.diff.is_seen


def announce_change(parameters: Iterable[Any]) -> None:
    """Tell all nets that have computed with one of these parameters that they are about to change."""
    changing = list(parameters)
    readers = [reader for p in changing if hasattr(p, "synced_memory") for reader in p.synced_memory.readers]
    for reader in dict.fromkeys(readers):
        reader.will_change(changing)


def parameter_diff(parameter: nn.Parameter) -> Tensor:
    """The diff of a parameter blob; it is made if it does not exist yet."""
    if parameter.grad is None:
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
        else:  # torch allows a grad on a leaf that needs none
            parameter.grad = torch.zeros_like(parameter.detach())
    return parameter.grad


def separate_diffs(parameters: Iterable[nn.Parameter]) -> None:
    """Give each diff that a backward pass has stored a memory of its own: updates change diffs in-place.

    Autograd stores what an operation returns. An addition returns one memory as the gradient of both terms.
    """
    taken: set[int] = set()
    for parameter in parameters:
        if parameter.grad is not None:
            memory = parameter.grad.untyped_storage().data_ptr()
            if memory in taken:
                parameter.grad = parameter.grad.clone()
            taken.add(memory)


def in_cpu_memory(tensor: Tensor) -> bool:
    """Whether a script can use the tensor's own memory."""
    return tensor.device.type == "cpu"
