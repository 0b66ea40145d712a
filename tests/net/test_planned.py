"""Planned convolutions give F.conv2d's numbers, with the channels last. Sums of small integers are exact."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F

from imae.layers.vision.conv import Windows
from imae.net.kernels import ConvolutionCall, native, plan_convolution, plan_convolution_and_sum, planned

LAST = torch.channels_last

# Bottom, outputs, kernel, stride, pad, dilation, groups. Axes of one place have no order of their own.
CASES = [
    ((2, 1, 5, 4), 1, 3, 1, 1, 1, 1),
    ((2, 8, 1, 1), 16, 1, 1, 0, 1, 1),
    ((1, 8, 1, 1), 1, 1, 1, 0, 1, 1),
    ((3, 8, 3, 3), 16, 3, 1, 0, 1, 1),
    ((1, 16, 5, 1), 4, 3, 1, 1, 1, 1),
    ((2, 6, 4, 5), 6, 3, 2, 1, 1, 6),
    ((2, 12, 9, 7), 8, 3, 1, 2, 2, 4),
    ((2, 8, 12, 11), 16, 3, 1, 1, 1, 1),
    ((1, 16, 8, 8), 24, 3, 1, 2, 1, 1),
    ((1, 5, 11, 13), 7, 5, 3, 2, 1, 1),
]


@pytest.mark.parametrize("few_products", [0, 10**9], ids=["packed", "by torch"])
@pytest.mark.parametrize("kernels", ["auto", "none"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal(
    case: tuple[tuple[int, ...], *tuple[int, ...]],
    kernels: str,
    few_products: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bottom, outputs, kernel, stride, pad, dilation, group = case
    monkeypatch.setenv("IMAE_KERNELS", kernels)
    monkeypatch.setattr(planned, "FEW_PRODUCTS", few_products)
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randint(-4, 5, shape, generator=generator).float()

    x = drawn(*bottom).contiguous(memory_format=LAST)
    weight, bias = drawn(outputs, bottom[1] // group, kernel, kernel), drawn(outputs)
    windows = Windows((kernel,) * 2, (stride,) * 2, (pad,) * 2, (dilation,) * 2)
    for biased in (bias, None):
        call = ConvolutionCall(weight, biased, windows, group, bottom)
        want = F.conv2d(x, weight, biased, stride, pad, dilation, group)
        top = plan_convolution(call)(x)
        assert torch.equal(top, want)
        assert top.is_contiguous(memory_format=LAST)
        other = drawn(*want.shape).contiguous(memory_format=LAST)
        kept = other.clone()
        for overwrites in (False, True):
            total = plan_convolution_and_sum(call, overwrites)(x, other)
            assert torch.equal(total, want + kept)
            assert total.is_contiguous(memory_format=LAST)
            assert overwrites or torch.equal(other, kept)


@pytest.mark.skipif(not native.available(), reason="the kernels in C were not built")
def test_a_winograd_plan_keeps_no_memory_of_a_bottoms_size() -> None:
    """Plans of all convolutions are kept, for three shapes: of VGG's bottoms that would be gigabytes."""
    bottom = (2, 16, 9, 11)
    convolve = native.plan_winograd(bottom, torch.ones(8, 16, 3, 3), None, (1, 1))
    kept = [
        thing
        for thing in gc.get_objects()
        if type(thing) is torch.Tensor and thing.shape == bottom and not thing.is_meta
    ]
    assert not kept
    assert convolve(torch.ones(bottom).contiguous(memory_format=LAST)).shape == (2, 8, 9, 11)


@pytest.mark.skipif(not native.available(), reason="the kernels in C were not built")
@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (torch.ones(8, 8, 5, 5), None),
        (torch.ones(8, 16, 3, 3), None),
        (torch.ones(8, 8, 3, 3).double(), None),
        (torch.ones(8, 8, 3, 3), torch.ones(16)),
    ],
    ids=["5x5", "channels", "double", "bias"],
)
def test_winograd_is_not_planned_for_other_weights(weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    with pytest.raises(ValueError, match="no kernel"):
        native.plan_winograd((2, 8, 6, 6), weight, bias, (1, 1))


@pytest.mark.skipif(not native.available(), reason="the kernels in C were not built")
def test_winograd_refuses_another_bottom() -> None:
    """It reads memory by addresses, so it checks what it gets, though a plan never passes anything else."""
    convolve = native.plan_winograd((2, 8, 6, 6), torch.ones(8, 8, 3, 3), None, (1, 1))
    right = torch.ones(2, 8, 6, 6).contiguous(memory_format=LAST)
    assert torch.equal(convolve(right), F.conv2d(right, torch.ones(8, 8, 3, 3), padding=1))
    for wrong in (right[:1], right.contiguous(), right.double()):
        with pytest.raises(ValueError, match="planned for"):
            convolve(wrong)
