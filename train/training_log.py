"""The log lines of a training, as Caffe writes them.

Caffe: solver.cpp, Step, Test; sgd_solver.cpp, ClipGradients.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imae.files.caffe_log import log_line, number, output_text
from imae.net.net import Net
from imae.prototxt import SolverParameter
from imae.train.from_device import Array, DeviceScalars, host_array

logger = logging.getLogger(__name__)

f32 = np.float32


class TrainingLog:
    """Writes the lines in Caffe's order. Norms of gradients stay on the device until the next line.

    norms_wait   whether they do; not on the CPU, where reading them costs nothing
    """

    def __init__(self, param: SolverParameter, device: torch.device) -> None:
        self.param = param
        self.norms_wait = device.type != "cpu"
        self._norms = DeviceScalars()
        self._lap: tuple[float, int] | None = None

    def line(self, place: str, message: str) -> None:
        """Log a line with this place in Caffe's sources, after the pending lines."""
        self.flush()
        log_line(place, message)

    def clipped(self, norm: Tensor | None) -> None:
        """Log a line if gradients of this L2 norm were clipped; None: clip_gradients is off."""
        if norm is None:
            return
        self._norms.add(norm)
        if not self.norms_wait or self._norms.full:
            self.flush()

    def flush(self) -> None:
        """Write the pending lines about clipped gradients."""
        limit = f32(self.param.clip_gradients)
        for norm in self._norms.read():
            if norm > limit:
                log_line(
                    "sgd_solver.cpp:99",
                    f"Gradient clipping: scaling down gradients (L2 norm {number(norm)} > {number(limit)}) "
                    f"by scale factor {number(limit / f32(norm))}",
                )

    def start_lap(self, iteration: int, *, anew: bool = False) -> None:
        """Count iterations and seconds from here; unless `anew`, not if they are counted already."""
        if self._lap is None or anew:
            self._lap = time.monotonic(), iteration

    def end_lap(self) -> None:
        """Stop counting."""
        self._lap = None

    def display(self, iteration: int, loss: np.float32, net: Net, outputs: dict[str, Tensor]) -> None:
        """Log the speed since the last display, the smoothed loss, the outputs of the last pass."""
        begun, first = self._lap or (time.monotonic(), iteration)
        lapse = f32(int((time.monotonic() - begun) * 1000) / 1000)  # Caffe: truncated to milliseconds
        speed = f32(iteration - first) / (lapse or f32(1))
        self.line(
            "solver.cpp:239",
            f"Iteration {iteration} ({number(speed)} iter/s, {number(lapse)}s/{self.param.display} "
            f"iters), loss = {number(loss)}",
        )
        self.start_lap(iteration, anew=True)
        self.outputs("solver.cpp:258", "Train", net, {n: host_array(blob) for n, blob in outputs.items()})

    def outputs(self, place: str, which: str, net: Net, values: dict[str, Array]) -> None:
        """Log one line per element of each output blob; `which` is Train or Test."""
        outputs = [(name, value) for name, blob in values.items() for value in blob.ravel()]
        for index, (name, value) in enumerate(outputs):
            text = output_text(name, value, f32(net.loss_weights.get(name, 0)))
            self.line(place, f"    {which} net output #{index}: {text}")


class DataWait:
    """How long a training has waited, since this object was made, for layers that prefetch batches."""

    def __init__(self, nets: Sequence[Net]) -> None:
        self._layers = [layer for net in nets for layer in net.data_layers()]
        self._begun, self._before = time.monotonic(), self._waited()

    def _waited(self) -> float:
        return sum(layer.waited for layer in self._layers)

    def log(self) -> None:
        """Log the time and its share; Caffe has no such line."""
        if not any(layer.prefetches for layer in self._layers):
            return
        waited, seconds = self._waited() - self._before, time.monotonic() - self._begun
        logger.info(
            "Waited for data: %.1f s of %.1f s of training (%.1f %%)",
            waited,
            seconds,
            100 * waited / max(seconds, 1e-9),
            stacklevel=2,  # the log names the solver, as the line before it
        )
