"""The processes that train one net together: which of them this one is, and so which records it reads.

Caffe: common.hpp, solver_rank, solver_count.
"""

from __future__ import annotations


class Ranks:
    """This process among them; by default it is the only one.

    rank   its number, from 0; rank 0 alone logs, tests and snapshots
    size   how many there are
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def of_first(self, number: int) -> int:
        """The number that rank 0 gives; all ranks must ask."""
        return number


ALONE = Ranks()
