"""The kernels in C, against torch's in double precision."""

from __future__ import annotations

import itertools
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from tolerances import tolerance
from torch import Tensor

from imae.layers import native
from imae.layers.caffe_random import CaffeRandom
from imae.layers.channels_last_conv import Convolve, gains
from imae.layers.channels_last_norm import normalize
from imae.layers.net import Net
from imae.prototxt.text import parse_net

built = pytest.mark.skipif(not native.available(), reason="the kernels in C were not built")
multiplies = pytest.mark.skipif(not native.conv_weight_possible(), reason="no AVX2, or no kernels in C")


def test_the_kernels_are_built_where_there_is_a_compiler() -> None:
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("no Linux, or no C compiler")
    assert native.available()


@built
def test_a_library_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "VERSION", native.VERSION + 1)
    native._library.cache_clear()
    try:
        assert not native.available()
        assert not native.conv_weight_wanted()
    finally:
        native._library.cache_clear()


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def numbers(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rounded to single precision, so that both types hold the same."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.float().to(dtype)


def distance(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max()) / (float(want.abs().max()) or 1.0)


# -- BatchNorm -----------------------------------------------------------------------------------------------

# Spans of many rows and of one, channels for several blocks, and blocks that are cut off.
SHAPES = [(4, 3, 5, 7), (2, 16, 8, 8), (3, 2, 1, 2), (40, 16, 32, 32), (9, 200, 3, 2), (9, 9001, 1, 2)]


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_batch_norm_has_the_values_and_the_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, top_diff, shortcut = (
        last(numbers(*shape) * 3 + 5),
        last(numbers(*shape, seed=2)),
        last(numbers(*shape, seed=3)),
    )
    weight, bias = numbers(shape[1], seed=4), numbers(shape[1], seed=5)
    allowed = tolerance("kernel", str(dtype).removeprefix("torch.")).atol
    for affine, relu, adds in itertools.product((True, False), repeat=3):
        found = []
        for own in (True, False):
            given = [x, weight, bias] if affine else [x]
            leaves = [
                leaf.to(dtype if own else torch.float64).clone().requires_grad_()
                for leaf in (*given, shortcut)
            ]
            factors = leaves[1:3] if affine else [None, None]
            if own:
                assert native.takes(*leaves)
                top, *statistics = normalize(leaves[0], *factors, 1e-5, relu, leaves[-1] if adds else None)
            else:
                statistics = [x.mean((0, 2, 3)), x.var((0, 2, 3))]
                top = F.batch_norm(leaves[0], None, None, *factors, True, 0, 1e-5)
                top = top + leaves[-1] if adds else top
                # A bottom of the ReLU that is nothing but rounding: the kernel has decided.
                top = top * (found[0][0] > 0) if relu else top
            wanted = leaves if adds else leaves[:-1]
            found.append([top, *statistics, *torch.autograd.grad(top, wanted, top_diff.to(top.dtype))])
        for place, (got, want) in enumerate(zip(*found, strict=True)):
            assert distance(got.detach(), want.detach()) <= allowed, (affine, relu, adds, place)


@built
def test_the_variance_of_numbers_far_from_0_is_right() -> None:
    x = last(
        numbers(64, 4, 16, 16) + torch.tensor([0.0, 1e3, -1e4, 1e5], dtype=torch.float64).view(1, -1, 1, 1)
    )
    x[0] += 1e4  # an image unlike the others
    x = x.float()
    _, mean, variance, _ = native.batch_norm(x, None, None, None, 1e-5, False)
    exact = x.double()
    assert torch.allclose(mean.double(), exact.mean((0, 2, 3)), rtol=1e-6)
    assert torch.allclose(variance.double(), exact.var((0, 2, 3)), rtol=1e-6)


@built
def test_both_ways_to_find_the_gradient_of_a_relu_are_the_same_bit_for_bit() -> None:
    """By its top, as with a shortcut, or computed again. Many of its bottoms lie near 0."""
    x, top_diff = last(torch.randint(-2, 3, (8, 6, 33, 7)).float()), last(numbers(8, 6, 33, 7).float())
    weight, bias = numbers(6).float(), torch.zeros(6)
    nothing = torch.zeros_like(x)
    top, mean, _, factor = native.batch_norm(x, weight, bias, None, 1e-5, True)
    assert torch.equal(top, native.batch_norm(x, weight, bias, nothing, 1e-5, True)[0])
    again = native.batch_norm_gradients(x, None, top_diff, weight, bias, mean, factor, True)
    by_top = native.batch_norm_gradients(x, top, top_diff, weight, bias, mean, factor, True)
    for one, other in zip(again[:3], by_top[:3], strict=True):
        assert torch.equal(one, other)


@built
def test_what_is_not_a_number_goes_through_the_relu() -> None:
    x = last(numbers(2, 3, 4, 4).float())
    x[1, 1, 2, 2] = torch.nan
    top, *_ = native.batch_norm(x, None, None, None, 1e-5, True)
    assert [bool(top[:, c].isnan().all()) for c in range(3)] == [False, True, False]
    assert not top[:, ::2].isnan().any()


@built
def test_batch_norm_does_not_depend_on_the_number_of_threads() -> None:
    x, top_diff = last(numbers(16, 24, 20, 20).float()), last(numbers(16, 24, 20, 20, seed=2).float())
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            top, mean, variance, factor = native.batch_norm(x, None, None, None, 1e-5, True)
            gradients = native.batch_norm_gradients(x, None, top_diff, None, None, mean, factor, True)
            found.append([top, mean, variance, factor, *gradients])
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


def test_a_step_without_weights_that_learn_takes_a_shortcut_of_another_order() -> None:
    """torch's operations take over."""
    x, shortcut = last(numbers(4, 6, 5, 5)), numbers(4, 6, 5, 5, seed=2)
    top, *_ = normalize(x, None, None, 1e-5, True, shortcut)
    want = F.relu(F.batch_norm(x, None, None, None, None, True, 0, 1e-5) + shortcut)
    assert distance(top, want) <= tolerance("kernel", "float64").atol


# -- a convolution's weights ---------------------------------------------------------------------------------

CONVOLUTIONS = [  # num, channels, height, width, outputs, kernel, stride, pad
    (2, 16, 8, 8, 16, (3, 3), (1, 1), (1, 1)),
    (3, 16, 9, 7, 32, (3, 3), (2, 2), (1, 1)),
    (2, 3, 40, 40, 8, (3, 3), (1, 1), (1, 1)),
    (2, 1, 28, 28, 24, (5, 5), (1, 1), (0, 0)),
    (3, 5, 6, 11, 8, (1, 1), (1, 1), (0, 0)),
    (2, 4, 6, 11, 16, (1, 1), (2, 3), (0, 0)),
    (2, 7, 5, 30, 40, (2, 5), (3, 1), (0, 4)),
    (1, 2, 3, 3, 8, (2, 2), (1, 1), (3, 4)),  # some windows see nothing but padding
    (70, 64, 1, 1, 16, (1, 1), (1, 1), (0, 0)),
    (1, 11, 3, 500, 8, (3, 3), (1, 2), (1, 1)),
]


@multiplies
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_a_convolutions_weights_have_their_gradient(case: tuple) -> None:  # type: ignore[type-arg]
    num, channels, height, width, outputs, kernel, stride, pad = case
    x = last(numbers(num, channels, height, width))
    weight = numbers(outputs, channels, *kernel, seed=2).requires_grad_()
    top = F.conv2d(x, weight, None, stride, pad)
    top_diff = last(numbers(*top.shape, seed=3))
    (want,) = torch.autograd.grad(top, weight, top_diff)
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            got = native.conv_weight_gradient(x.float(), top_diff.float(), weight.shape, stride, pad)
        finally:
            torch.set_num_threads(before)
        assert got.shape == want.shape
        assert distance(got, want) <= tolerance("kernel").atol


@multiplies
def test_a_gradient_of_many_pixels_is_nearer_than_torchs() -> None:
    x, top_diff = last(numbers(64, 16, 32, 32)), last(numbers(64, 16, 32, 32, seed=2))
    weight = numbers(16, 16, 3, 3, seed=3)

    def by_torch(dtype: torch.dtype) -> Tensor:
        leaf = weight.to(dtype).requires_grad_()
        return torch.autograd.grad(F.conv2d(x.to(dtype), leaf, padding=1), leaf, top_diff.to(dtype))[0]

    want = by_torch(torch.float64)
    got = native.conv_weight_gradient(x.float(), top_diff.float(), weight.shape, (1, 1), (1, 1))
    assert distance(got, want) <= tolerance("kernel").atol
    assert distance(got, want) <= distance(by_torch(torch.float32), want)


NET = """
layer { name: "data" type: "Input" top: "a" top: "b" input_param { shape { dim: [2, 3, 9, 9] } } }
layer { name: "conv" type: "Convolution" bottom: "a" bottom: "b" top: "c" top: "d"
        convolution_param { num_output: OUTPUTS pad: 1 MORE weight_filler { type: "msra" } } }
"""


def convolution(outputs: int = 16, more: str = "kernel_size: 3") -> Net:
    text = NET.replace("OUTPUTS", str(outputs)).replace("MORE", more)
    return Net(parse_net(text), CaffeRandom(1))


@multiplies
def test_a_layer_of_two_bottoms_and_a_bias_has_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "conv_weight_wanted", native.conv_weight_possible)
    step = convolution().steps[-1]
    layer = step.layer
    assert gains(layer, (2, 3, 9, 9))  # type: ignore[arg-type]
    bottoms = [last(numbers(2, 3, 9, 9, seed=seed).float()).requires_grad_() for seed in (1, 2)]
    leaves, diffs = (
        [*bottoms, *layer.blobs],
        [last(numbers(2, 16, 9, 9, seed=seed).float()) for seed in (3, 4)],
    )
    found = []
    for run in (Convolve(layer), layer):  # type: ignore[arg-type]
        tops = run(*bottoms)
        found.append([*tops, *torch.autograd.grad(tops, leaves, diffs)])
    for got, want in zip(*found, strict=True):
        assert distance(got.detach(), want.detach().double()) <= 2 * tolerance("kernel").atol


