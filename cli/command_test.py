"""`imae test`: score a model as `caffe test` does.

Caffe: tools/caffe.cpp, test().
"""

from __future__ import annotations

import argparse

from imae.cli.device_options import (
    add_data_cache_option,
    add_double_option,
    add_gpu_option,
    add_threads_option,
    chosen_data_resources,
    chosen_dtype,
    requested_gpu,
)
from imae.cli.options import add_net_options, chosen_net
from imae.files.errors import ImaeError
from imae.layers.run import Run
from imae.net.device import DeviceLog, choose_device, set_threads
from imae.net.net import Net
from imae.net.score import score
from imae.net.weights import load_to_use

DEVICE_LOG = DeviceLog(
    cpu=("caffe.cpp:275", "Use CPU."),
    gpu=[
        ("caffe.cpp:266", "Use GPU with device ID {id}"),
        ("caffe.cpp:270", "GPU device name: {name}"),
    ],
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--model", metavar="NET", help="the net's prototxt")
    parser.add_argument("--weights", metavar="W", help="its .caffemodel")
    parser.add_argument("--iterations", type=int, default=50, metavar="N", help="batches to run (50)")
    add_gpu_option(parser)
    add_net_options(parser, "TEST")
    add_double_option(parser)
    add_data_cache_option(parser)
    add_threads_option(parser, "threads to compute with on the CPU, and to decode pictures with")


def run(args: argparse.Namespace) -> None:
    """Log the outputs of each batch, then their means."""
    if not args.model:
        raise ImaeError("Need a model definition to score: --model NET")
    if not args.weights:
        raise ImaeError("Need model weights to score: --weights W")
    if args.iterations < 1:
        raise ImaeError(f"--iterations must be at least 1, got {args.iterations}")
    set_threads(args.threads)
    device = choose_device(requested_gpu(args.gpu), DEVICE_LOG)
    resources = chosen_data_resources(args)
    net = Net(chosen_net(args.model, args), Run(data_resources=resources, dtype=chosen_dtype(args)))
    load_to_use(net, args.weights, args.dialect)
    score(net, device, args.iterations)
