"""A convolution in groups by Winograd's algorithm: the layer's values and gradients, and where it is used."""

from __future__ import annotations

import pytest
import torch
from c_kernels import conv_supported
from tolerances import sum_rounding
from torch import Tensor

from imae.net.fuse import fuse_training
from imae.net.kernels import GroupedConvolution, native
from imae.net.net import Net
from imae.prototxt.text import parse_net

pytestmark = pytest.mark.skipif(not conv_supported(), reason="no AVX2, or no kernels in C")


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAE_KERNELS", "all")


def net(more: str, channels: int = 64, outputs: int = 96) -> Net:
    return Net(
        parse_net(
            f"""
            layer {{ name: "data" type: "Input" top: "data" top: "again"
                     input_param {{ shape {{ dim: [4, {channels}, 17, 18] }} }} }}
            layer {{ name: "conv" type: "Convolution" bottom: "data" bottom: "again" top: "conv" top: "other"
                     convolution_param {{ num_output: {outputs} {more} weight_filler {{ type: "xavier" }}
                                         bias_filler {{ value: 0.1 }} }} }}
            """
        )
    )


def runs_kernel(of: Net) -> bool:
    return any(isinstance(step.run, GroupedConvolution) for step in fuse_training(of))


def numbers(*shape: int, seed: int = 1) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("more", ["", "bias_term: false"])
@pytest.mark.parametrize("pad", [0, 1, 2])
def test_values_and_gradients(more: str, pad: int) -> None:
    own = net(f"kernel_size: 3 group: 2 pad: {pad} {more}")
    own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    assert runs_kernel(own)
    bottoms = {"data": numbers(4, 64, 17, 18), "again": numbers(4, 64, 17, 18, seed=2)}
    results = []
    for exact in (False, True):
        if exact:
            own = own.double()
        given = {name: value.to(own.learnable[0].dtype).requires_grad_() for name, value in bottoms.items()}
        tops = own(given, plan=own.steps if exact else fuse_training(own))
        diffs = [numbers(*top.shape, seed=3).to(top.dtype) for top in tops.values()]
        leaves = [*given.values(), *own.learnable]
        gradients = torch.autograd.grad([*tops.values()], leaves, diffs)
        results.append([*(top.detach() for top in tops.values()), *gradients])
        if not exact:
            assert all(top.is_contiguous(memory_format=torch.channels_last) for top in tops.values())
    for got, want in zip(*results, strict=True):
        places = 2 * 4 * 19 * 20  # of two tops: as many products has the sum of a weight's gradient
        assert (got.double() - want).abs().max() <= sum_rounding(places, 1) * want.abs().max()


def test_few_pixels_and_other_orders_in_memory_are_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        pytest.fail("the kernel was called")

    monkeypatch.setattr(native, "winograd", refuse)
    layer = net("kernel_size: 3 group: 2 pad: 1").layer("conv")
    fast = GroupedConvolution(layer)  # type: ignore[arg-type]  # it is a Convolution
    for x in (numbers(1, 64, 4, 4), torch.randn(4, 64, 17, 18)):
        assert torch.equal(fast(x), layer(x))


def test_it_is_used_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs_kernel(net("kernel_size: 3 group: 2"))
    for more in ("kernel_size: 3", "kernel_size: 5 group: 2", "kernel_size: 3 group: 2 stride: 2",
                 "kernel_size: 3 group: 2 dilation: 2", "kernel_size: 3 group: 4"):  # fmt: skip
        assert not runs_kernel(net(more))
    assert not runs_kernel(net("kernel_size: 3 group: 2", 66, 66))
    monkeypatch.setenv("IMAE_KERNELS", "batch_norm")
    assert not runs_kernel(net("kernel_size: 3 group: 2"))
