"""BatchNorm, LRN, MVN, beyond the recorded cases."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from single_layer import (
    build,
    check_contract,
    check_gradient,
    check_onnx,
    diffs,
    normal,
    overwritten,
    refused,
    run,
)
from tolerances import tolerance
from torch import Tensor

from imae.files.errors import ExportError
from imae.layers.layer import Shape
from imae.layers.normalization.batch_norm import BatchNorm
from imae.prototxt import ParamSpec


def assert_close(
    got: Tensor | None, want: Tensor, what: str = "same arithmetic", dtype: str = "float32"
) -> None:
    rtol, atol, _ = tolerance(what, dtype)
    assert got is not None
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol * max(1.0, float(want.detach().abs().max())))


# -- BatchNorm ---------------------------------------------------------------------------------------------

STATISTICS = "".join(
    f"blobs {{ shape {{ dim: {len(data)} }} data: {data} }} "
    for data in ([0.5, -1.0, 3.0], [2.0, 0.5, 8.0], [2.0])
)  # mean 0.25 -0.5 1.5, variance 1 0.25 4


def batch_norm(phase: str, fields: str = "", blobs: str = "") -> str:
    return f'type: "BatchNorm" phase: {phase} batch_norm_param {{ {fields} }} {blobs}'


def norm_layer(text: str, shape: Shape) -> BatchNorm:
    layer = build(text, shape)
    assert isinstance(layer, BatchNorm)
    return layer


@pytest.mark.parametrize(
    "shape", [(4, 3, 5, 2), (4, 3), (7,), (2, 3, 4), (2, 3, 2, 3, 2), (1, 3), (1, 3, 1, 1)]
)
def test_batch_norm_adds_the_batches_to_its_blobs(shape: Shape) -> None:
    """Five passes against the rule, in float64; one number a channel has variance 0 and factor 1."""
    layer = norm_layer(batch_norm("TRAIN", "moving_average_fraction: 0.9 eps: 0.01"), shape).double()
    channels = shape[1] if len(shape) > 1 else 1
    fraction, eps = layer.moving_average_fraction, layer.eps
    sums, squares, weight = *torch.zeros(2, channels, dtype=torch.float64), 0.0
    for step in range(5):
        x = normal(*shape, seed=step, dtype=torch.float64) * 3 + step
        rows = x.unsqueeze(1) if x.dim() == 1 else x
        rows = rows.movedim(1, 0).reshape(channels, -1)
        m = rows.shape[1]
        mean, variance = rows.mean(1), rows.var(1, unbiased=False)
        sums = fraction * sums + mean
        squares = fraction * squares + variance * (m / (m - 1) if m > 1 else 1)
        weight = fraction * weight + 1
        (top,) = run(layer, x)
        view = (1, channels, *[1] * (x.dim() - 2))[: x.dim()]
        want = (x - mean.reshape(view)) / (variance.reshape(view) + eps).sqrt()
        assert_close(top, want, "formula", "float64")
        for index, value in enumerate([sums, squares, torch.tensor([weight], dtype=torch.float64)]):
            assert_close(layer.blob(index).detach(), value, "formula", "float64")
    mean, variance = layer.statistics()
    assert_close(mean, sums / weight, "formula", "float64")
    assert_close(variance, squares / weight, "formula", "float64")


def test_batch_norm_normalizes_with_the_statistics_in_test() -> None:
    x = normal(4, 3, 5, 2)
    mean, variance = torch.tensor([0.25, -0.5, 1.5]), torch.tensor([1.0, 0.25, 4.0])
    want = (x - mean.reshape(3, 1, 1)) / (variance + 1e-5).sqrt().reshape(3, 1, 1)
    for text in (
        batch_norm("TEST", "", STATISTICS),
        batch_norm("TRAIN", "use_global_stats: true", STATISTICS),
    ):
        layer = norm_layer(text, (4, 3, 5, 2))
        before = [blob.detach().clone() for blob in layer.blobs]
        assert_close(run(layer, x)[0], want)
        top_diff = normal(4, 3, 5, 2, seed=1)
        (diff,) = diffs(layer, x, top_diffs=[top_diff])
        assert_close(diff, top_diff / (variance + 1e-5).sqrt().reshape(3, 1, 1))  # a plain scale
        for blob, old in zip(layer.blobs, before, strict=True):
            assert torch.equal(blob, old)
    layer = norm_layer(batch_norm("TEST", "use_global_stats: false", STATISTICS), (4, 3, 5, 2))
    (top,) = run(layer, x)
    assert_close(top.mean((0, 2, 3)), torch.zeros(3))
    assert layer.blob(2).item() != 2


def test_batch_norm_without_statistics_has_mean_and_variance_zero() -> None:
    layer, x = norm_layer(batch_norm("TEST"), (4, 3)), normal(4, 3)
    assert all(torch.equal(part, torch.zeros(3)) for part in layer.statistics())
    assert_close(run(layer, x)[0], x / layer.eps**0.5)


def test_batch_norm_gradient_goes_through_the_statistics_of_the_batch() -> None:
    for shape in ((4, 3), (3, 2, 2, 2), (5,)):
        layer = build(batch_norm("TRAIN", "eps: 0.1"), shape).double()
        layer.requires_grad_(False)
        x = normal(*shape, dtype=torch.float64).requires_grad_()
        rtol, atol, _ = tolerance("gradient", "float64")
        assert torch.autograd.gradcheck(lambda x, layer=layer: run(layer, x), [x], rtol=rtol, atol=atol)
    layer = build(batch_norm("TRAIN"), (1, 3))
    assert_close(diffs(layer, normal(1, 3))[0], torch.zeros(1, 3))


def test_the_update_between_forward_and_backward_does_not_disturb_autograd() -> None:
    layer, x = build(batch_norm("TRAIN"), (4, 3)), normal(4, 3).requires_grad_()
    (first,) = run(layer, x)
    (second,) = run(layer, x)
    (first.square().sum() + second.sum()).backward()
    assert x.grad is not None and layer.blob(2).item() == pytest.approx(1.999)
    assert all(blob.grad is None for blob in layer.blobs)


def test_batch_norm_blobs_are_not_learned() -> None:
    layer = build(batch_norm("TRAIN") + "param { lr_mult: 0 decay_mult: 0 }", (4, 3))
    specs = layer.param_specs()
    assert specs == [ParamSpec(lr_mult=0, decay_mult=0), ParamSpec(lr_mult=0), ParamSpec(lr_mult=0)]
    assert len(layer.param.param) == 1
    with refused(
        "Cannot configure batch normalization statistics as layer parameters.; got lr_mult 1, it must be 0"
    ):
        build(batch_norm("TRAIN") + 'param { name: "mean" }', (4, 3))


def test_batch_norm_contract() -> None:
    for shape in ((4, 3, 5, 2), (7,)):
        check_contract(batch_norm("TRAIN"), normal(*shape))
    check_contract(batch_norm("TEST", "", STATISTICS), normal(4, 3, 5, 2))
    layer = build(batch_norm("TEST"), (4, 3, 5))
    with refused("bottom (4, 5, 3) must have 3 channels on axis 1"):
        layer.checked_top_shapes([(4, 5, 3)])
    with refused("the bottom must have at least 1 axis; it is a scalar"):
        build(batch_norm("TEST"), ())


@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (4, 3), (2, 3, 4)])
def test_batch_norm_in_onnx(shape: Shape) -> None:
    check_onnx(batch_norm("TEST", "eps: 0.01", STATISTICS), normal(*shape))


def test_batch_norm_of_one_axis_in_onnx() -> None:
    blobs = "".join(f"blobs {{ shape {{ dim: 1 }} data: {value} }}" for value in (3, 8, 2))
    check_onnx(batch_norm("TEST", "", blobs), normal(6))
    with pytest.raises(
        ExportError, match="layer 'it': use_global_stats is false, so it depends on the batch"
    ):
        check_onnx(batch_norm("TEST", "use_global_stats: false"), normal(6))


# -- LRN ---------------------------------------------------------------------------------------------------


def lrn(fields: str) -> str:
    return f'type: "LRN" lrn_param {{ alpha: 0.7 beta: 0.6 {fields} }}'


@pytest.mark.parametrize(("size", "k"), [(1, 1.0), (3, 2.0), (5, 0.5), (7, 1.0)])
def test_lrn_across_channels_is_its_formula(size: int, k: float) -> None:
    x = normal(2, 5, 3, 4, dtype=torch.float64)
    layer = build(lrn(f"local_size: {size} k: {k}"), (2, 5, 3, 4)).double()
    half = size // 2
    energy = torch.stack([(x[:, max(0, c - half) : c + half + 1] ** 2).sum(1) for c in range(5)], 1)
    want = x / (k + layer.alpha / size * energy) ** layer.beta
    assert_close(run(layer, x)[0], want, "formula", "float64")


@pytest.mark.parametrize("size", [1, 3, 5])
def test_lrn_within_a_channel_divides_by_the_whole_window_and_has_no_k(size: int) -> None:
    x = normal(2, 3, 5, 4, dtype=torch.float64)
    layer = build(lrn(f"local_size: {size} norm_region: WITHIN_CHANNEL k: 5"), (2, 3, 5, 4)).double()
    half = size // 2
    energy = torch.zeros_like(x)
    for row in range(5):
        for column in range(4):
            window = x[:, :, max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
            energy[:, :, row, column] = (window**2).sum((2, 3)) / size**2
    assert_close(run(layer, x)[0], x * (1 + layer.alpha * energy) ** -layer.beta, "formula", "float64")


@pytest.mark.parametrize("fields", ["local_size: 3 k: 2", "local_size: 3 norm_region: WITHIN_CHANNEL"])
def test_lrn_contract_gradient_and_onnx(fields: str) -> None:
    check_contract(lrn(fields), normal(2, 5, 3, 4))
    check_gradient(lrn(fields), normal(2, 5, 2, 3))
    check_onnx(lrn(fields), normal(2, 5, 3, 4))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("stepwise", [False, True])
def test_lrn_gradient_reads_the_memory_that_a_later_layer_has_overwritten(
    in_place: bool, stepwise: bool
) -> None:
    """Across channels Caffe reads top and bottom, within a channel the bottom; base has its own memory.

    Across channels and in place it destroys them and the diff: here is the derivative.
    """
    x, top_diff = normal(2, 5, 3, 4), normal(2, 5, 3, 4, seed=1)
    param = build(lrn(""), (2, 5, 3, 4)).param.lrn_param
    alpha, beta = param.alpha, param.beta

    def channels(values: Tensor) -> Tensor:
        """The mean over 3 channels."""
        return F.pad(values, (0, 0, 0, 0, 1, 1)).unfold(1, 3, 1).mean(-1)

    def square(values: Tensor) -> Tensor:
        """The mean over 3 x 3 places."""
        return F.pad(values, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).mean((-1, -2))

    got, top = overwritten(lrn("local_size: 3 k: 2"), in_place, stepwise, x, top_diff)
    base = 2 + alpha * channels(x * x)
    top = x * base**-beta if in_place else top
    want = top_diff * base**-beta - 2 * alpha * beta * x * channels(top_diff * top / base)
    assert_close(got, want, "golden")

    got, top = overwritten(lrn("local_size: 3 norm_region: WITHIN_CHANNEL"), in_place, stepwise, x, top_diff)
    base, bottom = 1 + alpha * square(x * x), top if in_place else x
    want = top_diff * base**-beta
    want -= 2 * alpha * beta * bottom * square(top_diff * bottom * base ** (-beta - 1))
    assert_close(got, want, "golden")


def test_lrn_refuses() -> None:
    with refused("LRN only supports odd values for local_size; got 4"):
        build(lrn("local_size: 4"), (2, 5, 3, 4))
    with refused("Input must have 4 axes, corresponding to (num, channels, height, width); got (2, 5)"):
        build(lrn(""), (2, 5))


# -- MVN ---------------------------------------------------------------------------------------------------


def mvn(fields: str = "") -> str:
    return f'type: "MVN" mvn_param {{ {fields} }}'


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("variance", [False, True])
def test_mvn_is_its_formula(across: bool, variance: bool) -> None:
    fields = f"across_channels: {across} normalize_variance: {variance} eps: 0.5".lower()
    x = normal(2, 3, 4, 5, dtype=torch.float64) * 2 + 1
    layer = build(mvn(fields), (2, 3, 4, 5)).double()
    axes = (1, 2, 3) if across else (2, 3)
    want = x - x.mean(axes, keepdim=True)
    if variance:
        want = want / (want.square().mean(axes, keepdim=True).sqrt() + 0.5)
    assert_close(run(layer, x)[0], want, "formula", "float64")
    check_contract(mvn(fields), normal(2, 3, 4, 5))
    check_onnx(mvn(fields), normal(2, 3, 4, 5))


def test_mvn_gradient() -> None:
    """The derivative where eps is small, Caffe's formula where it is not; finite where s is 0."""
    check_gradient(mvn(), normal(2, 2, 3, 2))
    check_gradient(mvn("across_channels: true normalize_variance: false"), normal(2, 2, 3, 2))
    x, top_diff = normal(2, 3, 4, 5, dtype=torch.float64), normal(2, 3, 4, 5, dtype=torch.float64, seed=1)
    layer = build(mvn("eps: 0.5"), (2, 3, 4, 5)).double()
    (top,) = run(layer, x)
    s = x.var((2, 3), unbiased=False, keepdim=True).sqrt()
    mean_diff, along = (v.mean((2, 3), keepdim=True) for v in (top_diff, top_diff * top))
    want = (top_diff - mean_diff - top * along) / (s + 0.5)
    assert_close(diffs(layer, x, top_diffs=[top_diff])[0], want, "formula", "float64")
    flat = build(mvn("eps: 0.5"), (1, 1, 2, 2))
    assert torch.equal(run(flat, torch.ones(1, 1, 2, 2))[0], torch.zeros(1, 1, 2, 2))
    (diff,) = diffs(flat, torch.ones(1, 1, 2, 2), top_diffs=[torch.tensor([[[[1.0, 0], [0, 0]]]])])
    assert_close(diff, torch.tensor([[[[1.5, -0.5], [-0.5, -0.5]]]]))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("across", [False, True])
