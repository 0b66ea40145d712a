"""The benchmark of nets: plain PyTorch, ONNX Runtime and imae compute the same of small images."""

from __future__ import annotations

import pytest
import torch
from tolerances import tolerance
from torch import Tensor, nn

from benchmarks.architectures import NETS, Architecture
from benchmarks.measure import Timing
from benchmarks.nets import EAGER, IMAE, PRODUCT, Given, _table, imae_pass, plain_pass, work
from benchmarks.plain_modules import PlainNet
from benchmarks.zoo import fill
from imae.layers.common.dropout import Dropout
from imae.net.executor import NetExecutor
from imae.net.net import Net
from imae.prototxt import TEST, TRAIN

# GoogLeNet's poolings of 5 x 5 and 7 x 7 need its own size.
SIZES = {"CaffeNet": 99, "GoogLeNet": 224, "VGG-16": 32, "ResNet-50": 64, "MobileNet": 64, "SSD": 128}


def small(name: str) -> Architecture:
    return NETS[name]._replace(size=SIZES[name])


def distance(got: Tensor, want: Tensor) -> float:
    return float((got.reshape(want.shape) - want).abs().max()) / (float(want.abs().max()) or 1.0)


@pytest.mark.parametrize("name", NETS)
def test_a_training_pass_is_the_same_net(name: str) -> None:
    net, batch = Net(small(name).net(2, TRAIN)), small(name).batch(2)
    fill(net)
    plain = PlainNet(net)
    for module in [*net.modules(), *plain.modules()]:
        if isinstance(module, Dropout):  # each draws masks of its own: none is drawn
            module.keep = 1.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, Given):
            module.tensors = tuple(batch.values())
    loss, _ = NetExecutor(net, torch.device("cpu")).forward_backward()
    want = plain(**batch)
    assert distance(loss, want.detach()) <= tolerance("fused").rtol
    want.backward()
    assert sum(p.numel() for p in plain.parameters()) == sum(
        p.numel() for p in net.learnable if p.requires_grad
    )
    last = [p for p in plain.parameters() if p.dim() > 1 and p.grad is not None and p.grad.any()][-1]
    (own,) = [p for p in net.learnable if p.grad is not None and torch.equal(p.reshape(-1), last.reshape(-1))]
    assert own.grad is not None and last.grad is not None
    assert distance(own.grad, last.grad) <= tolerance("fused").rtol


@pytest.mark.parametrize("name", NETS)
def test_a_pass_in_test_is_the_same_net(name: str) -> None:
    architecture = small(name)
    net, images = Net(architecture.net(2, TEST)), architecture.batch(2)["data"]
    fill(net)
    want = plain_pass(net, images, architecture.outputs, channels_last=False)()
    assert [len(value) for value in want] == [2] * len(architecture.outputs)
    for got, expected in zip(imae_pass(net, images, architecture.outputs)(), want, strict=True):
        assert distance(got, expected) <= tolerance("fused").rtol


def test_the_work_is_that_of_the_publications() -> None:
    """Multiply-adds of a forward pass, in 10^9: Canziani et al. 2016, Howard et al. 2017."""
    for name, billions in (("VGG-16", 15.5), ("ResNet-50", 3.9), ("MobileNet", 0.57), ("GoogLeNet", 1.6)):
        assert work(NETS[name], 1, TEST) / 2e9 == pytest.approx(billions, rel=0.03)


def test_the_table_has_a_column_for_each_way() -> None:
    timings = {IMAE: Timing((2.0, 4.0)), EAGER: Timing((4.0, 8.0)), PRODUCT: Timing((1.0, 1.0))}
    text = _table("title", [("net, 1", 2 * 2**30, timings)])
    assert "| net, batch | imae, ms | imae / eager | imae / best PyTorch | GFLOP | of the rate |" in text
    assert "| net, 1 | 2000 | 0.50 | 0.50 | 2.1 | 0.33 |" in text
