"""The position of a run, besides weights and history: what an exact resume needs and Caffe does not save."""

from __future__ import annotations

import logging
from typing import Any

import torch

from imae.files.errors import SnapshotError
from imae.layers.ranks import Ranks
from imae.net.streams import Streams
from imae.train.smoothed_loss import SmoothedLoss
from imae.train.solverstate import pack, unpack

logger = logging.getLogger(__name__)


class RunPosition:
    """The positions in the data and the random streams, and the window of the smoothed loss."""

    def __init__(self, streams: Streams, loss: SmoothedLoss, dtype: torch.dtype, ranks: Ranks) -> None:
        self._streams, self._loss, self._ranks = streams, loss, ranks
        self._double = dtype == torch.float64

    def get_state(self) -> dict[str, Any]:
        """The state from which `set_state` continues, for this rank."""
        return {**self._streams.get_state(), "loss": self._loss.get_state(), "double": self._double}

    def of_all_ranks(self, state: dict[str, Any], path: str) -> dict[str, Any]:
        """In rank 0, this state and those of the other ranks; `path` names the snapshot in errors."""
        others = self._ranks.gather(pack(state))[1:]
        return {**state, "ranks": [unpack(data, path) for data in others]} if others else state

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where the states of all ranks were taken.

        SnapshotError for a run with other ranks or another precision; other errors for damaged states.
        """
        ranks, size = [state, *state.get("ranks", ())], self._ranks.size
        if len(ranks) != size:
            raise SnapshotError(
                f"it was written by {len(ranks)} rank(s), and {size} would go on; start {len(ranks)}, with "
                f"torchrun --nproc-per-node {len(ranks)}"
            )
        state = ranks[self._ranks.rank]
        double = bool(state.get("double"))
        if double != self._double:
            raise SnapshotError(
                "it was written with --double; give that, too"
                if double
                else "it was written without --double; leave that out, too"
            )
        self._streams.set_state(state)
        self._loss.set_state(state["loss"])
        logger.info("The data and the random numbers go on where the snapshot was taken")
