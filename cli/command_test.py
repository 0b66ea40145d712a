"""`imae test`: score a model as `caffe test` does.

Caffe: tools/caffe.cpp, test().
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from numpy.typing import NDArray

from imae.cli.options import add_net_options, chosen_net
from imae.files.caffe_log import log_line, number, output_text
from imae.files.errors import ImaeError
from imae.layers.run import Run
from imae.net.device import (
    add_data_cache_option,
    add_double_option,
    chosen_data_resources,
    chosen_dtype,
    gpu,
    set_threads,
)
from imae.net.executor import NetExecutor
from imae.net.net import Net
from imae.net.weights import load_to_use

COMMAND = "test"
HELP = "score a model: the mean outputs of its TEST net over some batches"


Array = NDArray[np.float32]
f32 = np.float32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--model", metavar="NET", help="the net's prototxt")
    parser.add_argument("--weights", metavar="W", help="its .caffemodel")
    parser.add_argument("--iterations", type=int, default=50, metavar="N", help="batches to run (50)")
    parser.add_argument("--gpu", nargs="?", const="0", metavar="ID", help="compute on this GPU")
    add_net_options(parser, "TEST")
    add_double_option(parser)
    add_data_cache_option(parser)
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads to compute with on the CPU, and to decode pictures with",
    )


def run(args: argparse.Namespace) -> None:
    """Log the outputs of each batch, then their means."""
    if not args.model:
        raise ImaeError("Need a model definition to score: --model NET")
    if not args.weights:
        raise ImaeError("Need model weights to score: --weights W")
    if args.iterations < 1:
        raise ImaeError(f"--iterations must be at least 1, got {args.iterations}")
    set_threads(args.threads)
    device = torch.device("cpu")
    if args.gpu is None:
        log_line("caffe.cpp:275", "Use CPU.")
    else:
        device = gpu(args.gpu, f"--gpu {args.gpu}", "leave --gpu out")
        log_line("caffe.cpp:266", f"Use GPU with device ID {device.index}")
        log_line("caffe.cpp:270", f"GPU device name: {torch.cuda.get_device_name(device)}")
    resources = chosen_data_resources(args)
    net = Net(chosen_net(args.model, args), Run(data_resources=resources, dtype=chosen_dtype(args)))
    load_to_use(net, args.weights, args.dialect)
    score(net, device, args.iterations)


def score(net: Net, device: torch.device, iterations: int) -> dict[str, Array]:
    """Run so many batches, log what `caffe test` logs, return the means of the output blobs."""
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
