"""Score a net: the mean outputs over some batches, logged as `caffe test` logs them.

Caffe: tools/caffe.cpp, test().
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from imae.files.caffe_log import log_line, number, output_text
from imae.net.executor import NetExecutor
from imae.net.net import Net

Array = NDArray[np.float32]
f32 = np.float32


def score(net: Net, device: torch.device, iterations: int) -> dict[str, Array]:
    """Run `iterations` batches, log what `caffe test` logs, return the means of the output blobs."""
    run_net = NetExecutor(net, device)
    log_line("caffe.cpp:281", f"Running for {iterations} iterations.")
    total = f32(0)
    sums: dict[str, Array] = {}
    for batch in range(iterations):
        loss, outputs = run_net.forward()
        net.check_labels()
        total += f32(loss.item())
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
