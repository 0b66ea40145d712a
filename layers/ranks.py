"""The processes that train one net together: the rank of this process, and how the ranks communicate.

Caffe: common.hpp, solver_rank, solver_count; parallel.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Flags = Sequence[bool]


class Ranks:
    """The place of this process among the ranks; by default it is the only one, and the methods do nothing.

    rank   number of this process, from 0; only rank 0 logs, tests and writes snapshots
    size   number of processes
    local_rank, local_size   the same, counted on this machine only

    All ranks call the same methods in the same order, `connect` first. train/launched_ranks.py has the form
    for several processes.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size

    def connect(self, device: torch.device) -> None:
        """Set up what the other methods need; `device` is where this rank computes."""

    def broadcast(self, blobs: Sequence[Tensor]) -> None:
        """Give all ranks the values of rank 0."""

    def broadcast_str(self, text: str) -> str:
        """The text of rank 0, in all ranks."""
        return text

    def broadcast_int(self, number: int) -> int:
        """The number of rank 0, in all ranks."""
        return int(self.broadcast_str(str(number)))

    def gather(self, data: bytes) -> list[bytes]:
        """In rank 0 the data (never empty) of all ranks; in the other ranks an empty list."""
        return [data]

    def average(self, diffs: Sequence[Tensor], flags: Callable[[], Flags]) -> None:
        """Replace the diffs by their means over the ranks; also exchange the flags for `any_rank`."""

    def any_rank(self, flags: Callable[[], Flags]) -> Flags:
        """For each flag, whether any rank has raised it. A single rank calls `flags` only here."""
        return flags()


ALONE = Ranks()
