"""Score a net: the mean outputs over some batches, logged as `caffe test` logs them.

Caffe: tools/caffe.cpp, test().
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from imae.files.caffe_log import log_line, number, output_text
from imae.files.errors import DataError
from imae.net.executor import NetExecutor
from imae.net.inference import InferenceExecutor, plan_inference
from imae.net.net import Net

Array = NDArray[np.float32]
f32 = np.float32


class Shaped(Protocol):
    """What has a shape: a tensor, an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of its axes."""


def check_same_shapes(before: Mapping[str, Shaped], now: Mapping[str, Shaped]) -> None:
    """DataError where an output has another shape than in the batches before: there is no mean of these."""
    for name, blob in now.items():
        if name in before and tuple(before[name].shape) != tuple(blob.shape):
            raise DataError(
                f"output {name} has the shape {tuple(blob.shape)} in this batch and "
                f"{tuple(before[name].shape)} in those before, so it has no mean; where it is of "
                'DetectionEvaluate, let the solver have eval_type: "detection"'
            )


class Evaluation(Protocol):
    """Collects outputs that have no mean of their own."""

    def add(self, outputs: Mapping[str, Array]) -> None:
        """Add these outputs of a batch."""


def score(
    net: Net,
    device: torch.device,
    iterations: int,
    evaluation: Evaluation | None = None,
    evaluated: Collection[str] = (),
    keep: Collection[str] = (),
    on_batch: Callable[[Mapping[str, torch.Tensor]], None] | None = None,
) -> dict[str, Array]:
    """Run `iterations` batches, log what `caffe test` logs, return the means of the output blobs.

    evaluation   collects the outputs `evaluated`, which are then neither logged nor returned
    on_batch     is called after each batch with the blobs named in `keep`
    """
    plan = plan_inference(net.to(device), keep)
    run_net = (
        InferenceExecutor(plan) if plan.fast and device.type == "cpu" else NetExecutor(net, device, keep=keep)
    )
    log_line("caffe.cpp:281", f"Running for {iterations} iterations.")
    total = f32(0)
    sums: dict[str, Array] = {}
    for batch in range(iterations):
        loss, outputs = run_net.forward()
        net.check_labels()
        total += f32(loss.item())
        if on_batch is not None:
            on_batch(run_net.kept)
        if evaluation is not None:
            evaluation.add({name: outputs[name].cpu().numpy() for name in evaluated})
        outputs = {name: blob for name, blob in outputs.items() if name not in evaluated}
        check_same_shapes(sums, outputs)
        for name, blob in outputs.items():
            values = blob.cpu().numpy()
            sums[name] = sums[name] + values if batch else values
            for value in values.ravel():
                log_line("caffe.cpp:304", f"Batch {batch}, {name} = {number(value)}")
    log_line("caffe.cpp:309", f"Loss: {number(total / f32(iterations))}")
    means = {name: values / f32(iterations) for name, values in sums.items()}
    for name, values in means.items():
        for value in values.ravel():
            log_line("caffe.cpp:321", output_text(name, value, f32(net.loss_weights.get(name, 0))))
    return means
