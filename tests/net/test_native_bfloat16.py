"""The kernels in C for blobs in bfloat16, with each of the instruction sets that this processor has.

The reference is double precision from the same bottoms. A kernel computes in single precision and rounds a
blob's number once: so it is as near as one rounding allows, and nearer than torch's own operations are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tolerances import tolerance
from torch import Tensor

from imae.net.kernels import native
from imae.net.kernels.norm import normalize_by_batch, normalize_by_statistics
from imae.net.kernels.norm_call import NormCall

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels in C were not built")

# Spans of many rows and of one, several blocks, blocks that are cut off, and counts that fill no vector.
SHAPES = [(4, 3, 5, 7), (2, 16, 8, 8), (3, 2, 1, 2), (20, 16, 32, 32), (9, 200, 3, 2), (3, 9001, 1, 2)]


@pytest.fixture(autouse=True, params=native.supported_isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the instruction sets; of IMAE_KERNELS nothing, whatever the suite runs with."""
    monkeypatch.delenv("IMAE_KERNELS", raising=False)
    monkeypatch.setenv("IMAE_KERNELS_ISA", request.param)
    return str(request.param)


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def numbers(*shape: int, seed: int = 1) -> Tensor:
    """In single precision."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def blob(*shape: int, seed: int = 1) -> Tensor:
    return last(numbers(*shape, seed=seed)).bfloat16()


def error(got: Tensor, want: Tensor) -> float:
    """The L2 norm of the distance, by that of what is wanted."""
    return float((got.double() - want).norm() / want.norm())


def check_rounded_once(got: Tensor, want: Tensor, atol: float) -> None:
    """Each number is the nearest one to what double precision gives, plus the kernel's own rounding."""
    assert got.dtype == torch.bfloat16
    rtol = tolerance("rounded once", "bfloat16").rtol
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=atol * float(want.abs().max()))


class Case(NamedTuple):
    """The bottoms of a fused step, the diff of its top, and what follows BatchNorm."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    shortcut: Tensor | None
    top_diff: Tensor
    relu: bool

    def leaves(self, dtype: torch.dtype | None = None) -> list[Tensor | None]:
        return [
            None if value is None else value.detach().to(dtype or value.dtype).clone().requires_grad_()
            for value in self[:4]
        ]


def case(shape: Sequence[int], affine: bool, relu: bool, adds: bool) -> Case:
    return Case(
        (blob(*shape) * 3 + 5),
        numbers(shape[1], seed=4) if affine else None,
        numbers(shape[1], seed=5) if affine else None,
        blob(*shape, seed=3) if adds else None,
        blob(*shape, seed=2),
        relu,
    )


def gradients(top: Tensor, leaves: Sequence[Tensor | None], top_diff: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(top, [x for x in leaves if x is not None], top_diff.to(top.dtype)))


def by_kernels(of: Case) -> list[Tensor]:
    x, weight, bias, shortcut = leaves = of.leaves()
    assert x is not None
    zeros = torch.zeros(x.shape[1]), torch.zeros(x.shape[1])
    call = NormCall(x, weight, bias, 1e-5, of.relu, shortcut)
    top, mean, variance = normalize_by_batch(call, *zeros)
    assert "_Native" in type(top.grad_fn).__name__
    return [top.detach(), mean, variance, *gradients(top, leaves, of.top_diff)]


def by_torch(of: Case, dtype: torch.dtype | None = None, positive: Tensor | None = None) -> list[Tensor]:
    """By torch's operations; `positive`: where the ReLU's bottom is, if that has been decided."""
    x, weight, bias, shortcut = leaves = of.leaves(dtype)
    assert x is not None
    mean, variance = (torch.zeros(x.shape[1], dtype=dtype or torch.float32) for _ in range(2))
    top = torch.batch_norm(x, weight, bias, mean, variance, True, 1, 1e-5, False)
    top = top if shortcut is None else top + shortcut
    if of.relu:
        top = F.relu(top) if positive is None else top * positive
    return [top.detach(), mean, variance, *gradients(top, leaves, of.top_diff)]


# -- BatchNorm, Scale, sum, ReLU -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_the_values_and_the_gradients_are_nearer_than_torchs(shape: tuple[int, ...]) -> None:
    """All of them are rounded once; statistics and gradients of factors not at all."""
    alone = tolerance("kernel").atol
    for affine, relu, adds in itertools.product((True, False), repeat=3):
        given = case(shape, affine, relu, adds)
        ours = by_kernels(given)
        exact = by_torch(given, torch.float64, ours[0] > 0)  # a bottom of the ReLU that is but rounding
        theirs = by_torch(given)
        assert len(ours) == len(exact) == len(theirs)
        for place, (got, want, other) in enumerate(zip(ours, exact, theirs, strict=True)):
            if place == 0 or got.dim() == 4:
                check_rounded_once(got, want, alone)
            else:
                assert got.dtype == torch.float32
                torch.testing.assert_close(got.double(), want, rtol=0, atol=alone * float(want.abs().max()))
            assert error(got, want) <= error(other, want) + alone, (affine, relu, adds, place)


def test_one_rounding_is_nearer_than_torchs_two() -> None:
    """With a sum torch rounds BatchNorm's top, and then the sum."""
    given = case((8, 16, 16, 16), affine=True, relu=False, adds=True)
    ours, theirs, exact = by_kernels(given)[0], by_torch(given)[0], by_torch(given, torch.float64)[0]
    assert error(ours, exact) < 0.9 * error(theirs, exact)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_by_given_statistics(shape: tuple[int, ...]) -> None:
    x, shortcut, mean = blob(*shape) * 3 + 5, blob(*shape, seed=2), numbers(shape[1], seed=5)
    weight, bias, variance = (
        numbers(shape[1], seed=3),
        numbers(shape[1], seed=4),
        numbers(shape[1], seed=6) ** 2,
    )
    for affine, relu, adds in itertools.product((True, False), repeat=3):
        factors = (weight, bias) if affine else (None, None)
        call = NormCall(x, *factors, 1e-3, relu, shortcut if adds else None)
        exact = [value.double() if value is not None else None for value in factors]
        want = F.batch_norm(x.double(), mean.double(), variance.double(), *exact, False, 0, 1e-3)
        want = want + shortcut.double() if adds else want
        got = normalize_by_statistics(call, mean, variance)
        assert torch.equal(got, native.batch_norm_by_statistics(call, mean, variance))
        check_rounded_once(got, want.relu() if relu else want, tolerance("kernel").atol)


