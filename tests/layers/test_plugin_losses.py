"""The losses of layers/plugins against their formulas, written out once more in numpy as they are printed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from tolerances import tolerance
from torch import Tensor

from imae.files.errors import LayerError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import Layer
from imae.layers.registry import layer_class
from imae.layers.run import Run
from imae.losses import example_weights as weights
from imae.net.net import Net
from imae.prototxt import TRAIN, LayerParameter
from imae.prototxt.text import parse_net

Array = NDArray[np.floating[Any]]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
OURS = ["IMAELoss", "MAELoss", "MSELoss", "GCELoss", "DMLoss"]
# Those that are divided by the sum of weights unless asked otherwise, and how to ask.
BY_BATCH = {
    "IMAELoss": "imae_loss_param { normalizer: BATCH_SIZE }",
    "DMLoss": "dm_loss_param { normalizer: BATCH_SIZE }",
}
AUTHORS = ["UnifiedWeightLoss", "WeightedSoftmaxWithLoss"]
# Those that papers compare with; their formulas: tests/losses/test_losses.py. CorrectionLoss needs a matrix.
COMPARED = [
    "SCELoss",
    "AULLoss",
    "AGCELoss",
    "AELLoss",
    "TCELoss",
    "NCELoss",
    "LabelSmoothingLoss",
    "BootstrappingLoss",
]
OF_ALL_CLASSES = ["NCELoss", "LabelSmoothingLoss", "BootstrappingLoss"]
LOSSES = pytest.mark.parametrize("type_name", OURS + COMPARED + AUTHORS)
FLT_MIN = float(np.finfo(np.float32).tiny)


def build(text: str, *shapes: tuple[int, ...]) -> Layer:
    """The layer that `text` describes, named loss, set up for bottoms of these shapes."""
    param = text_format.Parse('name: "loss" ' + text, LayerParameter())
    param.bottom.extend(f"bottom{i}" for i in range(len(shapes)))
    if not param.top:
        param.top.append("top")
    layer = layer_class(param.type)(param)
    layer.build(shapes, Run(CaffeRandom(1)))
    return layer


def passes(
    layer: Layer, logits: Tensor, *others: Tensor, top_diff: float | Tensor = 1
) -> tuple[Tensor, Tensor]:
    """Top and bottom diff."""
    logits = logits.clone().requires_grad_()
    top = layer(logits, *others)
    assert isinstance(top, Tensor)
    assert (top.shape, top.dtype) == ((), logits.dtype)
    top.backward(torch.as_tensor(top_diff, dtype=logits.dtype))
    assert logits.grad is not None
    return top.detach(), logits.grad


def both(text: str, logits: Tensor, *others: Tensor, top_diff: float = 1) -> tuple[Tensor, Tensor]:
    """Top and bottom diff of the layer that `text` describes."""
    return passes(build(text, logits.shape, *(o.shape for o in others)), logits, *others, top_diff=top_diff)


def batch(dtype: torch.dtype, examples: int = 7, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, with p from 1e-5 to nearly 1, and labels."""
    draw = np.random.default_rng(seed)
    logits = torch.tensor(4 * draw.standard_normal((examples, classes)), dtype=dtype)
    return logits, torch.tensor(draw.integers(0, classes, examples), dtype=dtype)


