"""`imae time`: how long each layer of a net takes, forward and backward, as `caffe time` measures it.

    imae time --model train_val.prototxt --iterations 50 --gpu 0

The layers run one after the other and each is waited for, so that a layer's time holds the start of its work,
too; a training run, which waits for nothing, is faster. Input blobs are 0, the weights are the fillers'.

Caffe: tools/caffe.cpp, time(). Differs: times are fractions of milliseconds everywhere, where Caffe on a CPU
cuts those of iterations and the total to whole ones.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from imae.cli.device_options import add_gpu_option, add_threads_option, requested_gpu
from imae.cli.options import add_net_options, chosen_net
from imae.files.caffe_log import log_line, number
from imae.files.errors import ImaeError
from imae.layers.layer import DataLayer
from imae.net.device import DeviceLog, choose_device, set_threads
from imae.net.net import Net
from imae.net.no_loss import no_loss_words, stages_of_losses
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
    if not args.model:
        raise ImaeError("Need a model definition to time: --model NET")
    if args.iterations < 1:
        raise ImaeError(f"--iterations must be at least 1, got {args.iterations}")
    set_threads(args.threads)
    device = choose_device(requested_gpu(args.gpu), DEVICE_LOG)
    param = chosen_net(args.model, args)
    net = Net(param)
    if (words := no_loss_words(net, param)) and stages_of_losses(param):  # a deploy net has none, rightly
        logger.warning("%s, and the times of the backward pass are of nothing, as in Caffe", words)
    measure(net, device, args.iterations)


@dataclass
class Times:
    """Milliseconds of one pass through a net: of each layer, and of all."""

    layers: list[float] = field(default_factory=list)
    total: float = 0


def measure(net: Net, device: torch.device, iterations: int) -> tuple[list[float], list[float]]:
    """Log the times of the layers; returns their means, forward and backward, in milliseconds."""
    first = Stepwise(net, device)  # logs what debug_info asks for
    log_line("caffe.cpp:351", "Performing Forward")
    log_line("caffe.cpp:356", f"Initial loss: {number(first.forward())}")
    log_line("caffe.cpp:357", "Performing Backward")
    first.backward()
    del first  # and its blobs
    passes = LayerwisePasses(net, device)
    log_line("caffe.cpp:365", "*** Benchmark begins ***")
    log_line("caffe.cpp:366", f"Testing for {iterations} iterations.")
    forwards, backwards = [], []
    start = perf_counter()
    for iteration in range(1, iterations + 1):
        forwards.append(passes.forward())
        backwards.append(passes.backward())
        both = forwards[-1].total + backwards[-1].total
        log_line("caffe.cpp:394", f"Iteration: {iteration} forward-backward time: {number(both)} ms.")
    total = 1e3 * (perf_counter() - start)
    means = [
        [sum(times) / iterations for times in zip(*(one.layers for one in direction), strict=True)]
        for direction in (forwards, backwards)
    ]
    log_line("caffe.cpp:397", "Average time per layer: ")
    for name, forward, backward in zip(net.layer_names, *means, strict=True):
        log_line("caffe.cpp:400", f"{name:>10}\tforward: {number(forward)} ms.")
        log_line("caffe.cpp:403", f"{name:>10}\tbackward: {number(backward)} ms.")
    forward, backward = (sum(one.total for one in direction) for direction in (forwards, backwards))
    log_line("caffe.cpp:408", f"Average Forward pass: {number(forward / iterations)} ms.")
    log_line("caffe.cpp:410", f"Average Backward pass: {number(backward / iterations)} ms.")
    log_line("caffe.cpp:412", f"Average Forward-Backward: {number(total / iterations)} ms.")
    log_line("caffe.cpp:414", f"Total Time: {number(total)} ms.")
    log_line("caffe.cpp:415", "*** Benchmark ends ***")
    return means[0], means[1]


class LayerwisePasses:
    """Passes through a net with a graph for each layer, so that its backward pass can be run alone."""

    def __init__(self, net: Net, device: torch.device) -> None:
        self.net, self.device = net.to(device), device
        self._blobs = {name: torch.zeros(net.blob_shapes[name], device=device) for name in net.inputs}
        self._diffs: dict[str, Tensor] = {}
        self._graphs: list[tuple[list[Tensor], list[Tensor]]] = []

    def forward(self) -> Times:
        """Run all layers on the next batch."""
        self._graphs.clear()
        return self._timed(range(len(self.net.steps)), self._forward_layer)

    def backward(self) -> Times:
        """Run the backward passes from the last layer to the first; the times are in the net's order."""
        weights = self.net.loss_weights.items()
        self._diffs = {name: torch.full_like(self._blobs[name], weight) for name, weight in weights}
        times = self._timed(reversed(range(len(self.net.steps))), self._backward_layer)
        times.layers.reverse()
        return times

    def _timed(self, indices: Iterable[int], run: Callable[[int], None]) -> Times:
        times = Times()
        start = before = self._now()
        for index in indices:
            run(index)
            now = self._now()
            times.layers.append(1e3 * (now - before))
            before = now
        times.total = 1e3 * (before - start)
        return times

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()

    def _forward_layer(self, index: int) -> None:
        step = self.net.steps[index]
        bottoms = [
            self._blobs[name].detach().requires_grad_(need)
            for name, need in zip(step.bottoms, step.bottom_need_backward, strict=True)
        ]
        step.check(bottoms)
        tops: list[Tensor] = []
        if isinstance(step.layer, DataLayer):
            tops = [blob.to(self.device, non_blocking=True) for blob in step.layer.next_batch()]
        elif step.layer.type != "Input":
            with torch.set_grad_enabled(step.need_backward):
                result = step.layer(*bottoms)
            tops = [result] if isinstance(result, Tensor) else list(result)
        self._blobs.update(zip(step.tops, tops, strict=step.layer.type != "Input"))
        self._graphs.append((bottoms, tops))

    def _backward_layer(self, index: int) -> None:
        step, (bottoms, tops) = self.net.steps[index], self._graphs[index]
        if not step.need_backward:
            return
        ends = [(name, top) for name, top in zip(step.tops, tops, strict=True) if top.requires_grad]
        starts = [(name, b) for name, b in zip(step.bottoms, bottoms, strict=True) if b.requires_grad]
        parameters = [blob for blob in step.layer.blobs if blob.requires_grad]
        if not ends or not (starts or parameters):
            return
        grads = torch.autograd.grad(
            [top for _, top in ends],
            [bottom for _, bottom in starts] + parameters,
            [self._diffs.get(name, torch.zeros_like(top)) for name, top in ends],
            allow_unused=True,
        )
        self._diffs.update(
            (name, torch.zeros_like(bottom) if grad is None else grad)
            for (name, bottom), grad in zip(starts, grads, strict=False)
        )
