"""What a layer that reads or counts images keeps in a snapshot; it is checked before it is used."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imae.files.errors import SnapshotError
from imae.layers.layer import Layer

State = dict[str, Any]


def check_state(layer: Layer, state: State, own: State) -> None:
    """Refuse a saved state that has other entries than the layer's own, or other kinds of values."""
    if state.keys() != own.keys():
        raise SnapshotError(
            f"layer '{layer.name}' ({layer.type}): the saved state holds {', '.join(state) or 'nothing'}, "
            f"expected {', '.join(own)}; the snapshot is of another net"
        )
    for name, value in state.items():
        kinds = [
            (type(v), v.dtype.str, v.ndim) if isinstance(v, np.ndarray) else type(v)
            for v in (value, own[name])
        ]
        if kinds[0] != kinds[1]:
            raise SnapshotError(
                f"layer '{layer.name}' ({layer.type}): the saved {name} is {value!r}, expected something "
                f"like {own[name]!r}; the snapshot is damaged"
            )


def check_index(name: str, index: int, count: int) -> None:
    """Refuse a saved index outside 0 to count - 1."""
    if not 0 <= index < count:
        raise SnapshotError(f"the saved {name} is {index} of {count}; the snapshot is damaged")


def check_permutation(name: str, order: NDArray[np.int64], count: int) -> None:
    """Refuse a saved order that is no permutation of 0 to count - 1."""
    if not np.array_equal(np.sort(order), np.arange(count)):
        raise SnapshotError(f"the saved {name} is no order of {count} things; the snapshot is damaged")