@multiplies
@pytest.mark.parametrize(
    ("outputs", "more", "wanted"),
    [
        (16, "kernel_size: 3", True),
        (12, "kernel_size: 3", False),
        (16, "kernel_size: 3 dilation: 2", False),
        (18, "kernel_size: 3 group: 3", False),
        (24, "kernel_size: 3 group: 3", False),
        (16, "kernel_size: 1", False),
        (8000, "kernel_size: 3", False),
    ],
)
def test_the_kernel_is_for_plain_convolutions(
    outputs: int, more: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "conv_weight_wanted", native.conv_weight_possible)
    layer = convolution(outputs, more).steps[-1].layer
    assert gains(layer, (2, 3, 9, 9)) == wanted  # type: ignore[arg-type]


@multiplies
def test_foreign_memory_is_not_read() -> None:
    """Other types, shapes and orders are refused where the kernels are called."""
    x, weight = last(numbers(2, 16, 6, 6).float()), numbers(16).float()
    top, mean, _, factor = native.batch_norm(x, weight, None, None, 1e-5, True)
    for shortcut in (x.double(), x[:, :, :3], x.contiguous()):
        with pytest.raises(ValueError, match=r"got|strides"):
            native.batch_norm(x, weight, None, shortcut, 1e-5, True)
    with pytest.raises(ValueError, match="16 channels"):
        native.batch_norm(x, weight[:8], None, None, 1e-5, True)
    with pytest.raises(ValueError, match="bfloat16"):
        native.batch_norm_gradients(x, None, x.bfloat16(), weight, None, mean, factor, True)
    for top_diff in (top.bfloat16(), top[:, :8], top[:1], top.contiguous()):
        with pytest.raises(ValueError, match=r"got|strides"):
            native.conv_weight_gradient(x, top_diff, (16, 16, 3, 3), (1, 1), (1, 1))
    with pytest.raises(ValueError, match="no kernel"):
        native.conv_weight_gradient(x, top, (16, 8, 3, 3), (1, 1), (1, 1))