def test_mvn_gradient_reads_the_memory_that_a_later_layer_has_overwritten(
    in_place: bool, stepwise: bool, across: bool
) -> None:
    x, top_diff = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    axes = (1, 2, 3) if across else (2, 3)

    def mean(values: Tensor) -> Tensor:
        return values.mean(axes, keepdim=True)

    fields = f"across_channels: {across}".lower()
    got, top = overwritten(mvn(fields), in_place, stepwise, x, top_diff)
    s = mean((x - mean(x)).square()).sqrt()
    if in_place:  # Caffe destroys the diff: here is the derivative
        top = (x - mean(x)) / s
    assert_close(got, (top_diff - mean(top_diff) - top * mean(top_diff * top)) / s, "golden")
    got, _ = overwritten(mvn(f"{fields} normalize_variance: false"), in_place, stepwise, x, top_diff)
    assert_close(got, top_diff - mean(top_diff), "golden")


def test_mvn_gives_four_axes() -> None:
    for shape, top in (((2, 3), (2, 3, 1, 1)), ((2, 3, 4), (2, 3, 4, 1)), ((3,), (3, 1, 1, 1))):
        assert build(mvn(), shape).checked_top_shapes([shape]) == [top]
        check_contract(mvn(), normal(*shape))
    check_onnx(mvn("across_channels: true"), normal(2, 3, 4))
    with refused("the bottom must have at most 4 axes; got (2, 3, 4, 5, 6)"):
        build(mvn(), (2, 3, 4, 5, 6))


