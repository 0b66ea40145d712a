"""The kernels in C, against torch's in double precision; equal with small integers, whose sums are exact.

`IMAE_KERNELS_ISA` chooses the instructions, so that the forms for other processors can be tested on this one.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from c_kernels import conv_supported
from tolerances import UNIT, sum_rounding, tolerance
from torch import Tensor

from imae.files.errors import ImaeError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import Shape
from imae.layers.run import Run
from imae.layers.vision.conv import Convolution
from imae.net.kernels import conv, native
from imae.net.kernels.conv import FastConvolution
from imae.net.kernels.norm import normalize_by_statistics, normalize_channels_last
from imae.net.kernels.norm_call import NormCall
from imae.net.net import Net
from imae.prototxt.text import parse_net

built = pytest.mark.skipif(not native.available(), reason="the kernels in C were not built")
multiplies = pytest.mark.skipif(not conv_supported(), reason="no AVX2, or no kernels in C")


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of IMAE_KERNELS nothing, whatever the suite runs with; IMAE_KERNELS_ISA counts."""
    monkeypatch.delenv("IMAE_KERNELS", raising=False)


def test_the_kernels_are_built_where_there_is_a_compiler() -> None:
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("no Linux, or no C compiler")
    assert native.available()


@built
def test_a_library_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "sources_hash", lambda: "0" * 64)
    native._library.cache_clear()
    try:
        assert not native.available()
        assert not (native.uses_conv_weight() or native.uses_winograd())
    finally:
        native._library.cache_clear()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("name", ["common", "conv", "pixels", "suppress"])
