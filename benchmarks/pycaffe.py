"""How fast is pycaffe's forward() beside plain PyTorch and ONNX Runtime?

    python -m benchmarks pycaffe [--nets ResNet-50 ...] [--batches 1 16] [--rounds 5]

ResNet-20 (with projections), GoogLeNet and ResNet-50 of random weights, in phase TEST on the CPU. A call of
pycaffe is `net.forward(data=images)`, with the copy of the images into the net and the output as an array:

    forward()                   nobody looks at blobs inside of the net, so they are not made
    forward(), one blob read    and the script then reads the blob before the classifier
    layer by layer              every layer by itself, every blob in its memory: what a pass is where all
                                blobs are looked at; only for small batches

PyTorch has the same layers as a user of PyTorch writes them, ONNX Runtime the model of `imae export`, each as
many threads as torch. All ways are timed in turns in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import imae.pycaffe as caffe
from benchmarks.architectures import NETS
from benchmarks.measure import REST, in_turns, machine, table
from benchmarks.nets import plain_pass, runtime_pass
from benchmarks.zoo import fill
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net.lazy_stepwise import LazyStepwise
from imae.net.net import Net
from imae.net.stepwise import Stepwise
from imae.prototxt import TEST, NetParameter
from imae.prototxt.models.net_parts import deploy
from imae.prototxt.models.resnet import resnet

# By net: the largest batch that is also run layer by layer.
LAYER_BY_LAYER = {"ResNet-20": 16, "GoogLeNet": 4, "ResNet-50": 1}
FORWARD, READ, PLAIN = "forward()", "forward(), one blob read", "layer by layer"
EAGER = "PyTorch eager"


def message(name: str, count: int) -> NetParameter:
    """The net for so many images."""
    if name == "ResNet-20":
        param = deploy(resnet(20, shortcut="B"), 3, 32, 32)
        param.layer[0].input_param.shape[0].dim[0] = count
        return param
    return NETS[name].net(count, TEST)


def ways_of(name: str, count: int) -> dict[str, Callable[[], Any]]:
    """The ways to get the probabilities of `count` images, as functions that return them."""
    param = message(name, count)
    param.state.phase = TEST
    net = Net(param, Run(CaffeRandom(1)))
    fill(net)
    shape = net.blob_shapes["data"]
    images = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    inner = net.steps[-2].bottoms[0]  # of the classifier, which a Softmax follows
    lazy, reading = (caffe.Net.around(LazyStepwise(net)) for _ in range(2))
    plain = caffe.Net.around(Stepwise(net))

    def forward(net: caffe.Net, read: str = "") -> Any:
        probabilities = net.forward(data=images)["prob"]
        if read:
            probabilities = probabilities + 0 * net.blobs[read].data.flat[0]
        return probabilities

    tensor = torch.from_numpy(images)
    ways: dict[str, Callable[[], Any]] = {
        FORWARD: lambda: forward(lazy),
        READ: lambda: forward(reading, inner),
    }
    if count <= LAYER_BY_LAYER[name]:
        ways[PLAIN] = lambda: forward(plain)
    ways[EAGER] = plain_pass(net, tensor, ["prob"], channels_last=False)
    ways["PyTorch, channels-last"] = plain_pass(net, tensor, ["prob"], channels_last=True)
    ways["ONNX Runtime"] = runtime_pass(net, tensor, ["prob"])
    return ways


def main(arguments: argparse.Namespace) -> None:
    print(machine() + "\n")
    for name in arguments.nets:
        for count in arguments.batches:
            ways = ways_of(name, count)
            want = np.asarray(ways[EAGER]()[0])
            differences = [
                float(np.abs(np.asarray(way()).reshape(want.shape) - want).max()) for way in ways.values()
            ]
            rounds = arguments.rounds * 2 if count == 1 else arguments.rounds
            if count > 4:
                rounds = (rounds + 1) // 2
            print(table(f"{name}, batch {count}", in_turns(ways, rounds, warm_up=1, rest=REST), EAGER))
            print(
                f"- largest difference of a probability from PyTorch's: {max(differences):.1g}\n", flush=True
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nets", nargs="+", default=list(LAYER_BY_LAYER), choices=list(LAYER_BY_LAYER))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="of the timing; twice as many for one image, half for more than four (5)",
    )
