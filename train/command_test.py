"""`imae test`: score a model as `caffe test` does.

Caffe: tools/caffe.cpp, test().
"""

from __future__ import annotations

import argparse
import logging

import numpy as np
import torch
from numpy.typing import NDArray

from imae.converters.caffemodel import add_dialect_option, load_caffemodel
from imae.layers.net import Net
from imae.prototxt import TEST, TRAIN, NetParameter
from imae.prototxt.errors import ImaeError
from imae.prototxt.text import read_net
from imae.train.caffe_log import number, output_text
from imae.train.device import gpu, set_threads
from imae.train.executor import NetExecutor

COMMAND = "test"
HELP = "score a model: the mean outputs of its TEST net over some batches"

logger = logging.getLogger(__name__)

Array = NDArray[np.float32]
f32 = np.float32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--model", metavar="NET", help="the net's prototxt")
    parser.add_argument("--weights", metavar="W", help="its .caffemodel")
    parser.add_argument("--iterations", type=int, default=50, metavar="N", help="batches to run (50)")
    parser.add_argument("--gpu", nargs="?", const="0", metavar="ID", help="compute on this GPU")
    parser.add_argument("--phase", default="TEST", help="TRAIN or TEST (TEST)")
    parser.add_argument("--level", type=int, default=0, help="the net's level (0)")
    parser.add_argument("--stage", default="", metavar="S[,S]", help="the net's stages")
    parser.add_argument("--threads", type=int, metavar="N", help="threads to compute with on the CPU")
    add_dialect_option(parser)


def run(args: argparse.Namespace) -> None:
    """Log the outputs of each batch, then their means."""
    if not args.model:
        raise ImaeError("Need a model definition to score: --model NET")
    if not args.weights:
        raise ImaeError("Need model weights to score: --weights W")
    if args.phase not in ("TRAIN", "TEST"):
        raise ImaeError(f'phase must be "TRAIN" or "TEST"; got {args.phase!r}')
    if args.iterations < 1:
        raise ImaeError(f"--iterations must be at least 1, got {args.iterations}")
    set_threads(args.threads)
    device = torch.device("cpu")
    if args.gpu is None:
        _log(275, "Use CPU.")
    else:
        device = gpu(args.gpu, f"--gpu {args.gpu}", "leave --gpu out")
        _log(266, f"Use GPU with device ID {device.index}")
        _log(270, f"GPU device name: {torch.cuda.get_device_name(device)}")
    param = NetParameter()
    param.CopyFrom(read_net(args.model))
    param.state.phase = TRAIN if args.phase == "TRAIN" else TEST
    param.state.stage.extend(args.stage.split(","))  # Caffe: without --stage this adds the stage ""
    param.state.level = args.level
    net = Net(param)
    load_caffemodel(net, args.weights, args.dialect)
    score(net, device, args.iterations)


def score(net: Net, device: torch.device, iterations: int) -> dict[str, Array]:
    """Run so many batches, log what `caffe test` logs, return the means of the output blobs."""
    run_net = NetExecutor(net, device)
    _log(281, f"Running for {iterations} iterations.")
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
                _log(304, f"Batch {batch}, {name} = {number(value)}")
    _log(309, f"Loss: {number(total / f32(iterations))}")
    means = {name: values / f32(iterations) for name, values in sums.items()}
    for name, values in means.items():
        for value in values.ravel():
            _log(321, output_text(name, value, f32(net.loss_weights.get(name, 0))))
    return means


def _log(line: int, message: str) -> None:
    logger.info(message, extra={"caffe": f"caffe.cpp:{line}"})
