"""The loss that `Iteration N, loss = X` shows: the mean over the last average_loss iterations.

Caffe: solver.cpp, UpdateSmoothedLoss.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from imae.train.from_device import DeviceScalars

f32 = np.float32


class SmoothedLoss:
    """The mean of the last `size` losses, computed as in Caffe: in float32, updated loss by loss.

    Losses stay on their device until `read`, or until there are from_device.MAX_PENDING of them.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.clear()

    def clear(self) -> None:
        """Start a new window."""
        self._window: list[np.float32] = []
        self._value, self._count = f32(0), 0
        self._pending = DeviceScalars()

    def add(self, loss: Tensor) -> None:
        """Add the loss of an iteration."""
        self._pending.add(loss)
        if self._pending.full:
            self.read()

    def read(self) -> np.float32:
        """The mean; waits for the device."""
        with np.errstate(all="ignore"):  # NaN and infinity are logged
            for loss in self._pending.read():
                self._update(f32(loss))
        return self._value

    @property
    def last_read(self) -> float | None:
        """The mean when the device was last waited for; None where it never was."""
        return float(self._value) if self._count else None

    def _update(self, loss: np.float32) -> None:
        if len(self._window) < self.size:
            self._window.append(loss)
            size = len(self._window)
            self._value = (self._value * f32(size - 1) + loss) / f32(size)
        else:
            place = self._count % self.size
            self._value += (loss - self._window[place]) / f32(self.size)
            self._window[place] = loss
        self._count += 1

    def get_state(self) -> dict[str, Any]:
        """The state from which `set_state` continues."""
        self.read()
        return {"window": np.array(self._window, f32), "value": float(self._value), "count": self._count}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where `get_state` was called."""
        self.clear()
        with np.errstate(over="ignore"):
            self._window = list(np.asarray(state["window"], f32).ravel()[: self.size])
            self._value, self._count = f32(state["value"]), int(state["count"])
