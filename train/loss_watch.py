"""How a training reacts to losses and test outputs that are NaN or infinite."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np

from imae.files.caffe_log import number
from imae.files.errors import NotFiniteError
from imae.net.net import Net
from imae.net.not_finite import Tracer
from imae.net.streams import Streams
from imae.train.from_device import Array

logger = logging.getLogger(__name__)

OnNan = Literal["stop", "continue"]


class LossWatch:
    """Checks the losses that are displayed.

    passes   how many passes an iteration has
    on_nan   "stop": NotFiniteError for a loss that is NaN or infinite; "continue": no error, as in Caffe
    """

    def __init__(self, net: Net, streams: Streams, passes: int, on_nan: OnNan) -> None:
        self._tracer = Tracer(net, streams, passes) if on_nan == "stop" else None
        self._has_warned = False

    def before_display(self) -> None:
        """Call this before the passes whose loss will be displayed."""
        if self._tracer is not None:
            self._tracer.remember()

    def is_finite(self, loss: np.float32, iteration: int, last_good: str) -> bool:
        """Whether a displayed loss is finite. Under "stop", NotFiniteError that names the first bad layer.

        last_good   the snapshot to resume from, for the error
        """
        if np.isfinite(loss):
            return True
        if self._tracer is not None:
            raise NotFiniteError(
                f"Iteration {iteration}: the loss is {number(loss)}; {self._tracer.culprit()}; last "
                f"good snapshot: {last_good or 'none'}; lower base_lr or mend the data, or give "
                f"--on-nan continue"
            )
        return False

    def warn_of_test(self, means: dict[str, Array]) -> None:
        """Warn once of a test output that is not finite. The training need not be the cause."""
        broken = [name for name, mean in means.items() if not np.isfinite(mean).all()]
        if broken and self._tracer is not None and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "Test net output %s is not finite. That alone does not stop the training: a BatchNorm that "
                "has no statistics yet can do it",
                ", ".join(broken),
            )
