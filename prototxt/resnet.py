"""The ResNets for CIFAR of He et al. 2016 (section 4.2) as NetParameters: depth 6n + 2, widths 16, 32, 64.

    python -m imae.prototxt.resnet        writes prototxt/models/cifar10/resnet*.prototxt

Shortcuts are identities (option A): where the size halves, every second pixel is taken (Pooling, kernel 1,
stride 2) and as many zero channels are appended (Power with scale 0, Concat). Convolutions have no bias,
`msra`
weights, and are followed by BatchNorm and Scale; the classifier is an InnerProduct after a global average.
"""

from __future__ import annotations

from pathlib import Path

from imae.prototxt import TEST, TRAIN, LayerParameter, NetParameter, SolverParameter
from imae.prototxt.caffe_pb2 import PoolingParameter
from imae.prototxt.files import write_atomically
from imae.prototxt.text import to_text

DEPTHS = (20, 32, 44, 56, 110)
WIDTHS = (16, 32, 64)
# Means of the CIFAR-10 training images, in the BGR order of the converted LMDBs.
CIFAR10_MEAN_BGR = (113.9, 123.0, 125.3)


def resnet(depth: int, classes: int = 10, loss: str = "SoftmaxWithLoss") -> NetParameter:
    """ResNet of `depth` layers without data layers: blobs `data` (N, 3, 32, 32) and `label` to the tail.

    The tail is `loss` of (fc, label), and an Accuracy in TEST. ValueError for a depth that is not 6n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (20, 32, 44, 56, 110), got {depth}")
    net = NetParameter(name=f"ResNet{depth}")
    top = _conv(net, "conv1", "data", WIDTHS[0], kernel=3)
    for stage, width in enumerate(WIDTHS, start=1):
        for block in range(1, (depth - 2) // 6 + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            top = _block(net, f"res{stage}_{block}", top, width, stride)
    pool = _layer(net, "pool", "Pooling", [top], "pool")
    pool.pooling_param.pool = PoolingParameter.AVE
    pool.pooling_param.global_pooling = True
    fc = _layer(net, "fc", "InnerProduct", ["pool"], "fc")
    fc.inner_product_param.num_output = classes
    fc.inner_product_param.weight_filler.type = "msra"
    _layer(net, "loss", loss, ["fc", "label"], "loss")
    _layer(net, "accuracy", "Accuracy", ["fc", "label"], "accuracy").include.add(phase=TEST)
    return net


def with_cifar10_data(
    net: NetParameter, train_source: str, test_source: str, batch: int = 128
) -> NetParameter:
    """`net` behind two Data layers: training images of 40x40, cropped and mirrored; test images of 32x32."""
    result = NetParameter(name=net.name)
    for phase, source, size in ((TRAIN, train_source, batch), (TEST, test_source, 100)):
        data = result.layer.add(name="data", type="Data", top=["data", "label"])
        data.include.add(phase=phase)
        data.transform_param.mean_value.extend(CIFAR10_MEAN_BGR)
        if phase == TRAIN:
            data.transform_param.mirror = True
            data.transform_param.crop_size = 32
        data.data_param.source = source
        data.data_param.batch_size = size
        data.data_param.backend = data.data_param.LMDB
    result.layer.extend(net.layer)
    return result


def _block(net: NetParameter, name: str, bottom: str, width: int, stride: int) -> str:
    """conv-bn-scale-relu, conv-bn-scale, plus the shortcut, relu."""
    branch = _conv(net, f"{name}_conv1", bottom, width, kernel=3, stride=stride)
    branch = _conv(net, f"{name}_conv2", branch, width, kernel=3, relu=False)
    shortcut = bottom
    if stride > 1:
        pool = _layer(net, f"{name}_half", "Pooling", [bottom], f"{name}_half")
        pool.pooling_param.pool = PoolingParameter.AVE
        pool.pooling_param.kernel_size = 1
        pool.pooling_param.stride = stride
        # Rounding up, a seventeenth window would begin outside the image.
        pool.pooling_param.round_mode = PoolingParameter.FLOOR
        _layer(net, f"{name}_zero", "Power", [f"{name}_half"], f"{name}_zero").power_param.scale = 0
        _layer(net, f"{name}_pad", "Concat", [f"{name}_half", f"{name}_zero"], f"{name}_pad")
        shortcut = f"{name}_pad"
    _layer(net, name, "Eltwise", [shortcut, branch], name)
    _layer(net, f"{name}_relu", "ReLU", [name], name)
    return name


def _conv(
    net: NetParameter, name: str, bottom: str, width: int, kernel: int, stride: int = 1, relu: bool = True
) -> str:
    conv = _layer(net, name, "Convolution", [bottom], name).convolution_param
    conv.num_output = width
    conv.bias_term = False
    conv.pad.append(kernel // 2)
    conv.kernel_size.append(kernel)
    conv.stride.append(stride)
    conv.weight_filler.type = "msra"
    norm = _layer(net, f"{name}_bn", "BatchNorm", [name], name)
    for _ in range(3):
        norm.param.add(lr_mult=0, decay_mult=0)
    _layer(net, f"{name}_scale", "Scale", [name], name).scale_param.bias_term = True
    if relu:
        _layer(net, f"{name}_relu", "ReLU", [name], name)
    return name


def _layer(net: NetParameter, name: str, type_name: str, bottoms: list[str], top: str) -> LayerParameter:
    return net.layer.add(name=name, type=type_name, bottom=bottoms, top=[top])


def paper_solver(name: str) -> SolverParameter:
    """The solver of the IMAE paper (section 5.1) and of He et al.: 64,000 iterations of batch 128."""
    folder = "prototxt/models/cifar10"
    solver = SolverParameter(
        net=f"{folder}/{name}_train_val.prototxt",
        test_iter=[100],
        test_interval=1000,
        test_initialization=False,
        display=100,
        average_loss=100,
        max_iter=64000,
        lr_policy="multistep",
        stepvalue=[32000, 48000],
        snapshot=8000,
        snapshot_prefix=f"snapshots/cifar10_{name}",
        random_seed=1,
        solver_mode=SolverParameter.CPU,
    )
    solver.base_lr, solver.gamma, solver.momentum, solver.weight_decay = 0.1, 0.1, 0.9, 0.0001
    return solver


def main() -> None:
    """Write the train_val and solver prototxts of all depths into prototxt/models/cifar10."""
    folder = Path(__file__).with_name("models") / "cifar10"
    for depth in DEPTHS:
        for loss, suffix in (("SoftmaxWithLoss", "cce"), ("IMAELoss", "imae")):
            name = f"resnet{depth}_{suffix}"
            net = with_cifar10_data(
                resnet(depth, loss=loss), "data/cifar10_train_lmdb", "data/cifar10_test_lmdb"
            )
            for message, kind in ((net, "train_val"), (paper_solver(name), "solver")):
                header = f"# ResNet-{depth} for CIFAR-10, made by prototxt/resnet.py; see there.\n"
                write_atomically(folder / f"{name}_{kind}.prototxt", (header + to_text(message)).encode())


if __name__ == "__main__":
    main()
