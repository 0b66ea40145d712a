"""The kernels in C, against torch's in double precision."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tolerances import tolerance
from torch import Tensor

from imae.layers import channels_last_conv, native
from imae.layers.caffe_random import CaffeRandom
from imae.layers.channels_last_conv import Convolve, gains
from imae.layers.channels_last_norm import normalize, normalize_by
from imae.layers.net import Net
from imae.layers.vision.conv import Convolution
from imae.prototxt.text import parse_net

built = pytest.mark.skipif(not native.available(), reason="the kernels in C were not built")
multiplies = pytest.mark.skipif(not native.conv_possible(), reason="no AVX2, or no kernels in C")


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
        assert not (native.conv_weight_wanted() or native.winograd_wanted())
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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_batch_norm_by_given_statistics(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, shortcut = last(numbers(*shape) * 3 + 5), last(numbers(*shape, seed=2))
    weight, bias, mean = (numbers(shape[1], seed=seed) for seed in (3, 4, 5))
    variance = numbers(shape[1], seed=6) ** 2
    calls: list[str] = []
    given = partial(_noted, calls, "batch_norm_given", native.batch_norm_given)
    monkeypatch.setattr(native, "batch_norm_given", given)
    for count, (affine, relu, adds) in enumerate(itertools.product((True, False), repeat=3)):
        factors = (weight, bias) if affine else (None, None)
        want = F.batch_norm(x, mean, variance, *factors, False, 0, 1e-5)
        want = want + shortcut if adds else want
        want = want.relu() if relu else want
        values = (mean, variance, x, *factors, shortcut if adds else None)
        own = [None if value is None else value.to(dtype) for value in values]
        got = normalize_by(*own[:5], 1e-5, relu, own[5])  # type: ignore[arg-type]
        assert distance(got, want) <= tolerance("kernel", str(dtype).removeprefix("torch.")).atol
        assert len(calls) == count + 1


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


def test_values_that_do_not_lie_side_by_side_are_left_to_torch() -> None:
    x, weight, bias, mean = last(numbers(2, 6, 5, 5)), *(numbers(6, 2, seed=seed)[:, 0] for seed in (2, 3, 4))
    variance = numbers(6, 2, seed=5)[:, 0] ** 2
    top = normalize_by(mean, variance, x, weight, bias, 1e-5)
    want = F.batch_norm(x, mean, variance, weight, bias, False, 0, 1e-5)
    assert distance(top, want) <= tolerance("kernel", "float64").atol
    top, *_ = normalize(x, weight, bias, 1e-5)
    want = F.batch_norm(x, None, None, weight, bias, True, 0, 1e-5)
    assert distance(top, want) <= tolerance("kernel", "float64").atol


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
def test_winograds_algorithm_is_nearer_than_torchs() -> None:
    """With the sizes of ResNet-20's last layers: forward, and both gradients."""
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
        assert distance(got, want) <= distance(torchs, want)


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
        convolution_param { num_output: OUTPUTS pad: 1 MORE weight_filler { type: "msra" } } }
"""


def want_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where torch has other fast ones for this processor."""
    for question in ("conv_weight_wanted", "winograd_wanted"):
        monkeypatch.setattr(native, question, native.conv_possible)


def convolution(outputs: int = 16, more: str = "kernel_size: 3", channels: int = 3) -> Net:
    text = NET.replace("OUTPUTS", str(outputs)).replace("MORE", more).replace("CHANNELS", str(channels))
    return Net(parse_net(text), CaffeRandom(1))


@multiplies
@pytest.mark.parametrize("learning", ["all", "bottoms", "weights", "bias", "nothing"])
@pytest.mark.parametrize("tiles", [(1, 1), (1, 1000), (1000, 1000)], ids=str)
@pytest.mark.parametrize("channels", [3, 16])
def test_a_layer_of_two_bottoms_and_a_bias_has_its_gradients(
    channels: int, tiles: tuple[int, int], learning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    want_the_kernels(monkeypatch)
    for name, least in zip(("LEAST_TILES", "LEAST_TILES_OF_WEIGHTS"), tiles, strict=True):
        monkeypatch.setattr(channels_last_conv, name, least)
    used: list[str] = []
    for name in ("winograd", "winograd_bottom_gradient", "winograd_weight_gradient", "conv_weight_gradient"):
        monkeypatch.setattr(native, name, partial(_noted, used, name, getattr(native, name)))
    layer = convolution(channels=channels).steps[-1].layer
    assert isinstance(layer, Convolution)
    assert gains(layer, (2, channels, 9, 9))
    bottoms = [last(numbers(2, channels, 9, 9, seed=seed).float()) for seed in (1, 2)]
    leaves = {"bottoms": bottoms, "weights": [layer.blobs[0]], "bias": [layer.blobs[1]], "nothing": []}
    wanted = [*bottoms, *layer.blobs] if learning == "all" else leaves[learning]
    for leaf in (*bottoms, *layer.blobs):
        leaf.requires_grad_(any(leaf is one for one in wanted))
    diffs = [last(numbers(2, 16, 9, 9, seed=seed).float()) for seed in (3, 4)]
    found = []
    for run in (Convolve(layer), layer):
        tops = run(*bottoms)
        found.append([*tops, *(torch.autograd.grad(tops, wanted, diffs) if wanted else ())])
    for got, want in zip(*found, strict=True):
        assert distance(got.detach(), want.detach().double()) <= 2 * tolerance("kernel").atol
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
    monkeypatch.setattr(channels_last_conv, "LEAST_TILES", 1)
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

    got, want = top(Convolve(layer)), top(layer)
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
    want = torch.autograd.grad(layer(x), list(layer.blobs), top_diff)
    for name in ("MOST_WEIGHTS", "MOST_BY_WINOGRAD"):
        monkeypatch.setattr(channels_last_conv, name, 100)
    assert gains(layer, (20, 16, 9, 9))  # forward, and for the bottom
    for name in ("winograd_weight_gradient", "conv_weight_gradient"):
        monkeypatch.setattr(native, name, None)
    got = torch.autograd.grad(Convolve(layer)(x), list(layer.blobs), top_diff)
    for one, other in zip(got, want, strict=True):
        assert distance(one, other.double()) <= 2e-5  # torch's own


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
        (8000, "kernel_size: 1", False),
    ],
)
def test_the_kernel_is_for_plain_convolutions(
    outputs: int, more: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    want_the_kernels(monkeypatch)
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
    with pytest.raises(ValueError, match="16 channels"):
        native.batch_norm_given(x, None, None, None, mean, factor[:8], 1e-5, True)
    with pytest.raises(ValueError, match="bfloat16"):
        native.batch_norm_gradients(x, None, x.bfloat16(), weight, None, mean, factor, True)
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