def with_probability(p: Array, rest: Array, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits whose label has the probability p = 1 - rest, and the labels."""
    logits, label = batch(torch.float64, len(p), seed=3)
    index = label.long()[:, None]
    others = logits.scatter(1, index, -torch.inf).logsumexp(1, keepdim=True)
    odds = torch.tensor(np.log(p) - np.log(rest))[:, None]
    return logits.scatter(1, index, others + odds).to(dtype), label.to(dtype)


def close(got: Tensor, want: Array | Tensor | float, dtype: torch.dtype, what: str = "formula") -> None:
    """Compare with the tolerance of `what`, an absolute one relative to the largest value wanted."""
    rtol, atol, _ = tolerance(what, str(dtype).removeprefix("torch."))
    want = np.asarray(want, np.float64)
    np.testing.assert_allclose(got.double().numpy(), want, rtol=rtol, atol=atol * np.abs(want).max())


# -- the formulas, literally ---------------------------------------------------------------------------------


def parts(logits: Tensor, label: Tensor) -> tuple[Array, Array, Array]:
    """prob (N, C), onehot (N, C), p (N, 1), all float64."""
    z = logits.double().numpy()
    e = np.exp(z - z.max(1, keepdims=True))
    prob = e / e.sum(1, keepdims=True)
    onehot = np.eye(prob.shape[1])[label.long().numpy()]
    return prob, onehot, (prob * onehot).sum(1, keepdims=True)


def beta_series(lambda_: float, beta: float) -> float:
    """Integral of exp(beta p^lambda (1 - p)) over [0, 1]; each term of its series is a beta function."""
    terms = (
        beta**k * math.exp(math.lgamma(k * lambda_ + 1) - math.lgamma(k * (lambda_ + 1) + 2))
        for k in range(120)
    )
    return math.fsum(terms)


def mae(p: Array) -> Array:
    return 2 * (1 - p)


Q = float(np.float32(0.7))  # fields are single precision

# prototxt: value, L1 norm, dL/dz_y, dL/dz_j (the later version's table 2; IMAE and DM with MAE's value).
Formula = tuple[
    Callable[[Array], Array],
    Callable[[Array], Array],
    Callable[[Array], Array],
    Callable[[Array, Array], Array],
]


EPSILON = float(np.float32(1e-6))


def spread(weight: Callable[[Array], Array], epsilon: float = EPSILON) -> Formula:
    """The gradient w (prob - onehot) / (2 (1 - p) + epsilon)."""
    return (
        mae,
        weight,
        lambda p: weight(p) * (p - 1) / (2 * (1 - p) + epsilon),
        lambda p, pj: weight(p) * pj / (2 * (1 - p) + epsilon),
    )


TABLE_2: dict[str, Formula] = {
    'type: "IMAELoss" imae_loss_param { %s }': spread(lambda p: np.exp(8 * p * (1 - p))),
    'type: "IMAELoss" imae_loss_param { t: 0.5 %s }': spread(lambda p: np.exp(0.5 * p * (1 - p))),
    'type: "IMAELoss" imae_loss_param { epsilon: 0 %s }': spread(lambda p: np.exp(8 * p * (1 - p)), 0),
    'type: "IMAELoss" imae_loss_param { epsilon: 0.25 %s }': spread(lambda p: np.exp(8 * p * (1 - p)), 0.25),
    'type: "DMLoss" dm_loss_param { lambda: 2 beta: 8 epsilon: 0.25 %s }': spread(
        lambda p: np.exp(8 * p**2 * (1 - p)), 0.25
    ),
    'type: "MAELoss" mae_loss_param { %s }': (
        mae, lambda p: 4 * p * (1 - p), lambda p: 2 * p * (p - 1), lambda p, pj: 2 * p * pj
    ),
    'type: "MSELoss" mse_loss_param { %s }': (
        lambda p: (1 - p) ** 2, lambda p: 4 * p * (1 - p) ** 2,
        lambda p: -2 * p * (p - 1) ** 2, lambda p, pj: 2 * p * (1 - p) * pj,
    ),
    'type: "GCELoss" gce_loss_param { %s }': (
        lambda p: (1 - p**Q) / Q, lambda p: 2 * p**Q * (1 - p),
        lambda p: p**Q * (p - 1), lambda p, pj: p**Q * pj,
    ),
    'type: "GCELoss" gce_loss_param { q: 0.5 %s }': (
        lambda p: (1 - p**0.5) / 0.5, lambda p: 2 * p**0.5 * (1 - p),
        lambda p: p**0.5 * (p - 1), lambda p, pj: p**0.5 * pj,
    ),
    'type: "DMLoss" dm_loss_param { lambda: 0.5 beta: 8 %s }': spread(lambda p: np.exp(8 * p**0.5 * (1 - p))),
    'type: "DMLoss" dm_loss_param { lambda: 0.5 beta: 8 normalize_by_integral: true %s }': spread(
        lambda p: np.exp(8 * p**0.5 * (1 - p)) / beta_series(0.5, 8)
    ),
}  # fmt: skip


def unified(lamda_p: float, scale: float, logits: Tensor, label: Tensor) -> tuple[float, Array]:
    """UnifiedWeightLoss."""
    prob, onehot, p = parts(logits, label)
    w = np.exp(scale * p**lamda_p * (1 - p))
    s = 1e-8 + w.sum()
    return float((w * -np.log(np.maximum(p, FLT_MIN))).sum() / s), w * (prob - onehot) / (
        2 - 2 * p + 1e-6
    ) / s


def weighted(variant: str, logits: Tensor, label: Tensor) -> tuple[float, Array]:
    """WeightedSoftmaxWithLoss."""
    prob, onehot, p = parts(logits, label)
    d = prob - onehot
    gradient, w = {
        "CCE": (d, 2 * (1 - p)),
        "MAE": (p * d, 2 * p * (1 - p)),
        "GCE": (p**0.7 * d, 2 * p**0.7 * (1 - p)),
        "MSE": (2 * p * (1 - p) * d, 4 * p * (1 - p) ** 2),
    }[variant[:3]]
    if variant.endswith("SUMW"):
        return float((w * (1 - p)).sum() / w.sum()), gradient / w.sum()
    s = len(p) + 1e-8
    return float((1 - p).sum() / s), gradient / s


VARIANTS = ["MAE", "GCE", "MSE", "CCE_SUMW", "MAE_SUMW", "GCE_SUMW", "MSE_SUMW"]


# -- values and gradients ------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("text", TABLE_2)
@pytest.mark.parametrize("normalizer", ["", "BATCH_SIZE", "SUM_OF_WEIGHTS"])
def test_papers_formulas(text: str, normalizer: str, dtype: torch.dtype) -> None:
    value, weight, at_label, at_other = TABLE_2[text]
    logits, label = batch(dtype)
    top, diff = both(text % (normalizer and f"normalizer: {normalizer}"), logits, label, top_diff=0.3)
    prob, onehot, p = parts(logits, label)
    w = weight(p)
    if normalizer == "SUM_OF_WEIGHTS" or (not normalizer and text.split('"')[1] in BY_BATCH):
        s = 1e-8 + w.sum()
        close(top, (w * value(p)).sum() / s, dtype)
    else:
        s = len(p)
        close(top, value(p).sum() / s, dtype)
    close(diff, 0.3 / s * np.where(onehot == 1, at_label(p), at_other(p, prob)), dtype)


@DTYPES
@pytest.mark.parametrize("lamda_p, scale", [(1, 1), (1, 8), (0.5, 8), (2, 16)])
@pytest.mark.parametrize("bottoms", [2, 3])
def test_unified_weight_loss_is_the_authors(
    lamda_p: float, scale: float, bottoms: int, dtype: torch.dtype
) -> None:
    text = 'type: "UnifiedWeightLoss"'
    if (lamda_p, scale) != (1, 1):  # the defaults
        text += f" loss_param {{ lamda_p: {lamda_p} scale: {scale} }}"
    logits, label = batch(dtype)
    unused = torch.full((len(label), 1), torch.nan, dtype=dtype)
    top, diff = both(text, logits, *[label, unused][: bottoms - 1], top_diff=0.3)
    want_top, want_diff = unified(lamda_p, scale, logits, label)
    close(top, want_top, dtype)
    close(diff, 0.3 * want_diff, dtype)


@DTYPES
def test_unified_weight_loss_keeps_the_authors_1e_6(dtype: torch.dtype) -> None:
    """Where 1 - p is not large against it, the gradient is smaller than the weight says."""
    rest = np.array([1e-6, 3e-6, 1e-5])
    logits, label = with_probability(1 - rest, rest, dtype)
    _, diff = both('type: "UnifiedWeightLoss"', logits, label)
    _, want = unified(1, 1, logits, label)
    assert np.abs(want[0]).sum() < 0.7 * np.abs(want[2]).sum()
    close(diff, want, torch.float32)  # in double precision too: 1 - p of the formula has few digits here


@DTYPES
@pytest.mark.parametrize("variant", ["", *VARIANTS])
@pytest.mark.parametrize("bottoms", [2, 3])
def test_weighted_softmax_loss_is_the_authors(variant: str, bottoms: int, dtype: torch.dtype) -> None:
    text = 'type: "WeightedSoftmaxWithLoss"'
    if variant:
        text += f" weighted_softmax_loss_param {{ variant: {variant} }}"
    logits, label = batch(dtype)
    unused = torch.full((len(label), 1), torch.nan, dtype=dtype)
    top, diff = both(text, logits, *[label, unused][: bottoms - 1], top_diff=0.3)
    want_top, want_diff = weighted(variant or "MAE", logits, label)
    close(top, want_top, dtype)
    close(diff, 0.3 * want_diff, dtype)


@DTYPES
def test_extract_prob(dtype: torch.dtype) -> None:
    logits, label = batch(dtype)
    prob = logits.softmax(1).requires_grad_()
    layer = build('type: "ExtractProb" top: "p" top: "largest"', (7, 5), (7,))
    p, largest = layer(prob, label)
    want = parts(logits, label)[2]
    close(p, want, dtype)
    assert p.shape == (7, 1)
    assert largest.shape == ()
    assert largest == p.max()
    assert not p.requires_grad
    assert not largest.requires_grad


def test_extract_prob_of_pictures_ignores_labels() -> None:
    prob = torch.rand(2, 5, 3, 4)
    label = torch.randint(0, 5, (2, 1, 3, 4)).float()
    label[1, 0, 2] = 255
    layer = build('type: "ExtractProb" loss_param { ignore_label: 255 }', prob.shape, label.shape)
    assert layer.checked_top_shapes([prob.shape, label.shape]) == [(2, 1, 3, 4)]
    p = layer(prob, label)
    for n, y, x in np.ndindex(2, 3, 4):
        wanted = label[n, 0, y, x]
        assert p[n, 0, y, x] == (0 if wanted == 255 else prob[n, int(wanted), y, x])


# -- saturation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.5, 8, 16])
def test_l1_norm_of_imaes_gradient_is_its_weight(t: float) -> None:
    """With epsilon 0: exp(T p (1 - p)) to 1e-6 in float32, for p from 1e-30 to 1 - 1e-30."""
    small = 10.0 ** -np.linspace(0.31, 30, 400)
    p, rest = np.concatenate([small, [0.5], 1 - small]), np.concatenate([1 - small, [0.5], small])
    logits, label = with_probability(p, rest, torch.float32)
    _, diff = both(
        f'type: "IMAELoss" imae_loss_param {{ t: {t} epsilon: 0 }} loss_param {{ normalization: NONE }}',
        logits,
        label,
    )
    # p of the float32 logits, which differ a little from those asked for
    index = label.long()[:, None]
    others = logits.double().scatter(1, index, -torch.inf).logsumexp(1)
    odds = logits.double().gather(1, index).squeeze(1) - others
    norm = diff.double().abs().sum(1)
    close(norm, torch.exp(t * odds.sigmoid() * (-odds).sigmoid()), torch.float32, "example weight")


@DTYPES
@LOSSES
@pytest.mark.parametrize("shift", [0, 1e4, -1e4])
def test_saturated_logits_have_finite_losses_and_gradients(
    type_name: str, shift: float, dtype: torch.dtype
) -> None:
    """Logits of +-200 and more: p is 0 or 1 in float32."""
    scores = [[200, -200, 0], [-200, 200, 0], [1e30, 0, -1e30], [-3e38, 3e38, 3e38], [0, 0, 0]]
    logits = torch.tensor(scores, dtype=dtype) + shift
    top, diff = both(f'type: "{type_name}"', logits, torch.zeros(5, dtype=dtype))
    assert top.isfinite()
    assert diff.isfinite().all()
    size = diff.abs().sum(1)
    if type_name in OF_ALL_CLASSES:  # log-softmax has no digits of 1 - p where p is 1
        size = size.max()
    assert (diff.sum(1).abs() <= tolerance("formula").rtol * size).all()


@DTYPES
@pytest.mark.parametrize("layer", ["IMAELoss", "DMLoss"])
def test_imae_pulls_where_p_is_zero_and_exact_also_where_it_is_one(layer: str, dtype: torch.dtype) -> None:
    """w is 1 at both ends: minus one half for the label, the other half shared by the others' softmax.

    The epsilon of the authors' layer ends that at p = 1.
    """
    logits = torch.tensor([[200, -200, -200], [-200, 200, 200], [-200, 200, -200]], dtype=dtype)
    field = f"{layer[:-4].lower()}_loss_param"
    label = torch.zeros(3, dtype=dtype)
    for epsilon, at_one in (("epsilon: 0", [-0.5, 0.25, 0.25]), ("", [0, 0, 0])):
        text = f'type: "{layer}" {field} {{ {epsilon} }} loss_param {{ normalization: NONE }}'
        _, diff = both(text, logits, label)
        rows = [at_one, [-0.5, 0.25, 0.25], [-0.5, 0.5, 0]]
        close(diff, np.array(rows), torch.float32)  # epsilon takes 5e-7 away


@DTYPES
@pytest.mark.parametrize(
    "ours, theirs",
    [
        ("imae_loss_param { t: 8 normalizer: SUM_OF_WEIGHTS }", "lamda_p: 1 scale: 8"),
        ("dm_loss_param { lambda: 0.5 beta: 6 normalizer: SUM_OF_WEIGHTS }", "lamda_p: 0.5 scale: 6"),
    ],
)
def test_gradient_is_that_of_the_authors_layer(ours: str, theirs: str, dtype: torch.dtype) -> None:
    """With its epsilon and its normaliser, for p from 1e-30 to 1 - 1e-30; only the value differs."""
    small = 10.0 ** -np.linspace(0.31, 30, 200)
    p, rest = np.concatenate([small, 1 - small]), np.concatenate([1 - small, small])
    logits, label = with_probability(p, rest, dtype)
    type_name = "IMAELoss" if ours.startswith("imae") else "DMLoss"
    _, got = both(f'type: "{type_name}" {ours}', logits, label)
    _, want = both(f'type: "UnifiedWeightLoss" loss_param {{ {theirs} }}', logits, label)
    close(got, want, torch.float32, "authors' layer")


@DTYPES
@pytest.mark.parametrize("variant", ["CCE_SUMW", "MAE_SUMW", "GCE_SUMW", "MSE_SUMW"])
def test_a_batch_without_any_weight_is_zero_in_the_authors_sums(variant: str, dtype: torch.dtype) -> None:
    text = f'type: "WeightedSoftmaxWithLoss" weighted_softmax_loss_param {{ variant: {variant} }}'
    logits = torch.tensor([[2000.0, 0, 0], [0, 0, 2000]], dtype=dtype)
    top, diff = both(text, logits, torch.tensor([0.0, 2], dtype=dtype))
    assert top == 0
    assert (diff == 0).all()


# -- value and gradient --------------------------------------------------------------------------------------


def numeric_gradient(layer: Layer, logits: Tensor, label: Tensor) -> Tensor:
    """Central differences."""
    step = 1e-6
    numeric = torch.empty_like(logits)
    for i in range(logits.numel()):
        shift = torch.zeros_like(logits)
        shift.view(-1)[i] = step
        numeric.view(-1)[i] = (layer(logits + shift, label) - layer(logits - shift, label)) / (2 * step)
    return numeric


@pytest.mark.parametrize("type_name", ["MAELoss", "MSELoss", "GCELoss", *COMPARED])
def test_gradient_is_the_derivative_of_the_value(type_name: str) -> None:
    logits, label = batch(torch.float64)
    layer = build(f'type: "{type_name}"', logits.shape, label.shape)
    _, diff = passes(layer, logits, label)
    close(diff, numeric_gradient(layer, logits, label), torch.float64, "gradient")


@pytest.mark.parametrize("type_name", ["IMAELoss", "DMLoss"])
def test_gradient_is_not_the_derivative_of_the_value(type_name: str) -> None:
    """By design: the paper replaces the gradient and leaves the value alone. Do not "repair" it."""
    p = np.linspace(0.02, 0.98, 9)
    logits, label = with_probability(p, 1 - p, torch.float64)
    layer = build(f'type: "{type_name}" {BY_BATCH[type_name]}', logits.shape, label.shape)
    _, diff = passes(layer, logits, label)
    numeric = numeric_gradient(layer, logits, label)
    ratio = (diff.abs().sum(1) / numeric.abs().sum(1))[:, None]
    assert ratio.max() > 2 * ratio.min()
    close(diff, ratio * numeric, torch.float64, "gradient")  # the direction is MAE's


def test_there_is_no_second_derivative() -> None:
    logits, label = batch(torch.float64)
    logits.requires_grad_()
    top = build('type: "IMAELoss"', logits.shape, label.shape)(logits, label)
    (diff,) = torch.autograd.grad(top * top, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        diff.sum().backward()


# -- what a loss layer of Caffe does -------------------------------------------------------------------------


@LOSSES
def test_top_diff_scales_the_gradient(type_name: str) -> None:
    """loss_weight arrives as the top diff."""
    logits, label = batch(torch.float64)
    text = f'type: "{type_name}"'
    (top, diff), (top_3, diff_3) = both(text, logits, label), both(text, logits, label, top_diff=-3)
    assert top == top_3
    close(diff_3, -3 * diff.numpy(), torch.float64)


@LOSSES
@pytest.mark.parametrize("dtype", [torch.float32])
def test_ignored_examples_are_as_if_they_were_not_there(type_name: str, dtype: torch.dtype) -> None:
    logits, label = batch(dtype, examples=9)
    keep = torch.tensor([0, 2, 3, 4, 6, 7])
    ignored = torch.tensor([1, 5, 8])
    want_top, want_diff = both(f'type: "{type_name}"', logits[keep], label[keep])
    label[ignored] = -1
    logits[1], logits[5, 2] = torch.nan, torch.inf
    top, diff = both(f'type: "{type_name}" loss_param {{ ignore_label: -1 }}', logits, label)
    close(top, want_top.double().numpy(), dtype)
    close(diff[keep], want_diff.double().numpy(), dtype)
    assert (diff[ignored] == 0).all()


@DTYPES
@LOSSES
@pytest.mark.parametrize("normalizer", ["", "SUM_OF_WEIGHTS"])
def test_a_batch_of_ignored_labels_gives_zero(type_name: str, normalizer: str, dtype: torch.dtype) -> None:
    text = f'type: "{type_name}" loss_param {{ ignore_label: 7 }}'
    if normalizer and type_name in OURS:
        text += f"{type_name[:-4].lower()}_loss_param {{ normalizer: {normalizer} }}"
    top, diff = both(text, batch(dtype)[0], torch.full((7,), 7, dtype=dtype))
    assert top == 0
    assert (diff == 0).all()


# loss_param: divisor of a batch of 2 x 12 labels, 5 of them ignored
DIVISORS = {
    "": 19,
    "normalization: VALID": 19,
    "normalization: FULL": 24,
    "normalization: BATCH_SIZE": 2,
    "normalization: NONE": 1,
    "normalize: true": 19,
    "normalize: false": 2,
    "normalize: false normalization: FULL": 24,
}


@pytest.mark.parametrize("loss_param", DIVISORS)
@pytest.mark.parametrize("type_name", OURS + COMPARED)
def test_batch_normalizer_counts_as_loss_param_says(type_name: str, loss_param: str) -> None:
    logits, label = batch(torch.float64, examples=24)
    label[[1, 2, 12, 13, 20]] = 9
    sum_top, sum_diff = both(
        f'type: "{type_name}" loss_param {{ ignore_label: 9 normalization: NONE }}', logits, label
    )
    asked = "" if loss_param else BY_BATCH.get(type_name, "")
    top, diff = both(
        f'type: "{type_name}" {asked} loss_param {{ ignore_label: 9 {loss_param} }}',
        logits.view(2, 3, 4, 5).permute(0, 3, 1, 2),
        label.view(2, 3, 4),
    )
    divisor = DIVISORS[loss_param]
    close(top, float(sum_top) / divisor, torch.float64)
    close(diff.permute(0, 2, 3, 1).reshape(24, 5), sum_diff.numpy() / divisor, torch.float64)


@LOSSES
@pytest.mark.parametrize("label_shape", [(2, 1, 3, 4), (2, 3, 4), (2, 12)])
def test_spatial_labels(type_name: str, label_shape: tuple[int, ...]) -> None:
    logits, label = batch(torch.float64, examples=24)
    want_top, want_diff = both(f'type: "{type_name}"', logits, label)
    pictures = logits.view(2, 3, 4, 5).permute(0, 3, 1, 2)
    assert not pictures.is_contiguous()
    top, diff = both(f'type: "{type_name}"', pictures, label.view(label_shape))
    close(top, float(want_top), torch.float64)
    close(diff.permute(0, 2, 3, 1).reshape(24, 5), want_diff.numpy(), torch.float64)
    top, diff = both(
        f'type: "{type_name}" softmax_param {{ axis: -1 }}', logits.view(2, 3, 4, 5), label.view(2, 12)
    )
    close(top, float(want_top), torch.float64)
    close(diff.view(24, 5), want_diff.numpy(), torch.float64)


@LOSSES
def test_bottoms_are_left_alone(type_name: str) -> None:
    logits, label = batch(torch.float32)
    label[3] = 9
    before = logits.clone(), label.clone()
    both(f'type: "{type_name}" loss_param {{ ignore_label: 9 }}', logits, label)
    assert torch.equal(logits, before[0])
    assert torch.equal(label, before[1])


@LOSSES
def test_nothing_waits_for_the_device(type_name: str) -> None:
    """On the meta device there are no values: whatever asks for one raises."""
    layer = build(f'type: "{type_name}" loss_param {{ ignore_label: 9 }}', (7, 5), (7,)).to("meta")
    logits, label = (bottom.to("meta") for bottom in batch(torch.float32))
    top, diff = passes(layer, logits, label, top_diff=torch.ones((), device="meta"))
    assert (top.device.type, diff.device.type, diff.shape) == ("meta", "meta", (7, 5))


@pytest.mark.parametrize("type_name", [*OURS, *COMPARED, *AUTHORS, "ExtractProb"])
@pytest.mark.parametrize("label", [5, -1])
def test_label_out_of_range(type_name: str, label: int) -> None:
    layer = build(f'type: "{type_name}"', (2, 5), (2,))
    with pytest.raises(LayerError) as error:
        layer(torch.zeros(2, 5), torch.tensor([0.0, label]))
    assert str(error.value) == (
        f"layer 'loss' ({type_name}): label {label} is out of range: there are 5 classes, so labels are 0 to "
        "4; mend the data, or the num_output of the classifier"
    )


# -- refusals ------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[list[tuple[int, ...]], str]] = {
    'type: "IMAELoss" loss_param { scale: 2 }': (
        [(2, 5), (2,)], "IMAELoss does not look at loss_param.scale; remove it"
    ),
    'type: "UnifiedWeightLoss" loss_param { normalization: FULL }': (
        [(2, 5), (2,)], "UnifiedWeightLoss does not look at loss_param.normalization; remove it"
    ),
    'type: "WeightedSoftmaxWithLoss" loss_param { lamda_p: 2 }': (
        [(2, 5), (2,)], "WeightedSoftmaxWithLoss does not look at loss_param.lamda_p; remove it"
    ),
    'type: "ExtractProb" loss_param { normalize: true }': (
        [(2, 5), (2,)], "ExtractProb does not look at loss_param.normalize; remove it"
    ),
    'type: "MAELoss" mae_loss_param { normalizer: SUM_OF_WEIGHTS } loss_param { normalization: VALID }': (
        [(2, 5), (2,)], "loss_param.normalization does nothing with the sum of weights; remove it"
    ),
    'type: "ExtractProb" propagate_down: true propagate_down: false': (
        [(2, 5), (2,)], "it has no gradient to propagate; set propagate_down to false for both bottoms"
    ),
    'type: "IMAELoss" imae_loss_param { t: 321 }': (
        [(2, 5), (2,)],
        "imae_loss_param.t = 321 makes weights up to exp(80.25), too large for single precision; at most "
        "exp(80) is allowed",
    ),
    'type: "IMAELoss" imae_loss_param { t: nan }': (
        [(2, 5), (2,)],
        "imae_loss_param.t = nan makes weights up to exp(nan), too large for single precision; at most "
        "exp(80) is allowed",
    ),
    'type: "DMLoss" dm_loss_param { lambda: -0.5 }': (
        [(2, 5), (2,)], "dm_loss_param.lambda must not be below 0, got -0.5"
    ),
    'type: "UnifiedWeightLoss" loss_param { lamda_p: -1 }': (
        [(2, 5), (2,)], "loss_param.lamda_p must not be below 0, got -1"
    ),
    'type: "IMAELoss" imae_loss_param { epsilon: -1e-6 }': (
        [(2, 5), (2,)], "imae_loss_param.epsilon must be a number, 0 or above, got -1e-06"
    ),
    'type: "DMLoss" dm_loss_param { epsilon: nan }': (
        [(2, 5), (2,)], "dm_loss_param.epsilon must be a number, 0 or above, got nan"
    ),
    'type: "GCELoss" gce_loss_param { q: 0 }': (
        [(2, 5), (2,)], "gce_loss_param.q must be a number above 0, got 0"
    ),
    'type: "SCELoss" sce_loss_param { alpha: -1 }': (
        [(2, 5), (2,)], "sce_loss_param.alpha must be a number, 0 or above, got -1"
    ),
    'type: "SCELoss" sce_loss_param { log_zero: 0 }': (
        [(2, 5), (2,)], "sce_loss_param.log_zero must be below 0, and at least -10000, got 0"
    ),
    'type: "NCELoss" nce_loss_param { gamma: nan }': (
        [(2, 5), (2,)], "nce_loss_param.gamma must be a number, 0 or above, got nan"
    ),
    'type: "AULLoss" aul_loss_param { a: 1 }': (
        [(2, 5), (2,)], "aul_loss_param.a must be a number above 1, got 1"
    ),
    'type: "AGCELoss" agce_loss_param { a: 1000 q: 20 }': (
        [(2, 5), (2,)],
        "agce_loss_param.a and q make losses that are too large for single precision: 1001^20",
    ),
    'type: "AELLoss" ael_loss_param { a: 0 }': (
        [(2, 5), (2,)], "ael_loss_param.a must be a number, 1e-06 or above, got 0"
    ),
    'type: "TCELoss" tce_loss_param { t: 0 }': (
        [(2, 5), (2,)], "tce_loss_param.t must be a whole number from 1 to 100, got 0"
    ),
    'type: "LabelSmoothingLoss" label_smoothing_loss_param { smoothing: 1.5 }': (
        [(2, 5), (2,)], "label_smoothing_loss_param.smoothing must be a number from 0 to 1, got 1.5"
    ),
    'type: "BootstrappingLoss" bootstrapping_loss_param { beta: -0.5 }': (
        [(2, 5), (2,)], "bootstrapping_loss_param.beta must be a number from 0 to 1, got -0.5"
    ),
    'type: "CorrectionLoss"': (
        [(2, 5), (2,)],
        "correction_loss_param.transition must be given, or source, the file that has it; not both",
    ),
    'type: "CorrectionLoss" correction_loss_param { transition: [1, 0, 1] }': (
        [(2, 2), (2,)], "correction_loss_param.transition must have C * C numbers, row by row, got 3"
    ),
    'type: "CorrectionLoss" correction_loss_param { transition: [1, 0, 0, 1] }': (
        [(2, 5), (2,)], "correction_loss_param is for 2 classes; axis 1 of (2, 5) has 5"
    ),
    'type: "CorrectionLoss" correction_loss_param { transition: [1, 0, 0.5, 0.6] }': (
        [(2, 2), (2,)],
        "correction_loss_param.transition: each row must sum to 1, row 1 sums to 1.1; row i has the "
        "probabilities of the labels of class i",
    ),
    'type: "CorrectionLoss" correction_loss_param { transition: [2, -1, 0, 1] }': (
        [(2, 2), (2,)], "correction_loss_param.transition must have probabilities, from 0 to 1"
    ),
    'type: "CorrectionLoss" correction_loss_param { transition: [1, 0, 1, 0] }': (
        [(2, 2), (2,)],
        "correction_loss_param.transition: no class is ever labelled 1 (column 1 is 0), so the loss of such "
        "a label would be infinite; give the column a small probability",
    ),
    'type: "CorrectionLoss" correction_loss_param { direction: BACKWARD transition: [0.5, 0.5, 0.5, 0.5] }': (
        [(2, 2), (2,)],
        "correction_loss_param.transition: the matrix has no usable inverse (it is singular, or nearly so)",
    ),
    'type: "CorrectionLoss" correction_loss_param { source: "no/such/file" }': (
        [(2, 2), (2,)],
        "correction_loss_param.source: cannot read 'no/such/file': No such file or directory",
    ),
    'type: "IMAELoss" ': ([(2, 1), (2,)], "at least 2 classes are needed; axis 1 of (2, 1) has 1"),
    'type: "IMAELoss"': (
        [(2, 5, 3), (2,)],
        "Number of labels must match number of predictions; e.g., if softmax axis == 1 and prediction shape "
        "is (N, C, H, W), label count (number of labels) must be N*H*W, with integer values in "
        "{0, 1, ..., C-1}.; got predictions (2, 5, 3), labels (2,), axis 1",
    ),
    'type: "ExtractProb"': (
        [(2, 5, 3), (2,)],
        "Number of labels must match number of predictions; e.g., if class axis == 1 and prediction shape "
        "is (N, C, H, W), label count (number of labels) must be N*H*W, with integer values in "
        "{0, 1, ..., C-1}.; got predictions (2, 5, 3), labels (2,), axis 1",
    ),
    'type: "MSELoss"': ([(2, 5), (2,), (2,)], "MSELoss Layer takes 2 bottom blob(s) as input.; got 3"),
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_refusals(text: str) -> None:
    shapes, message = REFUSED[text]
    with pytest.raises(LayerError) as error:
        build(text, *shapes)
    assert str(error.value).partition("): ")[2] == message


@pytest.mark.parametrize(
    "type_name, flags", [("MAELoss", [True, True]), ("UnifiedWeightLoss", [True, False, True])]
)
def test_no_gradient_goes_to_labels_and_probabilities(type_name: str, flags: list[bool]) -> None:
    text = f'type: "{type_name}"' + "".join(f" propagate_down: {str(flag).lower()}" for flag in flags)
    logits, label = batch(torch.float32)
    bottoms = [logits, label, label[:, None]][: len(flags)]
    layer = build(text, *(b.shape for b in bottoms))
    top = layer(*bottoms)
    with pytest.raises(LayerError) as error:
        top.backward()
    last = len(flags) - 1
    assert str(error.value) == (
        f"layer 'loss' ({type_name}): {type_name} Layer cannot backpropagate to label inputs; "
        f"set propagate_down to false for bottom 'bottom{last}'"
    )


# -- the weights alone ---------------------------------------------------------------------------------------


def test_variances_are_the_papers() -> None:
    """Equations 23 and 24, to the printed digit."""
    assert f"{weights.variance(weights.mae):.2f}" == "0.09"
    assert f"{weights.variance(partial(weights.imae, t=8)):.2f}" == "4.55"


INTEGRALS: list[tuple[weights.Weight, float]] = [
    (weights.cce, 1),
    (weights.mae, 2 / 3),
    (weights.mse, 1 / 3),
    (partial(weights.gce, q=0.7), 2 * (1 / 1.7 - 1 / 2.7)),
    (partial(weights.gce, q=0.01), 2 * (1 / 1.01 - 1 / 2.01)),
    (partial(weights.imae, t=8), math.exp(2) * math.sqrt(math.pi / 8) * math.erf(math.sqrt(8) / 2)),
    (partial(weights.imae, t=320), math.exp(80) * math.sqrt(math.pi / 320) * math.erf(math.sqrt(320) / 2)),
    (partial(weights.dm, lambda_=0, beta=8), math.expm1(8) / 8),
    *(
        (partial(weights.dm, lambda_=a, beta=b), beta_series(a, b))
        for a in (0.01, 0.1, 0.5, 1, 2)
        for b in (0.5, 8.0)
    ),
]


@pytest.mark.parametrize("weight, integral", INTEGRALS)
def test_mean_is_the_integral(weight: weights.Weight, integral: float) -> None:
    assert weights.mean(weight) == pytest.approx(integral, rel=tolerance("integral", "float64").rtol)


def test_figure_1() -> None:
    curves = weights.figure_1(points=5)
    wanted = {
        "CCE": [2, 1.5, 1, 0.5, 0],
        "MAE": [0, 0.75, 1, 0.75, 0],
        "IMAE, T = 8": [1, math.exp(1.5), math.exp(2), math.exp(1.5), 1],
    }
    assert list(curves) == list(wanted)
    for name, (p, w) in curves.items():
        assert p.tolist() == [0, 0.25, 0.5, 0.75, 1]
        close(w, np.array(wanted[name]), torch.float64)


def test_weights_of_one_family_meet() -> None:
    p, _ = weights.curve(weights.cce)
    rest = 1 - p
    close(weights.dm(p, rest, 1, 8), weights.imae(p, rest, 8), torch.float64)
    close(2 * weights.gce(p, rest, 1), weights.mae(p, rest), torch.float64)
    close(weights.gce(p, rest, 0), weights.cce(p, rest), torch.float64)


@pytest.mark.parametrize("lambda_, beta", [(1, 8), (0.5, 8), (0, 3), (2, -4)])
def test_largest_exponent(lambda_: float, beta: float) -> None:
    _, w = weights.curve(partial(weights.dm, lambda_=lambda_, beta=beta), points=10001)
    close(w.max().log(), weights.largest_exponent(lambda_, beta), torch.float32)


# -- a net in the authors' style -----------------------------------------------------------------------------

AUTHORS_NET = """
name: "cifar100_style"
input: "data" input_dim: 11 input_dim: 3 input_dim: 7 input_dim: 5
input: "label" input_dim: 11 input_dim: 1 input_dim: 1 input_dim: 1
layer {
  name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  param { lr_mult: 1 decay_mult: 1 }
  param { lr_mult: 2 decay_mult: 0 }
  convolution_param {
    num_output: 13 kernel_size: 3 pad: 1 stride: 2
    weight_filler { type: "msra" } bias_filler { type: "constant" value: 0 }
  }
}
layer {
  name: "conv1_bn" type: "BatchNorm" bottom: "conv1" top: "conv1"
  param { lr_mult: 0 decay_mult: 0 }
  param { lr_mult: 0 decay_mult: 0 }
  param { lr_mult: 0 decay_mult: 0 }
}
layer { name: "conv1_scale" type: "Scale" bottom: "conv1" top: "conv1" scale_param { bias_term: true } }
layer { name: "conv1_relu" type: "ReLU" bottom: "conv1" top: "conv1" }
layer {
  name: "classifier" type: "InnerProduct" bottom: "conv1" top: "logits"
  param { lr_mult: 1 decay_mult: 1 }
  param { lr_mult: 2 decay_mult: 0 }
  inner_product_param { num_output: 5 weight_filler { type: "msra" } bias_filler { type: "constant" } }
}
layer { name: "probs" type: "Softmax" bottom: "logits" top: "probs" }
layer {
  name: "prob_groundtruth" type: "ExtractProb" bottom: "probs" bottom: "label" top: "prob_groundtruth"
  propagate_down: 0 propagate_down: 0
}
layer {
  name: "loss" type: "%s" bottom: "logits" bottom: "label" bottom: "prob_groundtruth" top: "loss"
  loss_weight: 1
  propagate_down: 1 propagate_down: 0 propagate_down: 0
  %s
}
"""
AUTHORS_LOSSES: dict[str, tuple[str, str, Callable[[Tensor, Tensor], tuple[float, Array]]]] = {
    "IMAE": ("UnifiedWeightLoss", "loss_param { lamda_p: 1 scale: 8 }", partial(unified, 1, 8)),
    "DM": ("UnifiedWeightLoss", "loss_param { lamda_p: 0.5 scale: 8 }", partial(unified, 0.5, 8)),
    "MAE": ("WeightedSoftmaxWithLoss", "", partial(weighted, "MAE")),
}


@pytest.mark.parametrize("name", AUTHORS_LOSSES)
def test_a_net_in_the_authors_style(name: str) -> None:
    """It builds, its logits' gradient is the formulas', and steps along the gradients fit the labels."""
    type_name, loss_param, formula = AUTHORS_LOSSES[name]
    param = parse_net(AUTHORS_NET % (type_name, loss_param))
    param.state.phase = TRAIN
    net = Net(param, Run(CaffeRandom(7)))
    draw = np.random.default_rng(5)
    data = {
        "data": torch.tensor(draw.standard_normal((11, 3, 7, 5)), dtype=torch.float32),
        "label": torch.arange(11.0).fmod(5).view(11, 1, 1, 1),
    }
    probability = []
    for _ in range(10):
        blobs = net(data, keep=["logits", "prob_groundtruth"])
        logits = blobs["logits"]
        logits.retain_grad()
        loss = net.loss(blobs)
        loss.backward()
        assert logits.grad is not None
        want_loss, want_diff = formula(logits.detach(), data["label"].flatten())
        close(loss.detach(), want_loss, torch.float32)
        close(logits.grad, want_diff, torch.float32)
        p = blobs["prob_groundtruth"]
        assert p.shape == (11, 1)
        close(p, parts(logits.detach(), data["label"].flatten())[2], torch.float32)
        probability.append(float(p.mean()))
        with torch.no_grad():
            for blob, lr_mult in zip(net.learnable, net.lr_mults, strict=True):
                if blob.grad is not None:
                    blob -= 0.1 * lr_mult * blob.grad
                    blob.grad = None
    assert probability[-1] > probability[0]
