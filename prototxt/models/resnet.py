"""The ResNets for CIFAR of He et al. 2016 (section 4.2) as NetParameters: depth 6n + 2, widths 16, 32, 64.

A block has two 3x3 convolutions, each followed by BatchNorm and Scale; weights start from `msra`; the
classifier `fc` follows a global average. Where a stage begins, the size halves, the width doubles, and
the shortcut is

    A   an identity: every second pixel (Pooling, kernel 1, stride 2) and as many channels of zeros (Power
        with scale 0, Concat). He et al. on CIFAR, and so the IMAE paper
    B   a projection: a 1x1 convolution of stride 2, BatchNorm and Scale. The IMAE authors on CIFAR-100

`resnet` has no bias in its convolutions; `authors_resnet`, the net of the authors' CIFAR-100 runs, has.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from google.protobuf.message import Message

from imae.prototxt import TEST, TRAIN, LayerParameter, NetParameter, Phase, SolverParameter
from imae.prototxt.caffe_pb2 import DataOrderParameter
from imae.prototxt.models.net_parts import (
    Losses,
    add,
    add_accuracy,
    add_average,
    add_classifier,
    add_conv,
    add_losses,
    lmdb_data,
    loss_layer,
    loss_layers,
    solver,
    with_data,
)
from imae.prototxt.models.stages import net_and_solver

DEPTHS = (20, 32, 44, 56, 110)
WIDTHS = (16, 32, 64)
# Means of the training images, in the BGR order of the converted LMDBs.
CIFAR10_MEAN_BGR = (113.9, 123.0, 125.3)
CIFAR100_MEAN_BGR = (112.4, 124.1, 129.3)
# The authors subtracted CIFAR-10's means from CIFAR-100, the red one from blue and the blue one from red.
AUTHORS_MEAN_BGR = (125.3, 123.0, 113.9)
# Types of the authors' Caffe fork whose third bottom is the examples' p.
TYPES_WITH_P = ("UnifiedWeightLoss", "WeightedSoftmaxWithLoss")
# lambda and beta of the authors' runs that are in the tables of the later version, and of DM.
IMAE_BETAS = (2, 6, 8)
DM_BETAS = (6, 8)  # with lambda 0.5


def resnet(
    depth: int, classes: int = 10, loss: Losses = "SoftmaxWithLoss", shortcut: str = "A"
) -> NetParameter:
    """ResNet of `depth` layers without data layers: from blobs `data` (N, 3, 32, 32) and `label` to the tail.

    The tail is the loss of (fc, label), or several by stage, and an Accuracy in TEST. ValueError for a depth
    that is not 6n + 2, or a shortcut other than A or B.
    """
    net = NetParameter(name=f"ResNet{depth}")
    add_classifier(net, _trunk(net, depth, shortcut, bias=False), classes)
    add_losses(net, loss, "fc", "label")
    return net


def authors_resnet(loss: Losses, depth: int = 44, classes: int = 100) -> NetParameter:
    """The net that the IMAE authors trained on CIFAR-100: shortcut B, convolutions with bias, their tail.

    The tail is Softmax `probs`, ExtractProb `prob_groundtruth` and `loss`, see `authors_loss`; losses of
    their fork have prob_groundtruth as their third bottom. The Accuracy is not theirs: they tested in MATLAB.
    """
    net = NetParameter(name=f"ResNet{depth}")
    specs = [{"lr_mult": 1, "decay_mult": 1}, {"lr_mult": 2, "decay_mult": 1}]  # unlike their convolutions
    add_classifier(net, _trunk(net, depth, "B", bias=True), classes, param=specs)
    add(net, "Softmax", "probs", "fc")
    add(net, "ExtractProb", "prob_groundtruth", "probs", "label", propagate_down=[False, False])
    for layer in loss_layers(loss):
        layer.loss_weight.append(1)
        layer.bottom.extend(("fc", "label"))
        if layer.type in TYPES_WITH_P:
            layer.bottom.append("prob_groundtruth")
            layer.propagate_down.extend((True, False, False))
        net.layer.append(layer)
    add_accuracy(net, "fc", "label")
    return net


def authors_loss(loss: str, lambda_: float = 1, beta: float = 1) -> LayerParameter:
    """The loss of a run as the authors' logs name it: CCE, MAE, GCE, MSE, CCE_sumW ..., or DM.

    lambda_ and beta are DM's; IMAE-T is DM with lambda 1 and beta T. ValueError for other names.
    """
    if loss == "CCE":
        return loss_layer("SoftmaxWithLoss")
    if loss == "DM":
        return loss_layer("UnifiedWeightLoss", lamda_p=lambda_, scale=beta)
    return loss_layer("WeightedSoftmaxWithLoss", variant=loss.upper())


def with_cifar10_data(
    net: NetParameter,
    train_source: str,
    test_source: str,
    batch: int = 128,
    mean: tuple[float, ...] = CIFAR10_MEAN_BGR,
) -> NetParameter:
    """`net` with two Data layers: training images of 40x40, cropped and mirrored; test images of 32x32."""
    return with_data(
        net,
        lmdb_data(TRAIN, train_source, batch, mean_value=mean, mirror=True, crop_size=32),
        lmdb_data(TEST, test_source, 100, mean_value=mean),
    )


def with_cifar100_data(
    net: NetParameter, train_source: str, test_source: str, batch: int = 128
) -> NetParameter:
    """`with_cifar10_data` for CIFAR-100, with its means."""
    return with_cifar10_data(net, train_source, test_source, batch, CIFAR100_MEAN_BGR)


def with_authors_data(net: NetParameter, train_source: str, test_source: str) -> NetParameter:
    """`net` with two Data layers that treat images as the IMAE authors did, resized to 36x36 in the LMDBs.

    They make batches of 32 classes x 8 images, crop at one of 4 x 4 places, and subtract the authors' means.
    """
    return with_data(net, authors_data(TRAIN, train_source), authors_data(TEST, test_source))


def authors_data(phase: Phase, source: str) -> LayerParameter:
    """One of the two Data layers of `with_authors_data`."""
    transform = {"mean_value": AUTHORS_MEAN_BGR, "crop_size": 32, "exclude_last_crop": True}
    if phase == TEST:
        return lmdb_data(TEST, source, 100, **transform)
    train = lmdb_data(TRAIN, source, 256, mirror=True, **transform)
    train.data_order_param.order = DataOrderParameter.CLASS_BALANCED
    train.data_order_param.classes_per_batch, train.data_order_param.images_per_class = 32, 8
    return train


def with_inputs(net: NetParameter, batch: int = 256) -> NetParameter:
    """`net` with the old header of the authors' nets: a program fills `data` and `label`."""
    result = NetParameter(
        name=net.name, input=["data", "label"], input_dim=[batch, 3, 32, 32, batch, 1, 1, 1]
    )
    result.layer.extend(net.layer)
    return result