def test_the_variance_of_numbers_far_from_0_is_right() -> None:
    x = last(numbers(16, 3, 16, 16) + torch.tensor([0.0, 100.0, -1000.0]).view(1, -1, 1, 1)).bfloat16()
    _, mean, variance, _ = native.batch_norm(NormCall(x))
    rtol, atol, _ = tolerance("formula")
    assert torch.allclose(mean.double(), x.double().mean((0, 2, 3)), rtol, atol)
    assert torch.allclose(variance.double(), x.double().var((0, 2, 3)), rtol, atol)


def test_the_gradient_of_a_relu_is_that_of_its_rounded_top() -> None:
    """By the top, as with a shortcut, or computed again: bit for bit, also where rounding makes it 0."""
    x, top_diff = last(torch.randint(-2, 3, (8, 6, 33, 7))).bfloat16(), blob(8, 6, 33, 7)
    for weight in (numbers(6), torch.full((6,), 2.0**-134), torch.full((6,), 2.0**-133)):
        call = NormCall(x, weight, torch.zeros(6), relu=True)
        top, mean, _, factor = native.batch_norm(call)
        unrounded = (x.float() - mean.view(1, -1, 1, 1)) * (weight * factor).view(1, -1, 1, 1)
        if weight[0] == 2.0**-134:  # some are above 0, and rounded to it
            assert bool(((top == 0) & (unrounded > 0)).any()) and bool((top > 0).any())
        assert torch.equal(top, native.batch_norm(call._replace(shortcut=torch.zeros_like(x)))[0])
        again = native.batch_norm_gradients(call, None, top_diff, mean, factor)
        by_top = native.batch_norm_gradients(call, top, top_diff, mean, factor)
        assert torch.equal(by_top[3], torch.where(top > 0, top_diff, 0))
        for one, other in zip(again[:3], by_top[:3], strict=True):
            assert torch.equal(one, other)


def test_it_does_not_depend_on_the_number_of_threads() -> None:
    given, results, threads = case((16, 24, 20, 20), True, True, True), [], torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(by_kernels(given))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *results))


# -- conversion ----------------------------------------------------------------------------------------------


def all_numbers() -> Tensor:
    """Each of the 65,536 numbers of bfloat16, (1, 32, 64, 32)."""
    bits = torch.arange(2**16, dtype=torch.int32).sub(2**15).to(torch.int16)
    return last(bits.view(torch.bfloat16).view(1, 32, 64, 32))


def add_only(x: Tensor, shortcut: Tensor | None, relu: bool = False) -> Tensor:
    """The sum, by a BatchNorm that changes nothing: mean 0, variance 1, eps 0."""
    channels = x.shape[1]
    call = NormCall(x, None, None, 0.0, relu, shortcut)
    return native.batch_norm_by_statistics(call, torch.zeros(channels), torch.ones(channels))


@pytest.mark.parametrize("relu", [False, True])
def test_each_number_goes_in_and_out(relu: bool) -> None:
    x = all_numbers()
    top = add_only(x, None, relu)
    assert bool(x.isnan().any()) and bool(x.isinf().any())
    assert torch.equal(top.isnan(), x.isnan())
    want = x.clamp(min=0) if relu else x
    assert torch.equal(top[~x.isnan()], want[~x.isnan()])


