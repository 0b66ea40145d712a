"""The nets of benchmarks/runtimes.py: each a deployed net whose images are small enough for a short run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from imae.prototxt import TEST, NetParameter
from imae.prototxt.models.inception import googlenet_bn
from imae.prototxt.models.net_parts import add, add_average, add_classifier, add_conv, deploy
from imae.prototxt.models.resnet import resnet
from imae.prototxt.models.resnet50 import resnet50
from imae.prototxt.text import parse_net, read_net

TOP = Path(__file__).parent.parent
SUPPORT = TOP / "tests" / "support"

LENET = """name: "LeNet"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 1 dim: 28 dim: 28 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 20 kernel_size: 5 } }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
        convolution_param { num_output: 50 kernel_size: 5 } }
layer { name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2"
        pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "ip1" type: "InnerProduct" bottom: "pool2" top: "ip1"
        inner_product_param { num_output: 500 } }
layer { name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }
layer { name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2"
        inner_product_param { num_output: 10 } }
"""
# Groups, LRN, poolings whose last window is clipped. A third of CaffeNet's channels.
CAFFENET = """name: "CaffeNet"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 227 dim: 227 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 32 kernel_size: 11 stride: 4 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "norm1" type: "LRN" bottom: "pool1" top: "norm1"
        lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 } }
layer { name: "conv2" type: "Convolution" bottom: "norm1" top: "conv2"
        convolution_param { num_output: 80 pad: 2 kernel_size: 5 group: 2 } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2"
        pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "norm2" type: "LRN" bottom: "pool2" top: "norm2"
        lrn_param { local_size: 5 alpha: 0.0001 beta: 0.75 } }
layer { name: "conv3" type: "Convolution" bottom: "norm2" top: "conv3"
        convolution_param { num_output: 128 pad: 1 kernel_size: 3 } }
layer { name: "relu3" type: "ReLU" bottom: "conv3" top: "conv3" }
layer { name: "conv4" type: "Convolution" bottom: "conv3" top: "conv4"
        convolution_param { num_output: 128 pad: 1 kernel_size: 3 group: 2 } }
layer { name: "relu4" type: "ReLU" bottom: "conv4" top: "conv4" }
layer { name: "pool5" type: "Pooling" bottom: "conv4" top: "pool5"
        pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "fc6" type: "InnerProduct" bottom: "pool5" top: "fc6"
        inner_product_param { num_output: 256 } }
layer { name: "relu6" type: "ReLU" bottom: "fc6" top: "fc6" }
layer { name: "drop6" type: "Dropout" bottom: "fc6" top: "fc6" }
layer { name: "fc8" type: "InnerProduct" bottom: "fc6" top: "fc8"
        inner_product_param { num_output: 100 } }
"""
# Scores of two depths, the deeper ones enlarged, cropped onto the others and added; back to the image's size.
FCN = """name: "FCN"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 50 dim: 60 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 16 pad: 20 kernel_size: 3 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1"
        pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2"
        convolution_param { num_output: 24 pad: 1 kernel_size: 3 } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2"
        pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "conv3" type: "Convolution" bottom: "pool2" top: "conv3"
        convolution_param { num_output: 32 kernel_size: 5 dilation: 2 } }
layer { name: "relu3" type: "ReLU" bottom: "conv3" top: "conv3" }
layer { name: "score" type: "Convolution" bottom: "conv3" top: "score"
        convolution_param { num_output: 5 kernel_size: 1 } }
layer { name: "upscore2" type: "Deconvolution" bottom: "score" top: "upscore2"
        convolution_param { num_output: 5 kernel_size: 4 stride: 2 bias_term: false } }
layer { name: "score_pool1" type: "Convolution" bottom: "pool1" top: "score_pool1"
        convolution_param { num_output: 5 kernel_size: 1 } }
layer { name: "score_pool1c" type: "Crop" bottom: "score_pool1" bottom: "upscore2" top: "score_pool1c"
        crop_param { axis: 2 offset: 5 } }
layer { name: "fuse" type: "Eltwise" bottom: "upscore2" bottom: "score_pool1c" top: "fuse" }
layer { name: "upscore" type: "Deconvolution" bottom: "fuse" top: "upscore"
        convolution_param { num_output: 5 group: 5 kernel_size: 4 stride: 2 bias_term: false } }
