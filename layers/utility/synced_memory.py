"""SyncedMemory: tensors as scripts see them, arrays in the CPU's memory.

A tensor that is there is seen as it is. Of a tensor on a device there is a copy, which is brought up to date
when it is asked for and taken back before the device computes with the tensor again. As in Caffe, an array
that was asked for earlier then no longer belongs to the tensor: later results are not in it, and what is
written to it is lost.

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
    """`current` gives the tensor, which may change its size and place from one time to the next."""

    def __init__(self, current: Callable[[], Tensor]) -> None:
        self._current = current
        self._copy = np.empty(0, np.float32)
        self._lent = False

    def array(self) -> NDArray[np.float32]:
        """The values, to read and to write."""
        tensor = self._current().detach()
        if in_cpu_memory(tensor):
            array: NDArray[np.float32] = tensor.numpy()
            return array
        if not self._lent:
            copy = torch.from_numpy(self._copy)
            if copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
                self._copy = copy.numpy()
            copy.copy_(tensor)
            self._lent = True
        return self._copy

    def take_back(self) -> None:
        """Put into the tensor what scripts may have written since they asked for the values."""
        if self._lent:
            # .data: autograd must not take it for a change of what a backward pass needs, as on the CPU.
            self._current().data.copy_(torch.from_numpy(self._copy))
            self._lent = False


class ParameterMemory:
    """data and diff of a parameter blob; all who share the parameter share this (`of`)."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.data = SyncedMemory(lambda: parameter)
        self.diff = SyncedMemory(lambda: parameter_diff(parameter))

    @classmethod
    def of(cls, parameter: Any) -> ParameterMemory:
        """The memory of this parameter."""
        if not hasattr(parameter, "synced_memory"):
            parameter.synced_memory = cls(parameter)
        memory: ParameterMemory = parameter.synced_memory
        return memory


def take_back(parameters: Iterable[Any]) -> None:
    """Put into parameters what scripts may have written to them."""
    for parameter in parameters:
        if hasattr(parameter, "synced_memory"):
            parameter.synced_memory.data.take_back()
            parameter.synced_memory.diff.take_back()


def parameter_diff(parameter: nn.Parameter) -> Tensor:
    """The diff of a parameter blob, made where it is not there yet."""
    if parameter.grad is None:
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
        else:  # torch allows a grad on a leaf that needs none
            parameter.grad = torch.zeros_like(parameter.detach())
    return parameter.grad


def in_cpu_memory(tensor: Tensor) -> bool:
    """Whether a script can look at the tensor itself."""
    return tensor.device.type == "cpu"