# -- memory layout -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        batch_norm("TRAIN"),
        batch_norm("TEST", "", STATISTICS),
        lrn(""),
        lrn("norm_region: WITHIN_CHANNEL"),
        mvn(),
    ],
)
def test_channels_last_gives_the_same(text: str) -> None:
    x, top_diff = normal(4, 3, 5, 2), normal(4, 3, 5, 2, seed=1)
    last = x.to(memory_format=torch.channels_last)
    plain, other = build(text, (4, 3, 5, 2)), build(text, (4, 3, 5, 2))
    assert_close(run(other, last)[0], run(plain, x)[0])
    for blob, other_blob in zip(plain.blobs, other.blobs, strict=True):
        assert_close(other_blob, blob)
    want = diffs(plain, x, top_diffs=[top_diff])[0]
    assert want is not None
    assert_close(diffs(other, last, top_diffs=[top_diff])[0], want)


def test_batch_norm_of_a_channels_last_bottom_is_as_exact() -> None:
    """131,072 numbers a channel, of which torch's own kernel for this order is wrong by 3e-5."""
    x = (normal(128, 4, 32, 32) * 3 + 5).to(memory_format=torch.channels_last)
    layer = norm_layer(batch_norm("TRAIN"), (128, 4, 32, 32))
    run(layer, x)
    exact = x.double()
    assert_close(layer.blob(0).detach().double(), exact.mean((0, 2, 3)), "formula")
    assert_close(layer.blob(1).detach().double(), exact.var((0, 2, 3)), "formula")