layer { name: "crop" type: "Crop" bottom: "upscore" bottom: "data" top: "crop"
        crop_param { axis: 2 offset: 4 } }
layer { name: "prob" type: "Softmax" bottom: "crop" top: "prob" }
"""
LSTM = """name: "LSTM"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 6 dim: 1 dim: 12 } } }
layer { name: "cont" type: "Input" top: "cont" input_param { shape { dim: 6 dim: 1 } } }
layer { name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" top: "h" recurrent_param { num_output: 16 } }
layer { name: "fc" type: "InnerProduct" bottom: "h" top: "fc" inner_product_param { num_output: 7 axis: 2 } }
"""


def mobilenet() -> NetParameter:
    """Blocks of a depthwise and a 1x1 convolution, each with BatchNorm, Scale and ReLU."""
    net = NetParameter(name="MobileNet")
    top, width = add_conv(net, "conv1", "data", 16, kernel=3, stride=2), 16
    for number, (outputs, stride) in enumerate(((32, 1), (64, 2), (64, 1), (128, 2), (128, 1)), 2):
        top = add_conv(net, f"conv{number}_dw", top, width, kernel=3, stride=stride)
        depthwise = next(layer for layer in net.layer if layer.name == f"conv{number}_dw")
        depthwise.convolution_param.group = width
        top, width = add_conv(net, f"conv{number}", top, outputs, kernel=1), outputs
    add_classifier(net, add_average(net, "pool", top), 20)
    return logits(net, 3, 64, 64)


def logits(net: NetParameter, *shape: int) -> NetParameter:
    """The deployed net without its softmax, whose values hide differences."""
    made = deploy(net, *shape)
    del made.layer[-1]
    return made


def small_ssd() -> NetParameter:
    """The small SSD of the tests, on an image of 64 x 64."""
    with _support():
        import small_ssd as support
    net = parse_net(support.NET)
    kept = [layer for layer in net.layer if layer.type not in ("AnnotatedData", "DetectionEvaluate")]
    del net.layer[:]
    add(net, "Input", "data", top="data", input_param={"shape": [{"dim": [1, 3, 64, 64]}]})
    net.layer.extend(layer for layer in kept if layer.type != "MultiBoxLoss")
    return net


def digits() -> NetParameter:
    """The digits' net of `imae demo`."""
    net = read_net(TOP / "prototxt" / "models" / "digits" / "train_val.prototxt")
    return logits(net, 1, 8, 8)


NETS: dict[str, Callable[[], NetParameter]] = {
    "LeNet": lambda: parse_net(LENET),
    "digits": digits,
    "ResNet-20": lambda: logits(resnet(20), 3, 32, 32),
    "GoogLeNet": lambda: logits(googlenet_bn(100), 3, 224, 224),
    "ResNet-50": lambda: logits(resnet50(100), 3, 224, 224),
    "CaffeNet, narrow": lambda: parse_net(CAFFENET),
    "MobileNet, small": mobilenet,
    "SSD, small": small_ssd,
    "FCN, small": lambda: parse_net(FCN),
    "LSTM": lambda: parse_net(LSTM),
}


def layer_nets() -> Iterator[tuple[str, NetParameter]]:
    """A net of one layer for each type that has bottoms, by the tests' table of layers.

    Types that read files do so in the working directory, where these files are while a net is taken.
    """
    with _support():
        import layer_cases
    with TemporaryDirectory() as name, _working_directory(Path(name)):
        layer_cases.write_files(Path(name))
        for key, case in layer_cases.CASES.items():
            layer = layer_cases.make(key, {"phase": None})
            if not case.bottoms:
                continue
            net = NetParameter(name=key)
            net.state.phase = TEST
            for bottom, value in zip(layer.bottom, case.bottoms, strict=True):
                shape = [{"dim": list(value.shape)}]
                add(net, "Input", bottom, top=bottom, input_param={"shape": shape})
            net.layer.append(layer)
            yield key, net


@contextmanager
def _support() -> Iterator[None]:
    """Within it the modules of tests/support can be imported."""
    sys.path.insert(0, str(SUPPORT))
    try:
        yield
    finally:
        sys.path.remove(str(SUPPORT))


@contextmanager
def _working_directory(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
