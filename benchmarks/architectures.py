"""The nets that Caffe's users have, made from the publications that describe them.

Nets read the blobs `data` and `label`. Blobs have the usual names of these nets.

    CaffeNet     Krizhevsky et al. 2012, with each pooling before the normalization
    GoogLeNet    Szegedy et al. 2015, with both auxiliary classifiers in TRAIN
    VGG-16       Simonyan and Zisserman 2015, configuration D
    ResNet-50    He et al. 2016 (prototxt/models/resnet50.py)
    MobileNet    Howard et al. 2017, width 1
    SSD          Liu et al. 2016: six maps on MobileNet's body, 300 x 300, 21 classes; `label` holds the boxes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imae.prototxt import TRAIN, LayerParameter, NetParameter
from imae.prototxt.models.net_parts import WEIGHT_AND_BIAS, add, add_average, add_conv
from imae.prototxt.models.resnet50 import resnet50

CLASSES = 1000
BOXES_PER_IMAGE = 4


class Architecture(NamedTuple):
    """A net and how it is tried.

    make           makes the message
    size           height and width of an image
    train, test    the usual batches of the benchmark: small enough for two cores
    outputs        the blobs that a deployed net has
    """

    make: Callable[[], NetParameter]
    size: int
    train: int
    test: int
    outputs: tuple[str, ...] = ("prob",)

    def batch(self, count: int, seed: int = 1) -> dict[str, Tensor]:
        """Random images and labels; for SSD truths (1, 1, G, 8), some in each image."""
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(count, 3, self.size, self.size, generator=generator)
        if self.outputs == ("prob",):
            return {"data": images, "label": torch.randint(0, CLASSES, (count,), generator=generator).float()}
        corners = torch.rand(count, BOXES_PER_IMAGE, 2, 2, generator=generator).sort(2).values
        corners[:, :, 1] = corners[:, :, 1].maximum(corners[:, :, 0] + 0.05)
        classes = torch.randint(1, 21, (count, BOXES_PER_IMAGE, 1), generator=generator).float()
        image = torch.arange(count).float().view(-1, 1, 1).expand(-1, BOXES_PER_IMAGE, 1)
        zeros = torch.zeros_like(image)
        truths = torch.cat([image, classes, zeros, corners.flatten(2), zeros], 2)
        return {"data": images, "label": truths.view(1, 1, -1, 8)}

    def net(self, count: int, phase: int) -> NetParameter:
        """TRAIN: with a data layer of the type Given. TEST: deployed, with an Input and a Softmax."""
        param, batch = self.make(), self.batch(count)
        param.state.phase = phase  # type: ignore[assignment]  # the stubs' name for the numbers
        layers = list(param.layer)
        for layer in layers:  # whoever tries the net fills it
            for name in ("convolution_param", "inner_product_param"):
                if layer.HasField(name):
                    getattr(layer, name).ClearField("weight_filler")
        del param.layer[:]
        if phase == TRAIN:
            shapes = [{"dim": blob.shape} for blob in batch.values()]
            param.layer.add(name="data", type="Given", top=[*batch], dummy_data_param={"shape": shapes})
            param.layer.extend(layers)
            return param
        add(param, "Input", "data", input_param={"shape": [{"dim": batch["data"].shape}]})
        param.layer.extend(_deployed(layers))
        return param


def _deployed(layers: Sequence[LayerParameter]) -> list[LayerParameter]:
    """The layers of TEST on which an output depends; the loss becomes a Softmax."""
    result = []
    for layer in layers:
        if layer.include and layer.include[0].phase == TRAIN:
            continue
        if layer.type == "SoftmaxWithLoss":
            result.append(LayerParameter(name="prob", type="Softmax", bottom=layer.bottom[:1], top=["prob"]))
        elif layer.type not in ("MultiBoxLoss", "Accuracy"):
            result.append(layer)
    return result


def conv(net: NetParameter, name: str, bottom: str, num_output: int, kernel: int, **fields: Any) -> str:
    """Convolution and, in place, a ReLU."""
    param = {"num_output": num_output, "kernel_size": [kernel]} | {
        key: value if key == "group" else [value] for key, value in fields.items()
    }
    add(net, "Convolution", name, bottom, param=WEIGHT_AND_BIAS, convolution_param=param)
    return add(net, "ReLU", f"{name}_relu", name, top=name)


def pool(
    net: NetParameter, name: str, bottom: str, kernel: int, stride: int, pad: int = 0, method: str = "MAX"
) -> str:
    sizes = {"pool": method, "kernel_size": kernel, "stride": stride, "pad": pad}
    return add(net, "Pooling", name, bottom, pooling_param=sizes)


def lrn(net: NetParameter, name: str, bottom: str) -> str:
    return add(net, "LRN", name, bottom, lrn_param={"local_size": 5, "alpha": 1e-4, "beta": 0.75})


def full(net: NetParameter, name: str, bottom: str, num_output: int, dropout: float = 0.0) -> str:
    """InnerProduct; with a dropout ratio a ReLU and a Dropout follow, in place."""
    add(
        net,
        "InnerProduct",
        name,
        bottom,
        param=WEIGHT_AND_BIAS,
        inner_product_param={"num_output": num_output},
    )
    if dropout:
        add(net, "ReLU", f"{name}_relu", name, top=name)
        add(net, "Dropout", f"{name}_drop", name, top=name, dropout_param={"dropout_ratio": dropout})
    return name


def caffenet() -> NetParameter:
    net = NetParameter(name="CaffeNet")
    top = pool(net, "pool1", conv(net, "conv1", "data", 96, 11, stride=4), 3, 2)
    top = conv(net, "conv2", lrn(net, "norm1", top), 256, 5, pad=2, group=2)
    top = lrn(net, "norm2", pool(net, "pool2", top, 3, 2))
    top = conv(net, "conv3", top, 384, 3, pad=1)
    top = conv(net, "conv4", top, 384, 3, pad=1, group=2)
    top = pool(net, "pool5", conv(net, "conv5", top, 256, 3, pad=1, group=2), 3, 2)
    top = full(net, "fc7", full(net, "fc6", top, 4096, 0.5), 4096, 0.5)
    add(net, "SoftmaxWithLoss", "loss", full(net, "fc8", top, CLASSES), "label")
    return net


def vgg16() -> NetParameter:
    net, top = NetParameter(name="VGG-16"), "data"
    for stage, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), 1):
        for index in range(1, depth + 1):
            top = conv(net, f"conv{stage}_{index}", top, width, 3, pad=1)
        top = pool(net, f"pool{stage}", top, 2, 2)
    top = full(net, "fc7", full(net, "fc6", top, 4096, 0.5), 4096, 0.5)
    add(net, "SoftmaxWithLoss", "loss", full(net, "fc8", top, CLASSES), "label")
    return net


# Table 1 of Szegedy et al.: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj.
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def googlenet() -> NetParameter:
    net = NetParameter(name="GoogLeNet")
    top = pool(net, "pool1/3x3_s2", conv(net, "conv1/7x7_s2", "data", 64, 7, pad=3, stride=2), 3, 2)
    top = conv(net, "conv2/3x3_reduce", lrn(net, "pool1/norm1", top), 64, 1)
    top = lrn(net, "conv2/norm2", conv(net, "conv2/3x3", top, 192, 3, pad=1))
    top = pool(net, "pool2/3x3_s2", top, 3, 2)
    for number, widths in MODULES.items():
        top = _inception(net, f"inception_{number}", top, widths)
        if number in ("4a", "4d"):
            _auxiliary(net, f"loss{'ad'.index(number[1]) + 1}", top)
        if number in ("3b", "4e"):
            top = pool(net, f"pool{int(number[0])}/3x3_s2", top, 3, 2)
    top = pool(net, "pool5/7x7_s1", top, 7, 1, method="AVE")
    add(net, "Dropout", "pool5/drop", top, top=top, dropout_param={"dropout_ratio": 0.4})
    add(net, "SoftmaxWithLoss", "loss3/loss3", full(net, "loss3/classifier", top, CLASSES), "label")
    return net


def _inception(net: NetParameter, name: str, bottom: str, widths: Sequence[int]) -> str:
    single, reduce3, triple, reduce5, quintuple, projection = widths
    tops = [
        conv(net, f"{name}/1x1", bottom, single, 1),
        conv(net, f"{name}/3x3", conv(net, f"{name}/3x3_reduce", bottom, reduce3, 1), triple, 3, pad=1),
        conv(net, f"{name}/5x5", conv(net, f"{name}/5x5_reduce", bottom, reduce5, 1), quintuple, 5, pad=2),
        conv(net, f"{name}/pool_proj", pool(net, f"{name}/pool", bottom, 3, 1, 1), projection, 1),
    ]
    return add(net, "Concat", f"{name}/output", *tops)


def _auxiliary(net: NetParameter, name: str, bottom: str) -> None:
    """A classifier beside the net, whose loss counts 0.3; in TRAIN alone."""
    before = len(net.layer)
    top = conv(net, f"{name}/conv", pool(net, f"{name}/ave_pool", bottom, 5, 3, method="AVE"), 128, 1)
    top = full(net, f"{name}/classifier", full(net, f"{name}/fc", top, 1024, 0.7), CLASSES)
    add(net, "SoftmaxWithLoss", f"{name}/loss", top, "label", loss_weight=[0.3])
    for layer in net.layer[before:]:
        layer.include.add(phase=TRAIN)


def mobilenet_body(net: NetParameter, widths: Sequence[tuple[int, int]]) -> str:
    """The first convolution, then for each (width, stride) one of each channel and one of 1 x 1."""
    top, channels = add_conv(net, "conv1", "data", 32, 3, stride=2), 32
    for number, (width, stride) in enumerate(widths, 2):
        top = add_conv(net, f"conv{number}/dw", top, channels, 3, stride=stride)
        depthwise = next(layer for layer in reversed(net.layer) if layer.type == "Convolution")
        depthwise.convolution_param.group = channels
        top, channels = add_conv(net, f"conv{number}/sep", top, width, 1), width
    return top


MOBILENET = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1),
)  # fmt: skip


def mobilenet() -> NetParameter:
    net = NetParameter(name="MobileNet")
    top = add_average(net, "pool6", mobilenet_body(net, MOBILENET))
    convolution = {"num_output": CLASSES, "kernel_size": [1]}
    add(net, "Convolution", "fc7", top, param=WEIGHT_AND_BIAS, convolution_param=convolution)
    add(net, "SoftmaxWithLoss", "loss", add(net, "Flatten", "fc7_flat", "fc7"), "label")
    return net


def ssd() -> NetParameter:
    net = NetParameter(name="SSD")
    top = mobilenet_body(net, MOBILENET)
    maps = ["conv12/sep", top]  # the last maps with a stride of 16 and of 32
    for number, (narrow, width) in enumerate(((256, 512), (128, 256), (128, 256), (64, 128)), 15):
        top = conv(net, f"conv{number}_1", top, narrow, 1)
        top = conv(net, f"conv{number}_2", top, width, 3, pad=1, stride=2)
        maps.append(top)
    edges = [60.0, 105.0, 150.0, 195.0, 240.0, 285.0, 330.0]
    for index, bottom in enumerate(maps):
        _head(net, bottom, edges[index], edges[index + 1], first=index == 0)
    for kind, axis in (("loc", 1), ("conf", 1), ("priorbox", 2)):
        bottoms = [f"{bottom}_{kind}{'' if axis == 2 else '_flat'}" for bottom in maps]
        add(net, "Concat", f"mbox_{kind}", *bottoms, concat_param={"axis": axis})
    multibox = {
        "loc_loss_type": "SMOOTH_L1",
        "num_classes": 21,
        "overlap_threshold": 0.5,
        "neg_pos_ratio": 3.0,
        "neg_overlap": 0.5,
        "code_type": "CENTER_SIZE",
        "mining_type": "MAX_NEGATIVE",
    }
    bottoms = ["mbox_loc", "mbox_conf", "mbox_priorbox", "label"]
    backward = (True, True, False, False)
    add(net, "MultiBoxLoss", "mbox_loss", *bottoms, multibox_loss_param=multibox, propagate_down=backward)
    return net


def _head(net: NetParameter, bottom: str, small: float, large: float, first: bool) -> None:
    """The predictions of one map: locations and classes of 3 (first map) or 6 boxes for each place."""
    boxes = 3 if first else 6
    for kind, numbers in (("loc", 4), ("conf", 21)):
        name = f"{bottom}_{kind}"
        convolution = {"num_output": boxes * numbers, "kernel_size": [1]}
        add(net, "Convolution", name, bottom, param=WEIGHT_AND_BIAS, convolution_param=convolution)
        add(net, "Permute", f"{name}_perm", name, permute_param={"order": (0, 2, 3, 1)})
        add(net, "Flatten", f"{name}_flat", f"{name}_perm")
    prior: dict[str, Any] = {"min_size": [small], "aspect_ratio": [2.0] if first else [2.0, 3.0]}
    prior |= {"variance": [0.1, 0.1, 0.2, 0.2], "offset": 0.5, "flip": True}
    if not first:
        prior["max_size"] = [large]
    add(net, "PriorBox", f"{bottom}_priorbox", bottom, "data", prior_box_param=prior)


NETS = {
    "CaffeNet": Architecture(caffenet, 227, 16, 16),
    "GoogLeNet": Architecture(googlenet, 224, 8, 8),
    "VGG-16": Architecture(vgg16, 224, 2, 2),
    "ResNet-50": Architecture(lambda: resnet50(CLASSES), 224, 8, 8),
    "MobileNet": Architecture(mobilenet, 224, 8, 8),
    "SSD": Architecture(ssd, 300, 4, 4, ("mbox_loc", "mbox_conf")),
}
