"""LRN's kernel in C: values and gradient of torch's own LRN in double precision, and when it is used."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerances import tolerance
from torch import Tensor

from imae.net.fuse import fuse_training
from imae.net.kernels import FastLRN, native
from imae.net.net import Net
from imae.prototxt.text import parse_net

built = pytest.mark.skipif(not native.available(), reason="the kernels in C were not built")

# Fewer channels than the window has, one, more rows than threads, and channels that fill no vector.
SHAPES = [((2, 7, 3, 5), 5), ((1, 64, 9, 8), 5), ((2, 3, 2, 2), 7), ((2, 5, 1, 1), 1), ((3, 1, 2, 3), 3)]


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAE_KERNELS", raising=False)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def net(more: str = "", relu: bool = False) -> Net:
    after = 'layer { name: "relu" type: "ReLU" bottom: "norm" top: "norm" }' if relu else ""
    return Net(
        parse_net(
            f"""
            layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ dim: [2, 6, 4, 5] }} }} }}
            layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
                    convolution_param {{ num_output: 8 kernel_size: 1 weight_filler {{ type: "xavier" }} }} }}
            layer {{ name: "norm" type: "LRN" bottom: "conv" top: "norm" lrn_param {{ {more} }} }}
            {after}
            """
        )
    )


def runs_kernel(of: Net) -> bool:
    return any(isinstance(step.run, FastLRN) for step in fuse_training(of))


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_values_and_gradient(shape: tuple[int, ...], size: int, dtype: torch.dtype) -> None:
    x, top_diff = numbers(*shape), numbers(*shape, seed=2)
    exact = x.clone().requires_grad_()
    want = F.local_response_norm(exact, size, 2.0, 0.75, 1.5)
    (want_diff,) = torch.autograd.grad(want, exact, top_diff)
    own = last(x.to(dtype))
    assert native.lrn_supports(own)
    allowed = tolerance("kernel", str(dtype).removeprefix("torch.")).atol
    for got, expected in (
        (native.lrn(own, size, 2.0, 1.5), want),
        (native.lrn(own, size, 2.0, 1.5, last(top_diff.to(dtype))), want_diff),
    ):
        difference = (got.double() - expected.detach()).abs().max()
        assert difference <= allowed * expected.detach().abs().max()


@built
def test_a_window_that_no_memory_could_hold_has_all_channels() -> None:
    """A net may ask for any size; what lies beyond the channels is 0, and costs nothing."""
    x, top_diff, size = last(numbers(2, 4, 3, 2)), last(numbers(2, 4, 3, 2, seed=2)), 2**61 + 1
    allowed = tolerance("kernel", "float64").atol
    for diff in (None, top_diff):
        # alpha is divided by the size.
        got, want = (native.lrn(x, window, 2.0 * window, 1.5, diff) for window in (size, 7))
        assert (got - want).abs().max() <= allowed * want.abs().max()


@built
def test_the_fast_plan_has_the_values_and_the_gradients_of_the_plain_one() -> None:
    own = net("local_size: 3 alpha: 2 k: 1.5").double()
    own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
    data, top_diff = last(numbers(2, 6, 4, 5)), numbers(2, 8, 4, 5, seed=2)
    assert runs_kernel(own)
    results = []
    for plan in (fuse_training(own), own.steps):
        top = own({"data": data}, plan=plan)["norm"]
        results.append([top.detach(), *torch.autograd.grad(top, own.learnable, top_diff)])
    for got, want in zip(*results, strict=True):
        assert (got - want).abs().max() <= tolerance("fast way", "float64").atol * want.abs().max()


@built
def test_it_is_used_where_it_computes_what_the_layer_does() -> None:
    assert runs_kernel(net("local_size: 5"))
    assert not runs_kernel(net("local_size: 5 beta: 0.5"))
    assert not runs_kernel(net("local_size: 5 norm_region: WITHIN_CHANNEL"))
    # Caffe's gradient reads the top, which the ReLU has overwritten.
    assert not runs_kernel(net("local_size: 5", relu=True))


@built
def test_other_bottoms_are_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        pytest.fail("the kernel was called")

    monkeypatch.setattr(native, "lrn", refuse)
    layer = net("local_size: 5").layer("norm")
    fast = FastLRN(layer)  # type: ignore[arg-type]  # it is an LRN
    x = numbers(2, 8, 4, 5)
    for bottom in (x, last(x).half(), x[:0]):
        assert torch.equal(fast(bottom), layer(bottom))


@built
def test_memory_of_another_order_is_refused() -> None:
    x = numbers(2, 8, 4, 5)
    with pytest.raises(ValueError, match="strides"):
        native.lrn(x, 5, 1.0, 1.0)
    with pytest.raises(ValueError, match="expected"):
        native.lrn(last(x), 5, 1.0, 1.0, last(x[:1]))
    with pytest.raises(ValueError, match="4 channels"):
        native.lrn(last(x), 4, 1.0, 1.0)
