"""Reading numbers from the device: scalars later and together, blobs at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.floating[Any]]
MAX_PENDING = 1000  # scalars that may stay on the device unread


class DeviceScalars:
    """Scalars that stay on their device until they are read together, so that the host rarely waits."""

    def __init__(self) -> None:
        self._pending: list[Tensor] = []

    def add(self, scalar: Tensor) -> None:
        """Keep another scalar."""
        self._pending.append(scalar)

    @property
    def full(self) -> bool:
        """Whether there are MAX_PENDING scalars; then they must be read."""
        return len(self._pending) >= MAX_PENDING

    def read(self) -> list[float]:
        """The scalars that were added since the last call; waits for the device."""
        import torch  # not above: the help of commands imports this file

        values: list[float] = torch.stack(self._pending).tolist() if self._pending else []
        self._pending = []
        return values


def host_array(blob: Tensor) -> Array:
    """The values of a blob; waits for the device."""
    array: Array = blob.detach().cpu().contiguous().numpy()
    return array
