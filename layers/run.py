"""What a run passes to its nets, and a net to its layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from imae.layers.caffe_random import CaffeRandom
from imae.layers.ranks import ALONE, Ranks
from imae.prototxt import TRAIN

if TYPE_CHECKING:
    from imae.layers.data.data_resources import DataResources
    from imae.layers.data.pixels import PlanWindows
    from imae.prototxt.caffe_pb2 import Phase


def _unseeded() -> CaffeRandom:
    return CaffeRandom(None)


@dataclass(frozen=True)
class Run:
    """One object for all nets and layers of a run.

    random          the random numbers of fillers, masks, crops and orders, drawn in Caffe's order; by default
                    a stream with a seed of its own
    ranks           the processes that train together; by default this one alone
    data_resources  memory for decoded records and decoding threads, which all data layers share; None: every
                    net makes its own
    dtype           of parameters and blobs; fillers and data layers make float32, which is cast to it
    plan_windows    how data layers make numbers of pixels; None: by OpenCV and numpy
    """

    random: CaffeRandom = field(default_factory=_unseeded)
    ranks: Ranks = ALONE
    data_resources: DataResources | None = None
    dtype: torch.dtype = torch.float32
    plan_windows: PlanWindows | None = None

    def ranks_in(self, phase: Phase) -> Ranks:
        """The processes among which the records are divided: all in TRAIN; in TEST rank 0 works alone."""
        return self.ranks if phase == TRAIN else ALONE
