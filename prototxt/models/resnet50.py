"""ResNet-50 of He et al. 2016 (section 4.1), the net of IMAE's later version for Clothing1M.

Bottleneck blocks of 1x1, 3x3 and 1x1 convolutions; a stage begins with stride 2 in its first 1x1 convolution
and a projection shortcut. Names are those of He's Caffe release, where only `conv1` has a bias, so that
`imae train --weights` loads its layers; the classifier, `fc` here, is trained from scratch.

The later version reports accuracies on Clothing1M and names the net; its settings are not among our sources.
Chosen here:
- He's ImageNet weights to start from: give --weights; without them, `msra`
- means 104, 117, 123 (BGR); images resized to 256 x 256, crops of 224 x 224, mirrored
- the million noisy labels for training, the 10,526 clean ones for the test (277 batches of 38)
- batch 32, ten passes, rate 0.001, and 0.0001 from the middle on, weight decay 0.001
- GCE with q 0.7, IMAE with T 8, as on MARS

data/clothing1m_train.txt and data/clothing1m_test.txt list the images below data/clothing1m, one per line,
with their labels, 0 to 13.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.message import Message

from imae.prototxt import TEST, TRAIN, NetParameter, SolverParameter
from imae.prototxt.models.inception import LOSSES
from imae.prototxt.models.net_parts import (
    Losses,
    add,
    add_average,
    add_classifier,
    add_conv,
    add_losses,
    picture_data,
    solver,
    with_data,
)
from imae.prototxt.models.stages import net_and_solver

STAGES = ((2, 3), (3, 4), (4, 6), (5, 3))  # He's number of a stage, and its blocks
CLOTHES = 14


def resnet50(classes: int = CLOTHES, loss: Losses = "SoftmaxWithLoss") -> NetParameter:
    """The net without data layers: blobs `data` (N, 3, 224, 224) and `label`, the tail as in `resnet`."""
    net = NetParameter(name="ResNet-50")
    names = ("bn_conv1", "scale_conv1", "conv1_relu")
    top = add_conv(net, "conv1", "data", 64, kernel=7, stride=2, bias=True, names=names)
    pooling = {"pool": "MAX", "kernel_size": 3, "stride": 2}
    top = add(net, "Pooling", "pool1", top, pooling_param=pooling)
    for stage, blocks in STAGES:
        for block in range(blocks):
            top = _block(net, f"{stage}{'abcdef'[block]}", top, 16 << stage, first=block == 0)
    add_classifier(net, add_average(net, "pool5", top), classes)
    add_losses(net, loss, "fc", "label")
    return net


def _block(net: NetParameter, place: str, bottom: str, width: int, first: bool) -> str:
    """1x1, 3x3 and 1x1 convolutions of `width`, `width` and 4 * `width` channels, plus the shortcut, relu."""
    stride = 2 if first and not place.startswith("2") else 1

    def conv(
        branch: str, bottom: str, num_output: int, kernel: int, stride: int = 1, relu: bool = True
    ) -> str:
        name = f"res{place}_branch{branch}"
        names = (f"bn{place}_branch{branch}", f"scale{place}_branch{branch}", f"{name}_relu")
        return add_conv(net, name, bottom, num_output, kernel, stride=stride, relu=relu, names=names)

    skip = conv("1", bottom, 4 * width, 1, stride, relu=False) if first else bottom
    top = conv("2a", bottom, width, 1, stride)
    top = conv("2b", top, width, 3)
    top = conv("2c", top, 4 * width, 1, relu=False)
    name = add(net, "Eltwise", f"res{place}", skip, top)
    return add(net, "ReLU", f"{name}_relu", name, top=name)


def with_clothing1m_data(net: NetParameter, batch: int = 32) -> NetParameter:
    """`net` with two ImageData layers: training images with noisy labels, test images with clean ones."""
    mean, root = (104, 117, 123), "data/clothing1m/"
    return with_data(
        net,
        picture_data(TRAIN, "data/clothing1m_train.txt", root, batch, mean_value=mean, mirror=True),
        picture_data(TEST, "data/clothing1m_test.txt", root, 38, mean_value=mean),
    )


def clothing1m_solver(name: str) -> SolverParameter:
    """Ten passes over a million images in batches of 32, a test after each."""
    epoch = 31250
    return solver(
        f"clothing1m/{name}",
        test_iter=[277],
        test_interval=epoch,
        test_initialization=False,
        base_lr=0.001,
        lr_policy="step",
        gamma=0.1,
        stepsize=5 * epoch,
        max_iter=10 * epoch,
        weight_decay=0.001,
        snapshot=epoch,
    )


def models() -> Iterator[tuple[str, str, Message]]:
    """(path below prototxt/models without suffix, header, message) of each file."""
    about = f"{__doc__}\nMade by models/resnet50.py."
    net, param = with_clothing1m_data(resnet50(loss=LOSSES)), clothing1m_solver("resnet50")
    yield from net_and_solver("clothing1m/resnet50", about, net, param, LOSSES, (3, 224, 224))
