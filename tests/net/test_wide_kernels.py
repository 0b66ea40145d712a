"""The convolutions' kernels for AVX-512 give the bits of those for AVX2; those for AMX are exact.

The compiler makes two AVX2 instructions of each for AVX-512, and AMX's tiles are in plain C, so that this
runs on any processor with AVX2. Where there is AVX-512 or AMX, the kernels as built are tested as well.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from c_kernels import conv_supported
from tolerances import tolerance
from torch import Tensor

from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.layers.vision.conv import Convolution
from imae.net.kernels import conv, native
from imae.net.kernels.conv import FastConvolution
from imae.net.net import Net
from imae.prototxt.text import parse_net

pytestmark = [
    pytest.mark.skipif(not conv_supported(), reason="no AVX2, or no kernels in C"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]
LAST = torch.channels_last


@pytest.fixture(scope="module")
def of_avx2(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels, those for AVX-512 with AVX2's instructions. Not optimised, which would take seconds."""
    library = tmp_path_factory.mktemp("wide") / "wide.so"
    source = Path(native.__file__).with_name("kernels.c")
    options = ["-O0", "-std=gnu11", "-fopenmp", "-w", "-shared", "-fPIC", "-DWIDE_ON_AVX2"]
    env = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}  # as for sanitizers
    subprocess.run(["cc", *options, source, "-o", library], check=True, env=env)
    return ctypes.CDLL(str(library))


