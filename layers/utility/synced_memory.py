"""SyncedMemory: tensors as scripts see them, as arrays in the CPU's memory.

A tensor in the CPU's memory is used directly. A tensor on a device has a copy, which is updated when a script
asks for it, and written back before the device computes with the tensor again. As in Caffe, an array that a
script got before that is then detached from the tensor: it does not show later results, and what is written
to it is lost.

Caffe: syncedmem.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

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

    def array(self) -> NDArray[np.float32]:
        """The values, to read and to write."""
        tensor = self._current().detach()
        if in_cpu_memory(tensor):
            array: NDArray[np.float32] = tensor.numpy()
            return array
        if not self._is_lent:
            copy = torch.from_numpy(self._copy)
            if copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
                self._copy = copy.numpy()
            copy.copy_(tensor)
            self._is_lent = True
        return self._copy

    def take_back(self) -> None:
        """Write the copy back to the tensor, if a script has asked for it since the last time."""
        if self._is_lent:
            # .data: autograd must not notice the write, as it does not on the CPU, where numpy writes.
            self._current().data.copy_(torch.from_numpy(self._copy))
            self._is_lent = False


class ParameterMemory:
    """data and diff of a parameter blob; there is one for all layers that share it (`of_parameter`)."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.data = SyncedMemory(lambda: parameter)
        self.diff = SyncedMemory(lambda: parameter_diff(parameter))

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


def has_lent_memory(parameter: Any) -> bool:
    """Whether a script may hold arrays of the parameter's data or diff."""
    return hasattr(parameter, "synced_memory")


def parameter_diff(parameter: nn.Parameter) -> Tensor:
    """The diff of a parameter blob; it is made if it does not exist yet."""
    if parameter.grad is None:
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
        else:  # torch allows a grad on a leaf that needs none
            parameter.grad = torch.zeros_like(parameter.detach())
    return parameter.grad


def in_cpu_memory(tensor: Tensor) -> bool:
    """Whether a script can use the tensor's own memory."""
    return tensor.device.type == "cpu"
