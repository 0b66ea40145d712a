"""Faster plans give what the plain plan gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerances import tolerance

from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net.fold import fold_batch_norm, fold_shortcuts
from imae.net.fuse import FusedBatchNormScale, fuse_training
from imae.net.kernels import native
from imae.net.net import Net
from imae.prototxt import TEST, TRAIN, NetParameter
from imae.prototxt.models.resnet import resnet
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
    net = Net(param, Run(CaffeRandom(3)))
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
    plan = fuse_training(fused)
    joined = [step for step in plan if isinstance(step.run, FusedBatchNormScale)]
    assert len(joined) == 7, "every BatchNorm of the net is joined with its Scale"
    blobs = inputs()
    if channels_last:
        fused.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        blobs["data"] = blobs["data"].contiguous(memory_format=torch.channels_last)
    for net, given, steps in ((plain, inputs(), plain.steps), (fused, blobs, plan)):
        tops = net(given, keep=("fc",), plan=steps)
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
        plan = fold_batch_norm(net)
        got = net(inputs(), plan=plan)
    assert not any(step.layer.type in ("BatchNorm", "Scale") for step in plan)
    for name in net.outputs:
        assert_close(got[name], want[name], name)


# A shortcut that doubles the channels, in each place where one of its parts can stand.
SHORTCUT = """
layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 7 dim: 9 } } }
layer { name: "half" type: "Pooling" bottom: "data" top: "half"
        pooling_param { pool: MAX kernel_size: 1 stride_h: 2 stride_w: 4 } }
layer { name: "zero" type: "Power" bottom: "half" top: "zero" power_param { scale: 0 } }
layer { name: "pad" type: "Concat" bottom: "zero" bottom: "half" bottom: "zero" top: "pad" }
layer { name: "out" type: "ReLU" bottom: "pad" top: "out" }
"""


def test_shortcut_with_zeros_becomes_a_convolution() -> None:
    net = Net(parse_net(SHORTCUT), Run(CaffeRandom(1)))
    data = inputs()["data"][:2, :, :7, :9]
    (want,) = net({"data": data}, keep=["out"]).values()
    plan = fold_shortcuts(net, net.steps)
    assert [step.layer.type for step in plan] == ["Input", "Convolution", "ReLU"]
    (got,) = net({"data": data}, keep=["out"], plan=plan).values()
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scale: 0", "scale: 0 shift: 1"),
        ("scale: 0", "scale: 0 power: 0"),
        ("scale: 0", "scale: 0.5"),
        ('type: "Power" bottom: "half"', 'type: "Power" bottom: "other"'),
        ('bottom: "half" bottom: "zero" top: "pad"', 'top: "pad" concat_param { axis: 0 }'),
        ('bottom: "zero" bottom: "half" bottom: "zero"', 'bottom: "half" bottom: "half"'),
        ("kernel_size: 1", "kernel_size: 2"),
        ("dim: 3", "dim: 2000"),
        ("stride_h: 2 stride_w: 4", "stride_h: 2 stride_w: 3"),
    ],
)
def test_what_only_looks_like_a_shortcut_stays(old: str, new: str) -> None:
    other = """
        layer { name: "abs" type: "AbsVal" bottom: "data" top: "abs" }
        layer { name: "other" type: "Pooling" bottom: "abs" top: "other"
                pooling_param { pool: MAX kernel_size: 1 stride_h: 2 stride_w: 4 } }
        """
    text = SHORTCUT.replace('layer { name: "zero"', f'{other} layer {{ name: "zero"').replace(old, new, 1)
    net = Net(parse_net(text), Run(CaffeRandom(1)))
    assert [step.layer.type for step in fold_shortcuts(net, net.steps)] == [s.layer.type for s in net.steps]


def test_parts_of_a_shortcut_that_are_read_elsewhere_stay() -> None:
    twice = 'layer { name: "twice" type: "Power" bottom: "half" top: "twice" power_param { scale: 2 } }'
    net = Net(parse_net(SHORTCUT + twice), Run(CaffeRandom(1)))
    data = inputs()["data"][:2, :, :7, :9]
    want = net({"data": data})
    plan = fold_shortcuts(net, net.steps)
    types = [step.layer.type for step in plan]
    assert types == ["Input", "Pooling", "Split", "Convolution", "ReLU", "Power"]
    for name, got in net({"data": data}, plan=plan).items():
        assert torch.equal(got, want[name]), name
    assert set(want) == {"out", "twice"}


@pytest.mark.parametrize("blob", ["half", "zero"])
def test_overwritten_parts_of_a_shortcut_are_not_taken_for_what_they_were(blob: str) -> None:
    """An in-place layer behind one of them."""
    place = f'layer {{ name: "{ {"half": "zero", "zero": "pad"}[blob] }"'
    text = SHORTCUT.replace(
        place, f'layer {{ name: "e" type: "Exp" bottom: "{blob}" top: "{blob}" }} {place}'
    ).replace('bottom: "zero" bottom: "half" bottom: "zero"', 'bottom: "half" bottom: "zero"')
    net = Net(parse_net(text), Run(CaffeRandom(1)))
    data = inputs()["data"][:2, :, :7, :9]
    (want,) = net({"data": data}, keep=["out"]).values()
    plan = fold_shortcuts(net, net.steps)
    (got,) = net({"data": data}, keep=["out"], plan=plan).values()
    assert torch.equal(got, want)


def test_layers_that_gradients_are_cut_between_are_not_joined() -> None:
    param = parse_net(
        INPUTS
        + """
        layer { name: "bn" type: "BatchNorm" bottom: "data" top: "bn" }
        layer { name: "scale" type: "Scale" bottom: "bn" top: "scale" propagate_down: false }
        """
    )
    net = Net(param, Run(CaffeRandom(1)))
    assert [step.layer.type for step in fuse_training(net)] == ["Input", "BatchNorm", "Scale"]


@pytest.mark.parametrize("phase", [TRAIN, TEST], ids=["TRAIN", "TEST"])
def test_a_batch_norm_without_a_scale_uses_the_kernels(phase: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.available():
        pytest.skip("the kernels in C were not built")
    monkeypatch.setenv("IMAE_KERNELS", "batch_norm")
    param = parse_net(INPUTS + 'layer { name: "bn" type: "BatchNorm" bottom: "data" top: "bn" }')
    param.state.phase = phase  # type: ignore[assignment]  # an int, checked by protobuf
    net, used = Net(param, Run(CaffeRandom(1))), list[str]()
    plans = [net.steps, fuse_training(net)]
    kernel = "batch_norm" if phase == TRAIN else "batch_norm_by_statistics"
    original = getattr(native, kernel)

    def note(*args: object) -> object:
        used.append(kernel)
        return original(*args)

    monkeypatch.setattr(native, kernel, note)
    blobs = inputs()
    blobs["data"] = blobs["data"].contiguous(memory_format=torch.channels_last)
    tops = []
    for count, plan in enumerate(plans):
        tops.append(net(blobs, plan=plan)["bn"])
        assert len(used) == count, "the plain plan uses torch's own operation"
    assert_close(tops[1], tops[0], "bn")
