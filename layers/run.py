"""What a run hands down to its nets, and each net to its layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from imae.layers.caffe_random import CaffeRandom
from imae.layers.ranks import ALONE, Ranks
from imae.prototxt import TRAIN

if TYPE_CHECKING:
    from imae.layers.data.data_resources import DataResources
    from imae.prototxt.caffe_pb2 import Phase


def _unseeded() -> CaffeRandom:
    return CaffeRandom(None)


@dataclass(frozen=True)
class Run:
    """One object for all nets and layers of a run.

    random          the random numbers of fillers, masks, crops and orders, drawn in Caffe's order; by default
                    a stream with a seed of its own
    ranks           the processes that train together; by default this one alone
    data_resources  memory for decoded records, and threads, which all data layers share; None: a net makes
                    some for its own layers
    dtype           of parameters and blobs; what fillers and data layers give is float32 and is cast
    """

    random: CaffeRandom = field(default_factory=_unseeded)
    ranks: Ranks = ALONE
    data_resources: DataResources | None = None
    dtype: torch.dtype = torch.float32

    def ranks_in(self, phase: Phase) -> Ranks:
        """The processes that share the records out in this phase: rank 0 tests alone."""
        return self.ranks if phase == TRAIN else ALONE