def test_a_header_includes_what_it_needs(name: str) -> None:
    """The others are templates: they say so where kernels.c does not include them."""
    folder = Path(native.__file__).resolve().parent
    command = ["cc", "-std=gnu11", "-fopenmp", "-fsyntax-only", "-x", "c"]
    env = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}  # as for sanitizers
    subprocess.run([*command, folder / f"{name}.h"], check=True, env=env)
    for name in (
        "batch_norm",
        "bfloat16",
        "lrn",
        "sgd",
        "vectors",
        "activation",
        "conv_weight",
        "direct",
        "winograd",
    ):
        template = subprocess.run([*command, folder / f"{name}.h"], capture_output=True, text=True, env=env)
        assert template.returncode and "a template: see kernels.c" in template.stderr


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
                assert native.batch_norm_supports(*leaves)
                call = NormCall(leaves[0], *factors, 1e-5, relu, leaves[-1] if adds else None)
                top, *statistics = normalize_channels_last(call)
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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_batch_norm_by_given_statistics(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, shortcut = last(numbers(*shape) * 3 + 5), last(numbers(*shape, seed=2))
    weight, bias, mean = (numbers(shape[1], seed=seed) for seed in (3, 4, 5))
    variance = numbers(shape[1], seed=6) ** 2
    calls: list[str] = []
    name = "batch_norm_by_statistics"
    monkeypatch.setattr(native, name, partial(_noted, calls, name, native.batch_norm_by_statistics))
    for count, (affine, relu, adds) in enumerate(itertools.product((True, False), repeat=3)):
        factors = (weight, bias) if affine else (None, None)
        want = F.batch_norm(x, mean, variance, *factors, False, 0, 1e-5)
        want = want + shortcut if adds else want
        want = want.relu() if relu else want
        own = [None if value is None else value.to(dtype) for value in (*factors, shortcut if adds else None)]
        call = NormCall(x.to(dtype), own[0], own[1], 1e-5, relu, own[2])
        got = normalize_by_statistics(call, mean.to(dtype), variance.to(dtype))
        assert distance(got, want) <= tolerance("kernel", str(dtype).removeprefix("torch.")).atol
        assert len(calls) == count + 1


@built
def test_the_variance_of_numbers_far_from_0_is_right() -> None:
    x = last(
        numbers(64, 4, 16, 16) + torch.tensor([0.0, 1e3, -1e4, 1e5], dtype=torch.float64).view(1, -1, 1, 1)
    )
    x[0] += 1e4  # an image unlike the others
    x = x.float()
    _, mean, variance, _ = native.batch_norm(NormCall(x))
    exact = x.double()
    rtol, atol, _ = tolerance("formula")
    assert torch.allclose(mean.double(), exact.mean((0, 2, 3)), rtol, atol)
    assert torch.allclose(variance.double(), exact.var((0, 2, 3)), rtol, atol)


@built
def test_both_ways_to_find_the_gradient_of_a_relu_are_the_same_bit_for_bit() -> None:
    """By its top, as with a shortcut, or computed again. Many of its bottoms lie near 0."""
    x, top_diff = last(torch.randint(-2, 3, (8, 6, 33, 7)).float()), last(numbers(8, 6, 33, 7).float())
    weight, bias = numbers(6).float(), torch.zeros(6)
    call, nothing = NormCall(x, weight, bias, relu=True), torch.zeros_like(x)
    top, mean, _, factor = native.batch_norm(call)
    assert torch.equal(top, native.batch_norm(call._replace(shortcut=nothing))[0])
    again = native.batch_norm_gradients(call, None, top_diff, mean, factor)
    by_top = native.batch_norm_gradients(call, top, top_diff, mean, factor)
    for one, other in zip(again[:3], by_top[:3], strict=True):
        assert torch.equal(one, other)


@built
def test_what_is_not_a_number_goes_through_the_relu() -> None:
    x = last(numbers(2, 3, 4, 4).float())
    x[1, 1, 2, 2] = torch.nan
    top, *_ = native.batch_norm(NormCall(x, relu=True))
    assert [bool(top[:, c].isnan().all()) for c in range(3)] == [False, True, False]
    assert not top[:, ::2].isnan().any()


@built
def test_batch_norm_does_not_depend_on_the_number_of_threads() -> None:
    x, top_diff = last(numbers(16, 24, 20, 20).float()), last(numbers(16, 24, 20, 20, seed=2).float())
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            top, mean, variance, factor = native.batch_norm(NormCall(x, relu=True))
            gradients = native.batch_norm_gradients(NormCall(x, relu=True), None, top_diff, mean, factor)
            found.append([top, mean, variance, factor, *gradients])
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


def test_values_that_do_not_lie_side_by_side_are_left_to_torch() -> None:
    x, weight, bias, mean = last(numbers(2, 6, 5, 5)), *(numbers(6, 2, seed=seed)[:, 0] for seed in (2, 3, 4))
    variance = numbers(6, 2, seed=5)[:, 0] ** 2
    top = normalize_by_statistics(NormCall(x, weight, bias), mean, variance)
    want = F.batch_norm(x, mean, variance, weight, bias, False, 0, 1e-5)
    assert distance(top, want) <= tolerance("kernel", "float64").atol
    top, *_ = normalize_channels_last(NormCall(x, weight, bias))
    want = F.batch_norm(x, None, None, weight, bias, True, 0, 1e-5)
    assert distance(top, want) <= tolerance("kernel", "float64").atol


def test_a_step_without_weights_that_learn_takes_a_shortcut_of_another_order() -> None:
    """torch's operations take over."""
    x, shortcut = last(numbers(4, 6, 5, 5)), numbers(4, 6, 5, 5, seed=2)
    top, *_ = normalize_channels_last(NormCall(x, relu=True, shortcut=shortcut))
    want = F.relu(F.batch_norm(x, None, None, None, None, True, 0, 1e-5) + shortcut)
    assert distance(top, want) <= tolerance("kernel", "float64").atol


# -- numbers with which all is exact, on any processor -------------------------------------------------------


def integers(*shape: int, most: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return last(torch.randint(-most, most + 1, shape, generator=generator).double())


def exact_batch(channels: int) -> Tensor:
    """Numbers c and c + 2 of channel c, as many in each row: mean c + 1, variance 1."""
    signs = integers(8, channels, 16, 8, most=10, seed=3) >= 0
    signs = torch.cat([signs, ~signs], 3)
    return last(signs.double() * 2 + torch.arange(channels).view(1, -1, 1, 1))


@built
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
def test_batch_norm_of_small_integers_is_exact(dtype: torch.dtype, threads: int) -> None:
    """With eps 3 the factor is 1 / sqrt(1 + 3); of 2048 numbers a channel, so means are exact, too."""
    channels, eps = 16, 3
    x, shortcut = exact_batch(channels), integers(8, channels, 16, 16, most=4, seed=4)
    weight, bias = ((torch.arange(channels) % k - 2).double() for k in (5, 3))
    top_diff = integers(*x.shape, most=3, seed=5)
    mean, of_all, of_each = torch.arange(channels).double() + 1, (0, 2, 3), (1, -1, 1, 1)
    normal = (x - mean.view(of_each)) / 2
    top = (normal * weight.view(of_each) + bias.view(of_each) + shortcut).relu()
    masked = top_diff * (top > 0)
    bias_diff, weight_diff = masked.sum(of_all), (masked * normal).sum(of_all)
    m = x.numel() // channels
    inner = masked - bias_diff.view(of_each) / m - normal * weight_diff.view(of_each) / m
    want = [top, mean, torch.full_like(mean, m / (m - 1)), torch.full_like(mean, 0.5)]
    want += [weight.view(of_each) / 2 * inner, weight_diff, bias_diff, masked]
    own = [leaf.to(dtype) for leaf in (x, weight, bias, shortcut)]
    call = NormCall(*own[:3], eps, True, own[3])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = [*native.batch_norm(call)]
        by_given = native.batch_norm_by_statistics(call, got[1], torch.ones_like(got[1]))
        got += native.batch_norm_gradients(call, got[0], top_diff.to(dtype), got[1], got[3])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(by_given, got[0])
    for place, (ours, exact) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(ours, exact.to(dtype)), place


@pytest.mark.parametrize("kernels", ["batch_norm", "none"])
def test_another_eps_changes_batch_norm_of_small_integers(
    kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a kernel that doubles eps, or forgets it, would be noticed by: 1/sqrt(7) or 1 for 1/2."""
    if kernels == "batch_norm" and not native.available():
        pytest.skip("the kernels in C were not built")
    monkeypatch.setenv("IMAE_KERNELS", kernels)
    x = exact_batch(16).float()
    exact = (x.double() - x.double().mean((0, 2, 3), keepdim=True)) / 2
    for eps, right in ((3.0, True), (6.0, False), (3 * (1 + 1e-5), False), (0.0, False)):
        top, *_ = normalize_channels_last(NormCall(x, eps=eps))
        assert (distance(top, exact) <= tolerance("kernel").atol) == right


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
    # 65,536 products. torch's may be as exact on some processor: then both are as good as ours must be.
    assert distance(got, want) <= max(distance(by_torch(torch.float32), want), 4 * UNIT)
    assert distance(got, want) <= tolerance("kernel").atol


@multiplies
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_a_convolutions_weights_of_small_integers_have_the_exact_gradient(case: tuple, threads: int) -> None:  # type: ignore[type-arg]
    num, channels, height, width, outputs, kernel, stride, pad = case
    x = integers(num, channels, height, width, most=8)
    weight = torch.zeros(outputs, channels, *kernel, dtype=torch.float64, requires_grad=True)
    top = F.conv2d(x, weight, None, stride, pad)
    top_diff = integers(*top.shape, most=8, seed=2)
    (want,) = torch.autograd.grad(top, weight, top_diff)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = native.conv_weight_gradient(x.float(), top_diff.float(), weight.shape, stride, pad)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got.double(), want)


# -- Winograd's algorithm ------------------------------------------------------------------------------------

WINOGRADS = [  # num, channels, height, width, outputs, pad
    (2, 16, 8, 8, 16, (1, 1)),
    (3, 8, 7, 5, 24, (1, 1)),  # tiles that are cut off, groups of tiles across images
    (1, 24, 3, 3, 8, (0, 0)),  # one pixel
    (1, 8, 1, 1, 8, (1, 1)),
    (2, 40, 9, 6, 16, (2, 0)),
    (1, 8, 5, 4, 40, (0, 2)),
    (9, 32, 2, 11, 16, (2, 2)),
    (200, 8, 6, 6, 8, (1, 1)),  # more tiles than a thread adds up in single precision
    (1, 136, 12, 10, 8, (1, 1)),
]


@multiplies
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", WINOGRADS, ids=str)
def test_winograds_algorithm_has_the_values_and_the_gradients(
    case: tuple[int, int, int, int, int, tuple[int, int]], threads: int
) -> None:
    num, channels, height, width, outputs, pad = case
    x = last(numbers(num, channels, height, width)).requires_grad_()
    weight = numbers(outputs, channels, 3, 3, seed=2).requires_grad_()
    bias = numbers(outputs, seed=3)
    top = F.conv2d(x, weight, bias, 1, pad)
    top_diff = last(numbers(*top.shape, seed=4))
    want = [top, F.conv2d(x, weight, None, 1, pad), top, *torch.autograd.grad(top, (x, weight), top_diff)]
    of_x, of_top, of_weight = last(x.detach().float()), top_diff.float(), weight.detach().float()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for kept in (of_weight, last(of_weight)):  # in either order of memory
            spread = torch.stack([bias.float()] * 2, 1)[:, 0]
            got = [
                native.winograd(of_x, kept, bias.float(), pad),
                native.winograd(of_x, kept, None, pad),
                native.winograd(of_x, kept, spread, pad),
                native.winograd_bottom_gradient(of_top, kept, pad),
                native.winograd_weight_gradient(of_x, of_top, kept.shape, pad),
            ]
            for place, (ours, exact) in enumerate(zip(got, want, strict=True)):
                assert ours.shape == exact.shape
                assert distance(ours, exact.detach()) <= tolerance("kernel").atol, place
    finally:
        torch.set_num_threads(before)


@multiplies
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", WINOGRADS, ids=str)
def test_winograds_algorithm_is_exact_with_small_integers(
    case: tuple[int, int, int, int, int, tuple[int, int]], threads: int
) -> None:
    """Weights and diffs of a top are multiples of 4, as the algorithm halves them twice."""
    num, channels, height, width, outputs, pad = case
    x = integers(num, channels, height, width, most=3).requires_grad_()
    weight = (4 * integers(outputs, channels, 3, 3, most=2, seed=2)).requires_grad_()
    bias = integers(1, outputs, 1, 1, most=5, seed=3).flatten()
    top = F.conv2d(x, weight, bias, 1, pad)
    top_diff = 4 * integers(*top.shape, most=1, seed=4)
    want = [top, *torch.autograd.grad(top, (x, weight), top_diff)]
    of_x, of_weight, of_top = (each.detach().float() for each in (x, weight, top_diff))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = [
            native.winograd(of_x, of_weight, bias.float(), pad),
            native.winograd_bottom_gradient(of_top, of_weight, pad),
            native.winograd_weight_gradient(of_x, of_top, of_weight.shape, pad),
        ]
    finally:
        torch.set_num_threads(before)
    for place, (ours, exact) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(ours.double(), exact.detach()), place


@multiplies
def test_winograds_algorithm_is_nearer_than_torchs() -> None:
    """With the sizes of ResNet-20's last layers: forward, and both gradients.

    Or as near as sums over 64 channels in single precision must be: torch's order depends on the processor.
    """
    x, weight = last(numbers(32, 64, 8, 8).relu()), numbers(64, 64, 3, 3, seed=2) / 17
    top_diff = last(numbers(32, 64, 8, 8, seed=3))

    def by_torch(dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in (x, weight)]
        top = F.conv2d(*leaves, padding=1)
        return [top.detach(), *torch.autograd.grad(top, leaves, top_diff.to(dtype))]

    of_x, of_top, pad = x.float(), top_diff.float(), (1, 1)
    ours = [
        native.winograd(of_x, weight.float(), None, pad),
        native.winograd_bottom_gradient(of_top, weight.float(), pad),
        native.winograd_weight_gradient(of_x, of_top, weight.shape, pad),
    ]
    for got, torchs, want in zip(ours, by_torch(torch.float32), by_torch(torch.float64), strict=True):
        assert distance(got, want) <= max(distance(torchs, want), sum_rounding(64))


@multiplies
def test_winograds_algorithm_forward_does_not_depend_on_the_number_of_threads() -> None:
    x, weight = last(numbers(5, 16, 9, 9).float()), numbers(24, 16, 3, 3, seed=2).float()
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(native.winograd(x, weight, None, (1, 1)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


NET = """
layer { name: "data" type: "Input" top: "a" top: "b" input_param { shape { dim: [2, CHANNELS, 9, 9] } } }
layer { name: "conv" type: "Convolution" bottom: "a" bottom: "b" top: "c" top: "d"
        convolution_param { num_output: OUTPUTS PAD MORE weight_filler { type: "msra" } } }
"""


def want_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where torch has other fast ones for this processor."""
    monkeypatch.setenv("IMAE_KERNELS", "all")


def convolution(
    outputs: int = 16, more: str = "kernel_size: 3", channels: int = 3, pad: str = "pad: 1"
) -> Net:
    text = NET.replace("OUTPUTS", str(outputs)).replace("MORE", more).replace("CHANNELS", str(channels))
    text = text.replace("PAD", pad)
    return Net(parse_net(text), Run(CaffeRandom(1)))


def exactly(layer: Convolution, bottoms: list[Tensor]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Blobs and tops of such a layer in double precision."""
    param, windows = layer.param.convolution_param, layer.windows
    blobs = [blob.detach().double().requires_grad_(blob.requires_grad) for blob in layer.blobs]
    bias = blobs[1] if param.bias_term else None
    tops = tuple(F.conv2d(x, blobs[0], bias, windows.stride, windows.pad) for x in bottoms)
    return blobs, tops


@multiplies
@pytest.mark.parametrize("learning", ["all", "bottoms", "weights", "bias", "nothing"])
@pytest.mark.parametrize("tiles", [(1, 1), (1, 1000), (1000, 1000)], ids=str)
@pytest.mark.parametrize("channels", [3, 16])
def test_a_layer_of_two_bottoms_and_a_bias_has_its_gradients(
    channels: int, tiles: tuple[int, int], learning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    want_the_kernels(monkeypatch)
    for name, least in zip(("MIN_TILES", "MIN_TILES_FOR_WEIGHTS"), tiles, strict=True):
        monkeypatch.setattr(conv, name, least)
    used: list[str] = []
    for name in ("winograd", "winograd_bottom_gradient", "winograd_weight_gradient", "conv_weight_gradient"):
        monkeypatch.setattr(native, name, partial(_noted, used, name, getattr(native, name)))
    layer = convolution(channels=channels).steps[-1].layer
    assert isinstance(layer, Convolution)
    assert FastConvolution.is_faster(layer, (2, channels, 9, 9))
    bottoms = [last(numbers(2, channels, 9, 9, seed=seed).float()) for seed in (1, 2)]
    leaves = {"bottoms": bottoms, "weights": [layer.blobs[0]], "bias": [layer.blobs[1]], "nothing": []}
    wanted = [*bottoms, *layer.blobs] if learning == "all" else leaves[learning]
    for leaf in (*bottoms, *layer.blobs):
        leaf.requires_grad_(any(leaf is one for one in wanted))
    diffs = [last(numbers(2, 16, 9, 9, seed=seed).float()) for seed in (3, 4)]
    tops = FastConvolution(layer)(*bottoms)
    got = [*tops, *(torch.autograd.grad(tops, wanted, diffs) if wanted else ())]
    exact_bottoms = [x.detach().double().requires_grad_(x.requires_grad) for x in bottoms]
    blobs, exact_tops = exactly(layer, exact_bottoms)
    exact = [leaf for leaf in (*exact_bottoms, *blobs) if leaf.requires_grad]
    doubles = [diff.double() for diff in diffs]
    want = [*exact_tops, *(torch.autograd.grad(exact_tops, exact, doubles) if exact else ())]
    for ours, theirs in zip(got, want, strict=True):
        # Where torch's kernels do it: at most 2 times 162 products of a weight's diff.
        assert distance(ours.detach(), theirs.detach()) <= sum_rounding(2 * 162)
    algorithm, learns = channels == 16 and tiles[0] == 1, learning in ("all", "weights")
    assert ("winograd" in used) == algorithm
    assert ("winograd_bottom_gradient" in used) == (algorithm and learning in ("all", "bottoms"))
    assert ("winograd_weight_gradient" in used) == (algorithm and learns and tiles[1] == 1)
    assert ("conv_weight_gradient" in used) == (learns and not (algorithm and tiles[1] == 1))


def _noted(used: list[str], name: str, function: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    used.append(name)
    return function(*args, **options)


@multiplies
@pytest.mark.parametrize("shape", [(16, 9, 9), (2, 8, 9, 9), (16, 9), (2, 16, 1, 1), (0, 16, 9, 9)], ids=str)
def test_other_bottoms_than_the_layer_was_made_for_are_left_to_it(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    want_the_kernels(monkeypatch)
    monkeypatch.setattr(conv, "MIN_TILES", 1)
    layer = convolution(channels=16).steps[-1].layer
    assert isinstance(layer, Convolution)
    x = numbers(*shape).float()
    if len(shape) == 4:
        x = last(x)

    def top(run: Callable[[Tensor], Any]) -> Tensor | str:
        try:
            return run(x).detach()  # type: ignore[no-any-return]
        except RuntimeError as error:
            return str(error)

    got, want = top(FastConvolution(layer)), top(layer)
    if isinstance(want, str):
        assert got == want
    else:
        assert isinstance(got, Tensor)
        assert got.shape == want.shape
        assert not got.numel() or distance(got, want.double()) <= tolerance("kernel").atol


@multiplies
def test_layers_of_many_weights_leave_their_gradient_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    want_the_kernels(monkeypatch)
    layer = convolution(channels=16).steps[-1].layer
    assert isinstance(layer, Convolution)
    x, top_diff = last(numbers(20, 16, 9, 9).float()), last(numbers(20, 16, 9, 9, seed=2).float())
    blobs, tops = exactly(layer, [x.double()])
    want = torch.autograd.grad(tops, blobs, [top_diff.double()])
    for name in ("MAX_WEIGHTS", "MAX_WINOGRAD_WEIGHTS"):
        monkeypatch.setattr(conv, name, 100)
    assert FastConvolution.is_faster(layer, (20, 16, 9, 9))  # forward, and for the bottom
    for name in ("winograd_weight_gradient", "conv_weight_gradient"):
        monkeypatch.setattr(native, name, None)
    got = torch.autograd.grad(FastConvolution(layer)(x), list(layer.blobs), top_diff)
    for one, other in zip(got, want, strict=True):
        assert distance(one, other) <= sum_rounding(20 * 81)  # torch's own, of 20 images of 9x9 pixels


@multiplies
@pytest.mark.parametrize(
    ("outputs", "more", "wanted"),
    [
        (16, "kernel_size: 3", True),
        (12, "kernel_size: 3", False),
        (16, "kernel_size: 3 dilation: 2", False),
        (18, "kernel_size: 3 group: 3", False),
        (24, "kernel_size: 3 group: 3", False),
        (16, "kernel_size: 1", True),
        (8000, "kernel_size: 3", True),
        (8000, "kernel_size: 3 dilation: 2", False),
    ],
)
def test_the_kernel_is_for_plain_convolutions(
    outputs: int, more: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    want_the_kernels(monkeypatch)
    layer = convolution(outputs, more).steps[-1].layer
    assert FastConvolution.is_faster(layer, (2, 3, 9, 9)) == wanted  # type: ignore[arg-type]


@multiplies
@pytest.mark.parametrize(
    ("bottom", "outputs", "pad", "more", "products"),
    [
        ((1, 24, 9, 9), 16, "", "kernel_size: 1", ["weights", "bottom"]),
        ((4, 24, 9, 9), 16, "", "kernel_size: 1", ["weights", "bottom"]),
        ((40, 24, 9, 9), 16, "", "kernel_size: 1", []),
        ((24, 24, 9, 9), 24, "", "kernel_size: 1", ["weights", "bottom"]),
        ((26, 24, 9, 9), 24, "", "kernel_size: 1", ["weights"]),
        ((4, 8, 9, 9), 16, "pad: 1", "kernel_size: 1", ["weights"]),
        ((4, 8, 9, 9), 16, "", "kernel_size: 1 stride: 2", ["weights"]),
        ((1, 3, 9, 9), 32, "pad: 1", "kernel_size: 3 stride: 2", ["weights"]),
        ((4, 3, 9, 9), 104, "pad: 1", "kernel_size: 3 stride: 2", ["weights"]),
        ((4, 3, 9, 9), 96, "pad: 1", "kernel_size: 3 stride: 2", []),
        (
            (2, 8, 9, 7),
            96,
            "pad_h: 1 pad_w: 2",
            "kernel_h: 5 kernel_w: 3 stride_h: 1 stride_w: 2",
            ["weights"],
        ),
    ],
    ids=str,
)
def test_few_pixels_have_their_gradients_as_products_of_matrices(
    bottom: Shape, outputs: int, pad: str, more: str, products: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    want_the_kernels(monkeypatch)
    monkeypatch.setattr(conv, "MAX_WEIGHTS", 0)
    used: list[str] = []
    for name, what in (("_weight_product", "weights"), ("_as_blob", "bottom")):
        monkeypatch.setattr(conv, name, partial(_noted, used, what, getattr(conv, name)))
    layer = convolution(outputs, more, bottom[1], pad).steps[-1].layer
    assert isinstance(layer, Convolution)
    x = last(numbers(*bottom).float()).requires_grad_()
    top = FastConvolution(layer)(x)
    assert isinstance(top, Tensor)
    top_diff = last(numbers(*top.shape, seed=2).float())
    got = torch.autograd.grad(top, [x, *layer.blobs], top_diff)
    exact_x = x.detach().double().requires_grad_()
    blobs, exact_tops = exactly(layer, [exact_x])
    want = torch.autograd.grad(exact_tops, [exact_x, *blobs], [top_diff.double()])
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        assert distance(one, other) <= sum_rounding(bottom[0] * bottom[2] * bottom[3])
    assert used == products


@multiplies
def test_foreign_memory_is_not_read() -> None:
    """Other types, shapes and orders are refused where the kernels are called."""
    x, weight = last(numbers(2, 16, 6, 6).float()), numbers(16).float()
    top, mean, _, factor = native.batch_norm(NormCall(x, weight, relu=True))
    for shortcut in (x.double(), x[:, :, :3], x.contiguous()):
        with pytest.raises(ValueError, match=r"got|strides"):
            native.batch_norm(NormCall(x, weight, relu=True, shortcut=shortcut))
    with pytest.raises(ValueError, match="16 channels"):
        native.batch_norm(NormCall(x, weight[:8], relu=True))
    with pytest.raises(ValueError, match="16 channels"):
        native.batch_norm_by_statistics(NormCall(x, relu=True), mean, factor[:8])
    with pytest.raises(ValueError, match="bfloat16"):
        native.batch_norm_gradients(NormCall(x, weight, relu=True), None, x.bfloat16(), mean, factor)
    for top_diff in (top.bfloat16(), top[:, :8], top[:1], top.contiguous()):
        with pytest.raises(ValueError, match=r"got|strides"):
            native.conv_weight_gradient(x, top_diff, (16, 16, 3, 3), (1, 1), (1, 1))
    with pytest.raises(ValueError, match="no kernel"):
        native.conv_weight_gradient(x, top, (16, 8, 3, 3), (1, 1), (1, 1))
    kernel, pad = numbers(16, 16, 3, 3).float(), (1, 1)
    for foreign in (kernel.double(), kernel[:12], kernel[:, :12], kernel[:, :8], kernel[..., :2]):
        with pytest.raises(ValueError, match="no kernel"):
            native.winograd(x, foreign, None, pad)
    for bias in (weight.double(), weight[:8]):
        with pytest.raises(ValueError, match="no kernel"):
            native.winograd(x, kernel, bias, pad)
    for bottom in (x.double(), x[:, :8], x[:0], x.contiguous()):
        with pytest.raises(ValueError, match=r"no kernel|strides"):
            native.winograd(bottom, kernel, None, pad)
    for pads in ((3, 1), (3, 3)):
        with pytest.raises(ValueError, match="no kernel"):
            native.winograd_bottom_gradient(x, kernel, pads)
    for top_diff in (top[:, :8], top[:1], top.contiguous(), top.double()):
        with pytest.raises(ValueError, match=r"got|strides"):
            native.winograd_weight_gradient(x, top_diff, kernel.shape, pad)
    with pytest.raises(ValueError, match="no kernel"):
        native.winograd_weight_gradient(x, top, (16, 12, 3, 3), pad)


# -- which kernels are used ----------------------------------------------------------------------------------


def test_a_value_that_is_not_known_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, known in (
        ("IMAE_KERNELS", "auto, none, batch_norm, all"),
        ("IMAE_KERNELS_ISA", "auto, default, avx2, avx512f"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, "fast")
            with pytest.raises(ImaeError, match=f"^{name} must be one of {known}; got 'fast'$"):
                native.chosen()


def test_kernels_that_are_not_there_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_library", lambda: None)
    monkeypatch.delenv("IMAE_KERNELS_ISA", raising=False)
    for kernels in ("auto", "none"):
        monkeypatch.setenv("IMAE_KERNELS", kernels)
        assert native.chosen() == (False, "none", "default")
    for kernels in ("batch_norm", "all"):
        monkeypatch.setenv("IMAE_KERNELS", kernels)
        with pytest.raises(ImaeError, match=f"^IMAE_KERNELS={kernels}: the kernels in C were not built"):
            native.chosen()
    monkeypatch.setenv("IMAE_KERNELS", "auto")
    monkeypatch.setenv("IMAE_KERNELS_ISA", "avx2")
    with pytest.raises(ImaeError, match=r"^IMAE_KERNELS_ISA=avx2: the kernels in C were not built"):
        native.chosen()


@built
def test_instructions_that_the_processor_lacks_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "supported_isas", lambda: ["default"])
    native._choose.cache_clear()
    monkeypatch.delenv("IMAE_KERNELS", raising=False)
    monkeypatch.setenv("IMAE_KERNELS_ISA", "avx512f")
    try:
        with pytest.raises(ImaeError, match=r"^IMAE_KERNELS_ISA=avx512f: this processor has none of it"):
            native.chosen()
        monkeypatch.setenv("IMAE_KERNELS_ISA", "auto")
        assert native.chosen() == (True, "none", "default")
        monkeypatch.setenv("IMAE_KERNELS", "all")
        with pytest.raises(
            ImaeError, match=r"^IMAE_KERNELS=all: the convolutions' kernels need AVX2 and FMA"
        ):
            native.chosen()
    finally:
        native._choose.cache_clear()


@built
def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAE_KERNELS_ISA", raising=False)
    newest = native.supported_isas()[-1]
    for kernels in native.KERNELS if conv_supported() else native.KERNELS[:-1]:
        monkeypatch.setenv("IMAE_KERNELS", kernels)
        use = native.chosen()
        assert use.batch_norm == (kernels != "none") == native.batch_norm_supports(torch.zeros(2))
        assert native.uses_conv_weight() == (native.convolutions().conv_weight is not None)
        assert native.uses_winograd() == (native.convolutions().winograd is not None)
        assert native.uses_winograd_weight() == (native.convolutions().winograd_weight is not None)
        if kernels != "auto":
            assert (use.convolutions == "none") == (kernels != "all")
        if kernels != "none":
            assert use.isa == newest
            assert f"BatchNorm ({newest})" in native.description(torch.float64)
            assert f"BatchNorm ({newest}), LRN and the update of SGD" in native.description(torch.bfloat16)
        else:
            assert native.description(torch.float32) == "Kernels in C: none"
        used = native.uses_winograd() or native.uses_winograd_weight()
        assert ("Winograd" in native.description(torch.float32)) == used
        assert "onvolution" not in native.description(torch.float64)


@built
def test_each_form_of_batch_norm_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this processor can run; `.ci/run` runs this file with each of them."""
    x, called = last(numbers(2, 3, 4, 4).float()), []
    exported = native._exported

    def note(name: str, function: str) -> Callable[..., int]:
        called.append(function)
        return exported(name, function)

    monkeypatch.setattr(native, "_exported", note)
    for isa in native.supported_isas():
        monkeypatch.setenv("IMAE_KERNELS_ISA", isa)
        native.batch_norm(NormCall(x, relu=True))
    assert called == [f"imae_batch_norm_{isa}_float" for isa in native.supported_isas()]
    assert called[0] == "imae_batch_norm_default_float"
