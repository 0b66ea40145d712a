"""The CIFAR ResNets: sizes as published, and the committed prototxts are those that the generator makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from imae.layers.caffe_random import CaffeRandom
from imae.layers.net import Net
from imae.prototxt import NetParameter
from imae.prototxt import resnet as generator
from imae.prototxt.text import parse_net, read_net, read_solver

MODELS = Path(generator.__file__).with_name("models") / "cifar10"
INPUTS = """layer { name: "in" type: "Input" top: "data" top: "label"
                    input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } shape { dim: 1 } } }"""


# He et al. 2016, table 6: millions of parameters.
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_size_is_the_published_one(depth: int, millions: float) -> None:
    param = parse_net(INPUTS)
    param.layer.extend(generator.resnet(depth).layer)
    net = Net(param, CaffeRandom(1))
    learned = sum(p.numel() for p, mult in zip(net.learnable, net.lr_mults, strict=True) if mult)
    assert f"{learned / 1e6:.2g}" == f"{millions:.2g}"
    weighted = [step for step in net.steps if step.layer.type in ("Convolution", "InnerProduct")]
    assert len(weighted) == depth
    assert net.blob_shapes["res3_1"] == (1, 64, 8, 8)


@pytest.mark.parametrize("depth", [7, 19, 21])
def test_other_depths_are_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="depth must be 6n"):
        generator.resnet(depth)


@pytest.mark.parametrize("loss", [("SoftmaxWithLoss", "cce"), ("IMAELoss", "imae")], ids=lambda loss: loss[1])
@pytest.mark.parametrize("depth", generator.DEPTHS)
def test_committed_files_are_what_the_generator_makes(depth: int, loss: tuple[str, str]) -> None:
    name = f"resnet{depth}_{loss[1]}"
    net = generator.with_cifar10_data(
        generator.resnet(depth, loss=loss[0]), "data/cifar10_train_lmdb", "data/cifar10_test_lmdb"
    )
    expected = NetParameter()
    expected.CopyFrom(net)
    assert read_net(MODELS / f"{name}_train_val.prototxt") == expected
    assert read_solver(MODELS / f"{name}_solver.prototxt") == generator.paper_solver(name)
