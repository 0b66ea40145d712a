"""The kernels of direct.h give F.conv2d's numbers, and what follows it. Sums of small integers are exact."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from c_kernels import conv_supported
from torch import Tensor

from imae.layers.vision.conv import Windows
from imae.net.kernels import ConvolutionCall, native
from imae.net.kernels.direct import plan_direct

LAST = torch.channels_last
built = pytest.mark.skipif(not conv_supported(), reason="the kernels were not built, or need AVX2 and FMA")

# Bottom, outputs, kernel, stride, pad, dilation, groups.
CASES = {
    "one number": ((1, 1, 1, 1), 1, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "1x1, several chunks of pixels": ((2, 5, 9, 13), 37, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "1x1 of every second pixel": ((1, 8, 5, 6), 16, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    "1x1 with padding": ((1, 8, 2, 3), 9, (1, 1), (1, 1), (1, 2), (1, 1), 1),
    "3x3": ((2, 3, 8, 7), 24, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "windows mostly outside": ((2, 4, 1, 2), 17, (7, 5), (1, 1), (3, 4), (1, 1), 1),
    "windows wholly outside": ((1, 3, 2, 2), 8, (2, 2), (1, 1), (3, 3), (1, 1), 1),
    "dilated": ((1, 6, 9, 8), 10, (3, 2), (2, 1), (2, 0), (2, 3), 1),
    "groups": ((2, 12, 5, 4), 30, (3, 3), (1, 2), (1, 1), (1, 1), 3),
    "groups of 1x1": ((1, 12, 7, 4), 8, (1, 1), (1, 1), (0, 0), (1, 1), 4),
    "a channel for each of several outputs": ((1, 4, 5, 5), 8, (3, 3), (1, 1), (1, 1), (1, 1), 4),
    "depthwise": ((2, 16, 6, 11), 16, (3, 3), (1, 1), (1, 1), (1, 1), 16),
    "depthwise, channels that fill no vector": ((1, 13, 5, 9), 13, (3, 3), (2, 2), (1, 1), (1, 1), 13),
    "depthwise, few channels": ((1, 5, 4, 4), 5, (3, 3), (1, 1), (1, 1), (1, 1), 5),
    "depthwise, dilated": ((1, 8, 7, 12), 8, (3, 2), (1, 1), (2, 1), (2, 2), 8),
    "depthwise, wholly outside": ((1, 9, 2, 2), 9, (2, 2), (1, 1), (3, 3), (1, 1), 9),
}


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=LAST)


def call_of(name: str, relu: bool = False, rectified: bool = False, biased: bool = True) -> ConvolutionCall:
    bottom, outputs, kernel, stride, pad, dilation, group = CASES[name]
    weight, windows = drawn(outputs, bottom[1] // group, *kernel), Windows(kernel, stride, pad, dilation)
    bias, slopes = drawn(outputs, seed=2), drawn(outputs, seed=3) / 4
    return ConvolutionCall(
        weight, bias if biased else None, windows, group, bottom, relu, slopes if rectified else None
    )


def expected(call: ConvolutionCall, x: Tensor, other: Tensor | float = 0.0) -> Tensor:
    _, stride, pad, dilation = call.windows
    top = F.conv2d(x, call.weight, call.bias, stride, pad, dilation, call.group) + other
    if call.slopes is not None:
        return F.prelu(top, call.slopes)
    return F.relu(top) if call.relu else top


@built
@pytest.mark.parametrize("follows", ["nothing", "ReLU", "PReLU"])
@pytest.mark.parametrize("name", CASES)
def test_equal(name: str, follows: str) -> None:
    for biased in (True, False):
        call = call_of(name, follows == "ReLU", follows == "PReLU", biased)
        x = last(drawn(*call.bottom, seed=4))
        top = plan_direct(call)(x)
        assert torch.equal(top, expected(call, x))
        assert top.is_contiguous(memory_format=LAST)


@built
@pytest.mark.parametrize("name", [name for name in CASES if "depthwise" not in name])
def test_another_blob_is_added_before_what_follows(name: str) -> None:
    call = call_of(name, relu=True)
    x, other = last(drawn(*call.bottom, seed=4)), last(drawn(*call.top, seed=5))
    want, kept = expected(call, x, other), other.clone()
    convolve = plan_direct(call)
    assert torch.equal(convolve(x, other), want)
    assert torch.equal(other, kept)
    assert convolve(x, other, other) is other
    assert torch.equal(other, want)


@built
@pytest.mark.parametrize("name", ["1x1, several chunks of pixels", "depthwise"])
@pytest.mark.parametrize("follows", ["nothing", "ReLU", "PReLU"])
def test_nan_and_infinity_stay(name: str, follows: str) -> None:
    call = call_of(name, follows == "ReLU", follows == "PReLU")
    x = drawn(*call.bottom)
    x[0, 0, 1, 1], x[0, 1, 3, 2] = torch.nan, torch.inf
    want = expected(call, x)
    assert want.isnan().any()
    torch.testing.assert_close(plan_direct(call)(last(x)), want, rtol=0, atol=0, equal_nan=True)


@built
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["1x1, several chunks of pixels", "depthwise", "groups"])
def test_any_number_of_threads(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imae.net.kernels.native.PRODUCTS_OF_A_THREAD", 1)
    call, before = call_of(name), torch.get_num_threads()
    x = last(drawn(*call.bottom))
    torch.set_num_threads(threads)
    try:
        assert torch.equal(plan_direct(call)(x), expected(call, x))
    finally:
        torch.set_num_threads(before)


@built
@pytest.mark.parametrize("follows", ["nothing", "ReLU", "PReLU"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_winograd_by_transformed_weights(threads: int, follows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imae.net.kernels.native.PRODUCTS_OF_A_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        # 1 tile; 49, which no number of jobs divides; 110 in two images; 24 outputs: a block and a half.
        for bottom, outputs in (((1, 8, 1, 2), 8), ((1, 16, 14, 13), 24), ((2, 8, 10, 22), 16)):
            slopes = drawn(outputs, seed=3) / 4 if follows == "PReLU" else None
            windows = Windows((3, 3), (1, 1), (1, 1), (1, 1))
            call = ConvolutionCall(
                drawn(outputs, bottom[1], 3, 3),
                drawn(outputs, seed=2),
                windows,
                1,
                bottom,
                follows == "ReLU",
                slopes,
            )
            x = drawn(*bottom, seed=4)
            convolve = native.plan_winograd(bottom, call.weight, call.bias, (1, 1), call.activation, slopes)
            assert torch.equal(convolve(last(x)), expected(call, x))
            x[0, 0, 0, 0] = torch.nan
            torch.testing.assert_close(convolve(last(x)).isnan().any(), torch.tensor(True))
    finally:
        torch.set_num_threads(before)


@built
def test_bottoms_of_another_shape_type_or_order_are_refused() -> None:
    """The kernel reads memory by addresses."""
    call = call_of("3x3")
    convolve, x = plan_direct(call), last(drawn(*call.bottom))
    other = last(drawn(*call.top))
    assert torch.equal(convolve(x, other), expected(call, x, other))
    for wrong in (x[:1], x.contiguous(), x.double()):
        with pytest.raises(ValueError, match="planned for"):
            convolve(wrong)
    for wrong in (other[:1], other.contiguous(), other.double()):
        with pytest.raises(ValueError, match="planned for"):
            convolve(x, wrong)
        with pytest.raises(ValueError, match="planned for"):
            convolve(x, None, wrong)
    depthwise = call_of("depthwise")
    x = last(drawn(*depthwise.bottom))
    with pytest.raises(ValueError, match="nothing is added"):
        plan_direct(depthwise)(x, x)


@built
@pytest.mark.parametrize(
    "changes",
    [
        {"bottom": (2, 4, 8, 7)},
        {"bottom": (2, 3, 8)},
        {"bottom": (2, 3, 0, 7)},
        {"bottom": (0, 3, 8, 7)},
        {"group": 2},
        {"group": 0},
        {"weight": torch.ones(24, 3, 3, 2)},
        {"weight": torch.ones(24, 3, 3, 3).double()},
        {"bias": torch.ones(23)},
        {"slopes": torch.ones(1)},
        {"windows": Windows((3, 3), (1, 1), (-1, 0), (1, 1))},
    ],
    ids=str,
)
def test_calls_that_do_not_fit_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no kernel"):
        plan_direct(call_of("3x3")._replace(**changes))  # type: ignore[arg-type]  # wrong on purpose
