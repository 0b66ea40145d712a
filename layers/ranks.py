"""The processes that train one net together: which of them this one is, and what they tell each other.

Caffe: common.hpp, solver_rank, solver_count; parallel.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Flags = Sequence[bool]


class Ranks:
    """This process among them; by default it is the only one, and the methods have nothing to do.

    rank   its number, from 0; rank 0 alone logs, tests and snapshots
    size   how many there are
    local_rank, local_size   the same among those on this machine

    All ranks call the same methods in the same order, `connect` first. train/launched_ranks.py: several.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size

    def connect(self, device: torch.device) -> None:
        """Make what the other methods need; `device` is where this rank computes."""

    def broadcast(self, blobs: Sequence[Tensor]) -> None:
        """Give all ranks the values of rank 0."""

    def broadcast_str(self, text: str) -> str:
        """The text of rank 0, in all ranks."""
        return text

    def broadcast_int(self, number: int) -> int:
        """The number of rank 0, in all ranks."""
        return int(self.broadcast_str(str(number)))

    def gather(self, data: bytes) -> list[bytes]:
        """The data of each rank (not empty), in rank 0; an empty list in the others."""
        return [data]

    def average(self, diffs: Sequence[Tensor], flags: Callable[[], Flags]) -> None:
        """Replace the diffs by their means over the ranks; on the way, collect the flags for `any_rank`."""

    def any_rank(self, flags: Callable[[], Flags]) -> Flags:
        """For each flag, whether a rank has raised it; one rank alone asks for its own only now."""
        return flags()


ALONE = Ranks()
