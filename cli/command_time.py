"""`imae time`: how long each layer of a net takes, forward and backward, as `caffe time` measures it.

    imae time --model train_val.prototxt --iterations 50 --gpu 0

The layers run one after the other. On a GPU the host waits for each layer, so a layer's time includes the
launching of its kernels; a training run, which does not wait, is faster. Input blobs are 0, the weights are
the fillers'.

Caffe: tools/caffe.cpp, time(). Differs: the total is the sum over the layers, without the time between them;
all times have fractions of milliseconds, whereas Caffe on a CPU truncates those of iterations and the total.
"""

from __future__ import annotations

import argparse
import logging
from time import perf_counter
from typing import TYPE_CHECKING

from imae.cli.device_options import add_gpu_option, add_threads_option, requested_gpu
from imae.cli.options import add_net_options, chosen_net
from imae.files.caffe_log import log_line, number
from imae.files.errors import ImaeError
from imae.net.device_log import DeviceLog
from imae.prototxt import TRAIN

if TYPE_CHECKING:
    import torch

    from imae.net.net import Net
    from imae.net.stepwise import Stepwise

DEVICE_LOG = DeviceLog(
    cpu=("caffe.cpp:343", "Use CPU."), gpu=[("caffe.cpp:339", "Use GPU with device ID {id}")]
)

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--model", metavar="NET", help="the net's prototxt")
    parser.add_argument("--iterations", type=int, default=50, metavar="N", help="passes to measure (50)")
    add_gpu_option(parser)
    add_net_options(parser, "TRAIN")
    add_threads_option(parser, "threads to compute with on the CPU")


def run(args: argparse.Namespace) -> None:
    """Log what `caffe time` logs."""
    from imae.net.device import choose_device, keep_freed_memory, set_threads
    from imae.net.net import Net
    from imae.net.no_loss import no_loss_message, stages_of_losses

    if not args.model:
        raise ImaeError("Need a model definition to time: --model NET")
    if args.iterations < 1:
        raise ImaeError(f"--iterations must be at least 1, got {args.iterations}")
    set_threads(args.threads)
    keep_freed_memory()
    device = choose_device(requested_gpu(args.gpu), DEVICE_LOG)
    param = chosen_net(args.model, args)
    net = Net(param)
    # A deploy net needs no loss, nor does a test net.
    trains = param.state.phase == TRAIN
    if trains and (words := no_loss_message(net, param)) and stages_of_losses(param):
        logger.warning("%s, and the times of the backward pass are of nothing, as in Caffe", words)
    measure(net, device, args.iterations)


class LayerClock:
    """The total time of each layer's passes, in milliseconds.

    `start` and `stop` are called with the layer's index.
    """

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self.layers = [0.0] * num_layers
        self._device = device
        self._started = 0.0

    @property
    def total(self) -> float:
        """The time of all layers."""
        return sum(self.layers)

    def start(self, index: int) -> None:
        """Call this before the layer computes."""
        self._started = self._now()

    def stop(self, index: int) -> None:
        """Call this after the layer has computed."""
        self.layers[index] += 1e3 * (self._now() - self._started)

    def _now(self) -> float:
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return perf_counter()


def timed(stepwise: Stepwise) -> tuple[LayerClock, LayerClock]:
    """Clocks that measure the layers' forward and backward passes from now on."""
    forward, backward = (LayerClock(len(stepwise.net.steps), stepwise.device) for _ in range(2))
    stepwise.before_compute.append(forward.start)
    stepwise.after_compute.append(forward.stop)
    stepwise.before_backward.append(backward.start)
    stepwise.after_backward.append(backward.stop)
    return forward, backward


def measure(net: Net, device: torch.device, iterations: int) -> tuple[list[float], list[float]]:
    """Log the times of the layers; returns their means, forward and backward, in milliseconds."""
    from imae.net.stepwise import Stepwise

    stepwise = Stepwise(net, device)
    log_line("caffe.cpp:351", "Performing Forward")
    log_line("caffe.cpp:356", f"Initial loss: {number(stepwise.forward())}")
    log_line("caffe.cpp:357", "Performing Backward")
    stepwise.backward()
    net.debug_info = False  # Caffe measures the layers only, without the net's logging
    forward, backward = timed(stepwise)
    log_line("caffe.cpp:365", "*** Benchmark begins ***")
    log_line("caffe.cpp:366", f"Testing for {iterations} iterations.")
    for iteration in range(1, iterations + 1):
        before = forward.total + backward.total
        stepwise.forward()
        stepwise.backward()
        both = forward.total + backward.total - before
        log_line("caffe.cpp:394", f"Iteration: {iteration} forward-backward time: {number(both)} ms.")
    total = forward.total + backward.total
    means = [[time / iterations for time in clock.layers] for clock in (forward, backward)]
    log_line("caffe.cpp:397", "Average time per layer: ")
    for name, forwards, backwards in zip(net.layer_names, *means, strict=True):
        log_line("caffe.cpp:400", f"{name:>10}\tforward: {number(forwards)} ms.")
        log_line("caffe.cpp:403", f"{name:>10}\tbackward: {number(backwards)} ms.")
    log_line("caffe.cpp:408", f"Average Forward pass: {number(forward.total / iterations)} ms.")
    log_line("caffe.cpp:410", f"Average Backward pass: {number(backward.total / iterations)} ms.")
    log_line("caffe.cpp:412", f"Average Forward-Backward: {number(total / iterations)} ms.")
    log_line("caffe.cpp:414", f"Total Time: {number(total)} ms.")
    log_line("caffe.cpp:415", "*** Benchmark ends ***")
    return means[0], means[1]