@pytest.fixture(params=["AVX2's instructions", "AVX-512"])
def wide(
    request: pytest.FixtureRequest, of_avx2: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Both widths can be called here."""
    cached = native._choose, native._convolutions, native._exported, native._has_amx
    for function in cached:
        function.cache_clear()
    if request.param == "AVX-512":
        if "avx512f" not in native.supported_isas():
            pytest.skip("no AVX-512")
    else:
        monkeypatch.setattr(native, "_library", lambda: of_avx2)
        monkeypatch.setattr(native, "supported_isas", lambda: ["default", "avx2", "avx512f"])
        monkeypatch.setattr(native, "_batch_norm_isa", lambda: "avx2")
    monkeypatch.setenv("IMAE_KERNELS", "all")
    monkeypatch.setenv("IMAE_KERNELS_ISA", "avx512f")
    yield
    for function in cached:
        function.cache_clear()


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=LAST)


def check(run: Callable[[str], Tensor], want: Tensor) -> None:
    narrow, wide = run("avx2"), run("avx512f")
    assert torch.equal(narrow, wide)
    error = (wide.double() - want).abs().max() / want.abs().max()
    assert float(error) <= tolerance("kernel").atol


# Sides of 1 to 12 rows, one and two vectors of outputs, tiles that are cut off, borders of 0 to 2.
CASES = [
    ((2, 16, 8, 8), 16, (1, 1)),
    ((1, 32, 9, 7), 48, (0, 2)),
    ((3, 48, 4, 5), 16, (2, 1)),
    ((1, 64, 8, 8), 64, (1, 1)),
    ((1, 16, 3, 3), 32, (0, 0)),
    ((5, 176, 3, 5), 16, (1, 1)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_winograds_algorithm(case: tuple, wide: None) -> None:  # type: ignore[type-arg]
    bottom, outputs, pad = case
    x, weight, bias = numbers(*bottom), numbers(outputs, bottom[1], 3, 3, seed=2), numbers(outputs, 1, 1, 1)
    bias = bias.flatten()
    leaves = [x.double().requires_grad_(), weight.double().requires_grad_()]
    top = torch.nn.functional.conv2d(*leaves, bias.double(), 1, pad)
    top_diff = numbers(*top.shape, seed=3)
    diff, weight_diff = torch.autograd.grad(top, leaves, top_diff.double())
    check(lambda isa: native.winograd(x, weight, bias, pad, isa=isa), top.detach())
    check(lambda isa: native.winograd_bottom_gradient(top_diff, weight, pad, isa), diff)
    check(lambda isa: native.winograd_weight_gradient(x, top_diff, weight.shape, pad, isa), weight_diff)


WINDOWS = [
    *[((2, channels, 6, 7), 16, (1, 1), (1, 1), (0, 0)) for channels in range(1, 26)],
    ((2, 3, 12, 12), 32, (3, 3), (1, 1), (1, 1)),
    ((3, 16, 9, 7), 48, (3, 3), (2, 2), (1, 1)),
    ((1, 11, 3, 50), 16, (2, 5), (1, 2), (1, 4)),
]


@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_a_convolutions_weights(case: tuple, wide: None) -> None:  # type: ignore[type-arg]
    bottom, outputs, kernel, stride, pad = case
    x, weight = numbers(*bottom), numbers(outputs, bottom[1], *kernel, seed=2).double().requires_grad_()
    top = torch.nn.functional.conv2d(x.double(), weight, None, stride, pad)
    top_diff = numbers(*top.shape, seed=3)
    (want,) = torch.autograd.grad(top, weight, top_diff.double())
    check(lambda isa: native.conv_weight_gradient(x, top_diff, weight.shape, stride, pad, isa), want)


# Images of one job and of several, rows of an odd number of pixels, windows of one to five rows and columns.
SAME_SIZES = [
    ((2, 16, 32, 32), 16, (1, 1)),
    ((13, 64, 8, 8), 64, (1, 1)),
    ((3, 48, 7, 9), 16, (1, 1)),
    ((1, 16, 5, 5), 48, (0, 0)),
    ((2, 16, 11, 13), 32, (2, 1)),
    ((2, 32, 11, 13), 16, (1, 2)),
    ((1, 16, 57, 61), 32, (1, 0)),
    ((7, 16, 2, 1), 16, (1, 0)),
]


def reduced(*shape: int, seed: int = 1) -> Tensor:
    return numbers(*shape, seed=seed).bfloat16()


def skip_without_amx() -> None:
    if not native._has_amx():  # never with tiles in plain C, if the compiler knows AMX
        pytest.skip("no AMX, or a compiler that does not know it")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", SAME_SIZES, ids=str)
def test_a_convolutions_weights_by_tiles(case: tuple, threads: int, wide: None) -> None:  # type: ignore[type-arg]
    skip_without_amx()
    bottom, outputs, pad = case
    x, weight = (
        reduced(*bottom),
        numbers(outputs, bottom[1], *(2 * p + 1 for p in pad)).double().requires_grad_(),
    )
    top = torch.nn.functional.conv2d(x.double(), weight, None, 1, pad)
    top_diff = reduced(*top.shape, seed=3)
    (want,) = torch.autograd.grad(top, weight, top_diff.double())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = native.conv_weight_gradient_bfloat16(x, top_diff, weight.shape, pad)
    finally:
        torch.set_num_threads(before)
    assert got.dtype == torch.float32
    error = (got.double() - want).abs().max() / want.abs().max()
    assert float(error) <= tolerance("kernel").atol


def test_tiles_are_refused_for_what_they_cannot_hold(wide: None) -> None:
    skip_without_amx()
    x = reduced(1, 16, 4, 4)
    for bottom, top, shape, pad in (
        (x.float(), x, (16, 16, 3, 3), (1, 1)),
        (x, x, (16, 16, 3, 3), (1, 0)),
        (x, reduced(1, 8, 4, 4), (8, 16, 3, 3), (1, 1)),
        (x, x, (16, 32, 3, 3), (1, 1)),
        (x, reduced(1, 16, 4, 5), (16, 16, 3, 3), (1, 1)),
        (x.contiguous(), x, (16, 16, 3, 3), (1, 1)),
    ):
        with pytest.raises(ValueError):
            native.conv_weight_gradient_bfloat16(bottom, top, shape, pad)


NET = """
layer { name: "data" type: "Input" top: "a" input_param { shape { dim: [2, CHANNELS, 9, 9] } } }
layer { name: "conv" type: "Convolution" bottom: "a" top: "c"
        convolution_param { num_output: OUTPUTS pad: 1 kernel_size: 3 weight_filler { type: "msra" } } }
"""


@pytest.mark.parametrize(
    ("channels", "outputs", "isa"), [(16, 32, "avx512f"), (8, 32, "avx2"), (16, 24, "avx2")]
)
def test_a_layer_uses_the_widest_vectors_that_its_channels_fill(
    channels: int, outputs: int, isa: str, wide: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv, "MIN_TILES", 1)
    monkeypatch.setattr(conv, "MIN_TILES_FOR_WEIGHTS", 1)
    text = NET.replace("CHANNELS", str(channels)).replace("OUTPUTS", str(outputs))
    layer = Net(parse_net(text), Run(CaffeRandom(1))).steps[-1].layer
    assert isinstance(layer, Convolution)
    called: set[str] = set()
    exported = native._exported

    def note(name: str, function: str) -> Callable[..., int]:
        called.add(function)
        return exported(name, function)

    monkeypatch.setattr(native, "_exported", note)
    x = numbers(2, channels, 9, 9).requires_grad_()
    top = FastConvolution(layer)(x)
    assert isinstance(top, Tensor)
    top.sum().backward()
    assert called == {f"imae_winograd_{isa}_float", f"imae_winograd_weight_{isa}_float"}
    planned = native.plan_winograd(tuple(x.shape), layer.blobs[0].detach(), layer.blobs[1].detach(), (1, 1))
    assert torch.equal(planned(x.detach()), top.detach())


@pytest.mark.parametrize("outputs", [16, 24])
def test_a_layer_in_bfloat16_uses_tiles_for_the_gradient_of_its_weights(
    outputs: int, wide: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_amx()
    monkeypatch.setattr(native, "uses_tiles", lambda: True)
    monkeypatch.setattr(conv, "MIN_BFLOAT16_PIXELS", 1)
    text = NET.replace("CHANNELS", "16").replace("OUTPUTS", str(outputs))
    layer = Net(parse_net(text), Run(CaffeRandom(1))).steps[-1].layer
    assert isinstance(layer, Convolution) and FastConvolution.is_faster(layer, (2, 16, 9, 9))
    calls, kernel = list[int](), native.conv_weight_gradient_bfloat16

    def note(*arguments: Any) -> Tensor:
        calls.append(1)
        return kernel(*arguments)

    monkeypatch.setattr(native, "conv_weight_gradient_bfloat16", note)
    x, top_diff = reduced(2, 16, 9, 9).requires_grad_(), reduced(2, outputs, 9, 9, seed=3)
    leaves = [x, *layer.blobs]
    fast = FastConvolution(layer)
    results = []
    for run in (fast, layer.forward):
        with torch.autocast("cpu", torch.bfloat16):
            top = run(x)
        assert isinstance(top, Tensor)
        results.append([top.detach(), *torch.autograd.grad(top, leaves, top_diff)])
    assert len(calls) == (outputs == 16)
    assert [value.dtype for value in results[0]] == [value.dtype for value in results[1]]
    close = tolerance("rounded once", "bfloat16")
    for ours, plain in zip(*results, strict=True):
        assert torch.allclose(ours.float(), plain.float(), close.rtol, close.rtol * float(plain.abs().max()))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(x), results[1][0])  # without gradients it is the layer's
    assert len(calls) == (outputs == 16)
