"""Faster plans give what the plain plan gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerances import tolerance

from imae.layers.caffe_random import CaffeRandom
from imae.layers.fuse import FusedBatchNormScale, fold_batch_norm, fuse_training
from imae.layers.net import Net
from imae.prototxt import TEST, TRAIN, NetParameter
from imae.prototxt.resnet import resnet
from imae.prototxt.text import parse_net

INPUTS = """
layer { name: "in" type: "Input" top: "data" top: "label"
        input_param { shape { dim: 4 dim: 3 dim: 32 dim: 32 } shape { dim: 4 } } }
"""


def resnet8(phase: int) -> Net:
    """The smallest ResNet, with running statistics that are not those of a fresh net."""
    param = NetParameter()
    param.CopyFrom(parse_net(INPUTS))
    param.layer.extend(resnet(8).layer)
    param.state.phase = phase  # type: ignore[assignment]  # an int, checked by protobuf
    net = Net(param, CaffeRandom(3))
    generator = np.random.default_rng(5)
    for name, blobs in net.params.items():
        for blob in blobs:
            values = generator.standard_normal(tuple(blob.shape)).astype(np.float32)
            if name.endswith(("_bn", "_scale")):
                blob.data.copy_(torch.from_numpy(np.abs(values) + 0.5))
    return net


def inputs() -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(7)
    data = generator.standard_normal((4, 3, 32, 32)).astype(np.float32)
    return {"data": torch.from_numpy(data), "label": torch.tensor([1.0, 0.0, 9.0, 4.0])}


def assert_close(got: torch.Tensor, want: torch.Tensor, what: str) -> None:
    allowed = tolerance("fused")
    scale = float(want.detach().abs().max()) or 1.0
    torch.testing.assert_close(
        got, want, rtol=allowed.rtol, atol=allowed.atol * scale, msg=lambda m: f"{what}: {m}"
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("phase", [TRAIN, TEST], ids=["TRAIN", "TEST"])
def test_fused_plan_gives_the_same_loss_gradients_and_statistics(phase: int, channels_last: bool) -> None:
    plain, fused = resnet8(phase), resnet8(phase)
    fused.plan = fuse_training(fused)
    joined = [step for step in fused.plan if isinstance(step.run, FusedBatchNormScale)]
    assert len(joined) == 7, "every BatchNorm of the net is joined with its Scale"
    blobs = inputs()
    if channels_last:
        fused.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        blobs["data"] = blobs["data"].contiguous(memory_format=torch.channels_last)
    for net, given in ((plain, inputs()), (fused, blobs)):
        tops = net(given, keep=("fc",))
        net.fc = tops["fc"]
        net.loss(tops).backward()
    assert_close(fused.fc, plain.fc, "fc")
    for name in plain.params:
        for got, want in zip(fused.params[name], plain.params[name], strict=True):
            assert_close(got, want, f"blob of {name}")
            assert (got.grad is None) == (want.grad is None)
            if want.grad is not None:
                assert got.grad is not None
                assert_close(got.grad, want.grad, f"diff of {name}")


def test_folded_plan_gives_the_same_outputs_with_fewer_layers() -> None:
    net = resnet8(TEST)
    with torch.no_grad():
        want = net(inputs())
        net.plan = fold_batch_norm(net)
        got = net(inputs())
    assert not any(step.layer.type in ("BatchNorm", "Scale") for step in net.plan)
    for name in net.outputs:
        assert_close(got[name], want[name], name)


def test_layers_that_gradients_are_cut_between_are_not_joined() -> None:
    param = parse_net(
        INPUTS
        + """
        layer { name: "bn" type: "BatchNorm" bottom: "data" top: "bn" }
        layer { name: "scale" type: "Scale" bottom: "bn" top: "scale" propagate_down: false }
        """
    )
    net = Net(param, CaffeRandom(1))
    assert [step.layer.type for step in fuse_training(net)] == ["Input", "BatchNorm", "Scale"]