def _trunk(net: NetParameter, depth: int, shortcut: str, bias: bool) -> str:
    """Append all layers before the classifier; returns their top."""
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (20, 32, 44, 56, 110), got {depth}")
    if shortcut not in ("A", "B"):
        raise ValueError(f"shortcut must be 'A' (identity) or 'B' (projection), got {shortcut!r}")
    top = add_conv(net, "conv1", "data", WIDTHS[0], kernel=3, bias=bias)
    for stage, width in enumerate(WIDTHS, start=1):
        for block in range(1, (depth - 2) // 6 + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            top = _block(net, f"res{stage}_{block}", top, width, stride, shortcut, bias)
    return add_average(net, "pool", top)


def _block(
    net: NetParameter, name: str, bottom: str, width: int, stride: int, shortcut: str, bias: bool
) -> str:
    """conv-bn-scale-relu, conv-bn-scale, plus the shortcut, relu."""
    skip = bottom
    if stride > 1 and shortcut == "B":
        skip = add_conv(net, f"{name}_proj", bottom, width, kernel=1, stride=stride, bias=bias, relu=False)
    branch = add_conv(net, f"{name}_conv1", bottom, width, kernel=3, stride=stride, bias=bias)
    branch = add_conv(net, f"{name}_conv2", branch, width, kernel=3, bias=bias, relu=False)
    if stride > 1 and shortcut == "A":
        # Rounding up, a seventeenth window would begin outside the image.
        pooling = {"pool": "AVE", "kernel_size": 1, "stride": stride, "round_mode": "FLOOR"}
        half = add(net, "Pooling", f"{name}_half", bottom, pooling_param=pooling)
        zero = add(net, "Power", f"{name}_zero", half, power_param={"scale": 0})
        skip = add(net, "Concat", f"{name}_pad", half, zero)
    add(net, "Eltwise", name, skip, branch)
    return add(net, "ReLU", f"{name}_relu", name, top=name)


def paper_solver(name: str, dataset: str = "cifar10") -> SolverParameter:
    """The solver of the IMAE paper (section 5.1) and of He et al.: 64,000 iterations of batch 128."""
    return solver(
        f"{dataset}/{name}",
        test_iter=[100],
        test_interval=1000,
        test_initialization=False,
        base_lr=0.1,
        lr_policy="multistep",
        gamma=0.1,
        stepvalue=[32000, 48000],
        max_iter=64000,
        weight_decay=0.0001,
        snapshot=8000,
    )


def authors_solver(name: str) -> SolverParameter:
    """The solver of the authors' CIFAR-100 runs: 30,000 iterations of batch 256."""
    return solver(
        f"cifar100/{name}",
        test_iter=[100],
        test_interval=1000,
        test_initialization=False,
        base_lr=0.1,
        lr_policy="multistep",
        gamma=0.1,
        stepvalue=[15000, 22000],
        max_iter=30000,
        weight_decay=0.0005,
        snapshot=1000,
    )


LOSSES = {
    "cce": loss_layer("SoftmaxWithLoss"),
    "mae": loss_layer("MAELoss"),
    "imae": loss_layer("IMAELoss", t=8),
}
AUTHORS_LOSSES = {
    **{loss.lower(): authors_loss(loss) for loss in ("CCE", "MAE", "GCE")},
    **{f"dm-0.5-{beta}": authors_loss("DM", 0.5, beta) for beta in DM_BETAS},
    **{f"imae-{beta}": authors_loss("DM", 1, beta) for beta in IMAE_BETAS},
}
IMAGE = (3, 32, 32)
AUTHORS_ABOUT = """ResNet-44 for CIFAR-100 as the IMAE authors ran it, made by models/resnet.py; see there.
Images: imae convert-cifar cifar-100-binary.tar.gz data/authors --bgr --resize 36 --interpolation bicubic"""


def models() -> Iterator[tuple[str, str, Message]]:
    """(path below prototxt/models without suffix, header, message) of each file."""
    for depth, (dataset, classes) in product(DEPTHS, (("cifar10", 10), ("cifar100", 100))):
        with_images = with_cifar10_data if classes == 10 else with_cifar100_data
        net = resnet(depth, classes, LOSSES)
        net = with_images(net, f"data/{dataset}_train_lmdb", f"data/{dataset}_test_lmdb")
        name = f"resnet{depth}"
        about = f"ResNet-{depth} for CIFAR-{classes}, made by models/resnet.py; see there."
        param = paper_solver(name, dataset)
        yield from net_and_solver(f"{dataset}/{name}", about, net, param, LOSSES, IMAGE)
    net, name = authors_resnet(AUTHORS_LOSSES), "authors_resnet44"
    images = with_authors_data(net, "data/authors/cifar100_train_lmdb", "data/authors/cifar100_test_lmdb")
    model, param = f"cifar100/{name}", authors_solver(name)
    yield from net_and_solver(model, AUTHORS_ABOUT, images, param, AUTHORS_LOSSES, IMAGE)
    inputs = "The header of their own files. Stages choose the loss, as in authors_resnet44.prototxt."
    yield f"{model}_inputs", f"{AUTHORS_ABOUT}\n{inputs}", with_inputs(net)