def test_sums_are_rounded_to_nearest_even() -> None:
    """Each number plus 2^-8 of its size: a tie between two neighbours. Plus a bit more or less: none."""
    x = all_numbers()
    mantissa, exponent = torch.frexp(x.float())
    half = torch.ldexp(torch.sign(mantissa), exponent - 9)
    for factor in (1.0, 0.75, 1.25, -0.5):
        shortcut = last((half * factor).bfloat16())
        exact = x.float() + shortcut.float()  # two numbers near each other: a sum of few bits
        usual = (x.float().abs() > 2.0**-100) & (x.float().abs() < 2.0**120)
        assert float(usual.float().mean()) > 0.5
        want = exact.double()[usual]
        got = add_only(x, shortcut)[usual].double()
        ulp = torch.ldexp(torch.ones_like(want), torch.frexp(want)[1] - 8)
        # torch.round, too, takes the even one of two that are equally near.
        assert torch.equal(got, (want / ulp).round() * ulp)


def test_what_rounds_beyond_the_largest_number_is_infinity() -> None:
    largest = torch.finfo(torch.bfloat16).max
    x = last(torch.full((1, 2, 2, 2), largest)).bfloat16()
    half = torch.full_like(x, 2.0**119)  # half of the distance between the largest two
    assert bool((add_only(x, half) == torch.inf).all())
    assert bool((add_only(x, half / 2) == largest).all())


def test_nan_stays_nan() -> None:
    """Also one whose bits are all 1, of which a rounding would make -0."""
    x = last(torch.ones(2, 3, 4, 4)).bfloat16()
    nan = torch.tensor([0x7FFFFFFF, 0x7F800001, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    for relu, shortcut in itertools.product((True, False), (None, x)):
        call = NormCall(x, None, None, 0.0, relu, shortcut)
        assert bool(native.batch_norm_by_statistics(call, nan, torch.ones(3)).isnan().all())
    x = blob(2, 3, 4, 4)
    x[1, 1, 2, 2] = torch.nan
    top, *_ = native.batch_norm(NormCall(x, relu=True))
    assert [bool(top[:, c].isnan().all()) for c in range(3)] == [False, True, False]


# -- LRN -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 7, 3, 5), 5), ((1, 64, 9, 8), 5), ((2, 3, 2, 2), 7), ((3, 1, 2, 3), 3)]
)
def test_lrn_has_the_values_and_the_gradient(shape: tuple[int, ...], size: int) -> None:
    x, top_diff = blob(*shape), blob(*shape, seed=2)
    exact = x.double().requires_grad_()
    want = F.local_response_norm(exact, size, 2.0, 0.75, 1.5)
    (want_diff,) = torch.autograd.grad(want, exact, top_diff.double())
    assert native.lrn_supports(x)
    alone = tolerance("kernel").atol
    check_rounded_once(native.lrn(x, size, 2.0, 1.5), want.detach(), alone)
    check_rounded_once(native.lrn(x, size, 2.0, 1.5, top_diff), want_diff, alone)


# -- what is supported ---------------------------------------------------------------------------------------


def test_factors_are_in_single_precision() -> None:
    x, weight = blob(2, 16, 6, 6), numbers(16)
    assert native.batch_norm_supports(x, x, values=(weight, None))
    assert not native.batch_norm_supports(x, x.float(), values=(weight,))
    for other in (weight.bfloat16(), weight.double()):
        assert not native.batch_norm_supports(x, values=(other,))
        with pytest.raises(ValueError, match="16 channels"):
            native.batch_norm(NormCall(x, other))
    with pytest.raises(ValueError, match="float32"):
        native.batch_norm(NormCall(x, weight, shortcut=x.float()))


def test_a_shortcut_in_single_precision_is_left_to_torch() -> None:
    x, shortcut = blob(2, 4, 3, 3), last(numbers(2, 4, 3, 3, seed=2))
    top, *_ = normalize_by_batch(NormCall(x, shortcut=shortcut), torch.zeros(4), torch.zeros(4))
    assert top.dtype == torch.float32
    want = F.batch_norm(x.double(), None, None, training=True) + shortcut
    rtol = tolerance("rounded once", "bfloat16").rtol
    torch.testing.assert_close(top.double(), want, rtol=rtol, atol=rtol)


def test_parameters_in_bfloat16_have_no_kernel_of_sgd() -> None:
    values = [torch.ones(8, dtype=torch.bfloat16)]
    assert not native.sgd_supports(values, values, values)


def test_each_form_is_called(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called, exported = [], native._exported
    monkeypatch.setattr(
        native, "_exported", lambda name, function: (called.append(function), exported(name, function))[1]
    )
    native.batch_norm(NormCall(blob(2, 3, 4, 4), relu=True))
    native.lrn(blob(2, 3, 4, 4), 3, 1.0, 1.0)
    assert called == [f"imae_batch_norm_{isa}_bfloat16", f"imae_lrn_{isa}_bfloat16"]
