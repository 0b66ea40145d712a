"""GoogLeNet with batch normalisation, the IMAE paper's net for MARS (section 5.2).

The net is that of Ioffe and Szegedy 2015 (arXiv 1502.03167), figure 5: GoogLeNet with two 3x3 convolutions
in place of each 5x5, ten modules of which 3c and 4e halve the size by their strides, BatchNorm and Scale
after every convolution, which has no bias. Layers are named as in Caffe's googlenet_bn
(lim0606/caffe-googlenet-bn), so that `imae train --weights` loads them; the classifier, `fc` here, is trained
from scratch.

From the paper: crops of 224 x 224 from images resized to 256 x 256, mirrored; batch 180; the solver.
Not given by the sources, and chosen here:
- Figure 5 prints "avg + 128" for 4c and 4d, but 576 channels after them and 1024 after 4e, which need 96.
  Here: 96, as in googlenet_bn. With 1000 classes this net has 11.19 million parameters, with 128 it would
  have 11.29 million; the text of Ioffe and Szegedy has 13.6 million, which is neither.
- The first convolution: theirs is separable, here it is plain, as in googlenet_bn. No auxiliary classifiers.
- The initial weights: ImageNet's if --weights gives them, else `xavier`.
- The means that are subtracted: 104, 117, 123 (BGR), those of ImageNet.
- The batches: images are shuffled anew in each pass.
- The embedding: the 1024 averages `pool5`, right before the classifier; `imae retrieve --blob pool5`.
- Tests during training: none, since the test set has other persons. Phase TEST, for `imae test`, has the
  training persons, cropped in the middle.

data/mars_train.txt lists the training images below data/mars, one per line, with the 625 persons numbered
from 0: "bbox_train/0001/0001C1T0001F001.jpg 0".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from google.protobuf.message import Message

from imae.prototxt import TEST, TRAIN, NetParameter, SolverParameter
from imae.prototxt.models.net_parts import (
    Losses,
    add,
    add_average,
    add_classifier,
    add_conv,
    add_losses,
    loss_layer,
    picture_data,
    solver,
    with_data,
)
from imae.prototxt.models.stages import net_and_solver

MARS_PERSONS = 625


class Module(NamedTuple):
    """A row of figure 5: channels of each convolution, and the pooling.

    Without `single` and `proj` the module has stride 2 and passes its pooled bottom through.
    """

    single: int
    reduce: int
    triple: int
    double_reduce: int
    double: int
    pool: str
    proj: int


MODULES = {
    "3a": Module(64, 64, 64, 64, 96, "AVE", 32),
    "3b": Module(64, 64, 96, 64, 96, "AVE", 64),
    "3c": Module(0, 128, 160, 64, 96, "MAX", 0),
    "4a": Module(224, 64, 96, 96, 128, "AVE", 128),
    "4b": Module(192, 96, 128, 96, 128, "AVE", 128),
    "4c": Module(160, 128, 160, 128, 160, "AVE", 96),
    "4d": Module(96, 128, 192, 160, 192, "AVE", 96),
    "4e": Module(0, 128, 192, 192, 256, "MAX", 0),
    "5a": Module(352, 192, 320, 160, 224, "AVE", 128),
    "5b": Module(352, 192, 320, 192, 224, "MAX", 128),
}


def googlenet_bn(
    classes: int = MARS_PERSONS,
    loss: Losses = "SoftmaxWithLoss",
    modules: dict[str, Module] = MODULES,
) -> NetParameter:
    """The net without data layers: blobs `data` (N, 3, 224, 224) and `label`, the tail as in `resnet`.

    The embedding is blob `pool5`, (N, 1024, 1, 1).
    """
    net = NetParameter(name="GoogLeNet-BN")
    top = _conv(net, "conv1/7x7_s2", "data", 64, 7, stride=2)
    top = _halve(net, "pool1/3x3_s2", top)
    top = _conv(net, "conv2/3x3_reduce", top, 64, 1)
    top = _conv(net, "conv2/3x3", top, 192, 3)
    top = _halve(net, "pool2/3x3_s2", top)
    for name, module in modules.items():
        top = _module(net, f"inception_{name}", top, module)
    add_classifier(net, add_average(net, "pool5", top), classes, filler="xavier")
    add_losses(net, loss, "fc", "label")
    return net


def _module(net: NetParameter, name: str, bottom: str, module: Module) -> str:
    stride = 1 if module.proj else 2
    branches = []
    if module.single:
        branches.append(_conv(net, f"{name}/1x1", bottom, module.single, 1))
    top = _conv(net, f"{name}/3x3_reduce", bottom, module.reduce, 1)
    branches.append(_conv(net, f"{name}/3x3", top, module.triple, 3, stride))
    top = _conv(net, f"{name}/double3x3_reduce", bottom, module.double_reduce, 1)
    top = _conv(net, f"{name}/double3x3a", top, module.double, 3)
    branches.append(_conv(net, f"{name}/double3x3b", top, module.double, 3, stride))
    if module.proj:
        pooling = {"pool": module.pool, "kernel_size": 3, "stride": 1, "pad": 1}
        top = add(net, "Pooling", f"{name}/pool", bottom, pooling_param=pooling)
        branches.append(_conv(net, f"{name}/pool_proj", top, module.proj, 1))
    else:
        branches.append(_halve(net, f"{name}/pool", bottom))
    return add(net, "Concat", f"{name}/output", *branches)


def _conv(net: NetParameter, name: str, bottom: str, num_output: int, kernel: int, stride: int = 1) -> str:
    names = (f"{name}/bn", f"{name}/bn/sc", f"{name}/bn/sc/relu")
    return add_conv(net, name, bottom, num_output, kernel, stride=stride, filler="xavier", names=names)


def _halve(net: NetParameter, name: str, bottom: str) -> str:
    return add(net, "Pooling", name, bottom, pooling_param={"pool": "MAX", "kernel_size": 3, "stride": 2})


def with_mars_data(net: NetParameter, batch: int = 180) -> NetParameter:
    """`net` with two ImageData layers of the training persons in front."""
    mean = (104, 117, 123)
    source = ("data/mars_train.txt", "data/mars/")
    return with_data(
        net,
        picture_data(TRAIN, *source, batch, mean_value=mean, mirror=True),
        picture_data(TEST, *source, 100, mean_value=mean),
    )


def mars_solver(name: str) -> SolverParameter:
    """The solver of section 5.2: the rate is halved every 10,000 of 50,000 iterations."""
    return solver(
        f"mars/{name}",
        base_lr=0.01,
        lr_policy="step",
        gamma=0.5,
        stepsize=10000,
        max_iter=50000,
        weight_decay=0.0005,
        snapshot=10000,
    )


LOSSES = {
    "cce": loss_layer("SoftmaxWithLoss"),
    "mae": loss_layer("MAELoss"),
    "gce": loss_layer("GCELoss", q=0.7),
    "imae": loss_layer("IMAELoss", t=8),
}


def models() -> Iterator[tuple[str, str, Message]]:
    """(path below prototxt/models without suffix, header, message) of each file."""
    about = f"{__doc__}\nMade by models/inception.py."
    net, param = with_mars_data(googlenet_bn(loss=LOSSES)), mars_solver("googlenet_bn")
    yield from net_and_solver("mars/googlenet_bn", about, net, param, LOSSES, (3, 224, 224))
