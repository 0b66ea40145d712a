"""The losses against their formulas, written in numpy as the papers print them, in double precision.

A reference is a function of the softmax q of one example and of its label y. Its gradient is that of
differences.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from tolerances import tolerance
from torch import Tensor

import imae
from imae import losses
from imae.files.errors import LayerError, LossError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import Layer
from imae.layers.registry import layer_class
from imae.layers.run import Run
from imae.losses.designed import DesignedLoss
from imae.losses.loss import Loss
from imae.prototxt import LayerParameter

Array = NDArray[np.floating[Any]]
Formula = Callable[[Array, int], Any]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
CLASSES = 5
A = np.log(1e-4)
# Not symmetric, so that a transposed matrix is noticed; a zero in it.
MATRIX = np.array(
    [
        [0.7, 0.2, 0.1, 0, 0],
        [0.05, 0.8, 0.05, 0.05, 0.05],
        [0.1, 0.1, 0.6, 0.1, 0.1],
        [0, 0.3, 0, 0.7, 0],
        [0.25, 0, 0.25, 0, 0.5],
    ]
)
NUMBERS = ", ".join(map(str, MATRIX.flatten()))


def onehot(y: int) -> Array:
    return np.eye(CLASSES)[y]


def cross_entropy(t: Array, q: Array) -> Any:
    return -(t * np.log(q)).sum()


def reverse_cross_entropy(q: Array, y: int, log_zero: float = A) -> Any:
    return -(q * np.where(onehot(y) == 1, 0, log_zero)).sum()


def focal(q: Array, y: int, gamma: float) -> Any:
    losses = -((1 - q) ** gamma) * np.log(q)
    return losses[y] / losses.sum()


def hard(q: Array) -> Array:
    return onehot(int(q.argmax()))


# The loss, the layer that is the same, its formula. Two of each that has arguments.
REFERENCES: dict[str, tuple[Callable[..., Loss], str, Formula]] = {
    "CCE": (losses.CCE, 'type: "SoftmaxWithLoss"', lambda q, y: cross_entropy(onehot(y), q)),
    "MAE": (losses.MAE, 'type: "MAELoss"', lambda q, y: abs(q - onehot(y)).sum()),
    "MSE": (losses.MSE, 'type: "MSELoss"', lambda q, y: (1 - q[y]) ** 2),
    "GCE": (losses.GCE, 'type: "GCELoss"', lambda q, y: (1 - q[y] ** 0.7) / 0.7),
    "GCE 0.25": (
        lambda **o: losses.GCE(q=0.25, **o),
        'type: "GCELoss" gce_loss_param { q: 0.25 }',
        lambda q, y: (1 - q[y] ** 0.25) / 0.25,
    ),
    "SCE": (
        losses.SCE,
        'type: "SCELoss"',
        lambda q, y: 0.1 * cross_entropy(onehot(y), q) + reverse_cross_entropy(q, y),
    ),
    "SCE 6 0.5 -4": (
        lambda **o: losses.SCE(6, 0.5, -4, **o),
        'type: "SCELoss" sce_loss_param { alpha: 6 beta: 0.5 log_zero: -4 }',
        lambda q, y: 6 * cross_entropy(onehot(y), q) + 0.5 * reverse_cross_entropy(q, y, -4),
    ),
    "AUL": (losses.AUL, 'type: "AULLoss"', lambda q, y: ((5.5 - q[y]) ** 3 - 4.5**3) / 3),
    "AUL 1.5 0.5": (
        lambda **o: losses.AUL(1.5, 0.5, **o),
        'type: "AULLoss" aul_loss_param { a: 1.5 q: 0.5 }',
        lambda q, y: ((1.5 - q[y]) ** 0.5 - 0.5**0.5) / 0.5,
    ),
    "AGCE": (losses.AGCE, 'type: "AGCELoss"', lambda q, y: (1.6**0.6 - (0.6 + q[y]) ** 0.6) / 0.6),
    "AGCE 4 0.25": (
        lambda **o: losses.AGCE(4, 0.25, **o),
        'type: "AGCELoss" agce_loss_param { a: 4 q: 0.25 }',
        lambda q, y: (5**0.25 - (4 + q[y]) ** 0.25) / 0.25,
    ),
    "AEL": (losses.AEL, 'type: "AELLoss"', lambda q, y: np.exp(-q[y] / 2.5)),
    "TCE": (losses.TCE, 'type: "TCELoss"', lambda q, y: (1 - q[y]) + (1 - q[y]) ** 2 / 2),
    "TCE 6": (
        lambda **o: losses.TCE(6, **o),
        'type: "TCELoss" tce_loss_param { t: 6 }',
        lambda q, y: sum((1 - q[y]) ** i / i for i in range(1, 7)),
    ),
    "NCE": (losses.NCE, 'type: "NCELoss"', lambda q, y: focal(q, y, 0)),
    "NFL": (
        lambda **o: losses.NCE(gamma=0.5, **o),
        'type: "NCELoss" nce_loss_param { gamma: 0.5 }',
        lambda q, y: focal(q, y, 0.5),
    ),
    "NCE + RCE": (
        lambda **o: losses.NCE("RCE", **o),
        'type: "NCELoss" nce_loss_param { passive: RCE }',
        lambda q, y: focal(q, y, 0) + reverse_cross_entropy(q, y),
    ),
    "NCE + MAE": (
        lambda **o: losses.NCE("MAE", alpha=10, beta=0.5, **o),
        'type: "NCELoss" nce_loss_param { passive: MAE alpha: 10 beta: 0.5 }',
        lambda q, y: 10 * focal(q, y, 0) + 0.5 * abs(q - onehot(y)).sum(),
    ),
    "label smoothing": (
        losses.LabelSmoothing,
        'type: "LabelSmoothingLoss"',
        lambda q, y: cross_entropy(0.9 * onehot(y) + 0.1 / CLASSES, q),
    ),
    "soft bootstrapping": (
        losses.Bootstrapping,
        'type: "BootstrappingLoss"',
        lambda q, y: cross_entropy(0.95 * onehot(y) + 0.05 * q, q),
    ),
    "hard bootstrapping": (
        lambda **o: losses.Bootstrapping("HARD", **o),
        'type: "BootstrappingLoss" bootstrapping_loss_param { kind: HARD }',
        lambda q, y: cross_entropy(0.8 * onehot(y) + 0.2 * hard(q), q),
    ),
    "soft bootstrapping 0.5": (
        lambda **o: losses.Bootstrapping(beta=0.5, **o),
        'type: "BootstrappingLoss" bootstrapping_loss_param { beta: 0.5 }',
        lambda q, y: cross_entropy(0.5 * onehot(y) + 0.5 * q, q),
    ),
    "forward correction": (
        lambda **o: losses.ForwardCorrection(MATRIX, **o),
        f'type: "CorrectionLoss" correction_loss_param {{ transition: [{NUMBERS}] }}',
        lambda q, y: -np.log((MATRIX.T @ q)[y]),
    ),
    "backward correction": (
        lambda **o: losses.BackwardCorrection(MATRIX, **o),
        f'type: "CorrectionLoss" correction_loss_param {{ direction: BACKWARD transition: [{NUMBERS}] }}',
        lambda q, y: np.linalg.solve(MATRIX, -np.log(q))[y],
    ),
}
NAMES = pytest.mark.parametrize("name", REFERENCES)
# Their gradient is designed and not the value's.
DESIGNED: dict[str, tuple[Callable[..., Loss], str, Callable[[Any], Any]]] = {
    "IMAE": (losses.IMAE, 'type: "IMAELoss"', lambda p: np.exp(8 * p * (1 - p))),
    "IMAE 0.5": (
        lambda **o: losses.IMAE(t=0.5, epsilon=0, **o),
        'type: "IMAELoss" imae_loss_param { t: 0.5 epsilon: 0 }',
        lambda p: np.exp(0.5 * p * (1 - p)),
    ),
    "DM": (
        lambda **o: losses.DM(0.5, 6, **o),
        'type: "DMLoss" dm_loss_param { lambda: 0.5 beta: 6 }',
        lambda p: np.exp(6 * p**0.5 * (1 - p)),
    ),
}


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max())
    result: Array = e / e.sum()
    return result


def reference(formula: Formula, logits: Array, labels: Array) -> tuple[Array, Array]:
    """The loss of each example and, by differences, the gradient of their sum."""

    def value(row: Array, y: int) -> float:
        return float(formula(softmax(row), y))

    step, gradient = 1e-5, np.zeros_like(logits)
    for i, k in np.ndindex(logits.shape):
        up, down = logits[i].copy(), logits[i].copy()
        up[k] += step
        down[k] -= step
        gradient[i, k] = (value(up, labels[i]) - value(down, labels[i])) / (2 * step)
    return np.array([value(row, y) for row, y in zip(logits, labels, strict=True)]), gradient


def batch(dtype: torch.dtype = torch.float64, examples: int = 7) -> tuple[Tensor, Tensor]:
    """Logits and labels."""
    draw = np.random.default_rng(4)
    logits = torch.tensor(2 * draw.standard_normal((examples, CLASSES)), dtype=dtype)
    return logits, torch.tensor(draw.integers(0, CLASSES, examples))


def passes(loss: Loss | Layer, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient of its sum."""
    leaf = logits.clone().requires_grad_()
    result: Tensor = loss(leaf, labels)
    result.sum().backward()
    assert leaf.grad is not None
    return result.detach(), leaf.grad


def layer(text: str, *shapes: tuple[int, ...]) -> Layer:
    param = text_format.Parse(f'name: "loss" bottom: "a" bottom: "b" top: "top" {text}', LayerParameter())
    made = layer_class(param.type)(param)
    made.build(shapes, Run(CaffeRandom(1)))
    return made


def close(got: Tensor, want: Any, what: str = "formula") -> None:
    """Compare with a tolerance, an absolute one relative to the largest value wanted."""
    rtol, atol, _ = tolerance(
        what, "float64" if what == "gradient" else str(got.dtype).removeprefix("torch.")
    )
    want = np.asarray(want, np.float64)
    np.testing.assert_allclose(got.double().numpy(), want, rtol=rtol, atol=atol * abs(want).max())


# -- formulas ------------------------------------------------------------------------------------------------


@NAMES
def test_value_and_gradient_are_the_formulas(name: str) -> None:
    make, _, formula = REFERENCES[name]
    logits, labels = batch()
    values, gradient = reference(formula, logits.numpy(), labels.numpy())
    got, diff = passes(make(reduction="none"), logits, labels)
    close(got, values)
    close(diff, gradient, "gradient")
    close(passes(make(reduction="sum"), logits, labels)[0], values.sum())
    got, diff = passes(make(), logits, labels)
    close(got, values.mean())
    close(diff, gradient / len(values), "gradient")


@NAMES
def test_in_single_precision_the_loss_is_near(name: str) -> None:
    make, _, formula = REFERENCES[name]
    logits, labels = batch(torch.float32)
    values, _ = reference(formula, logits.double().numpy(), labels.numpy())
    single, diff = passes(make(reduction="none"), logits, labels)
    _, double = passes(make(reduction="none"), logits.double(), labels)
    rtol, atol, _ = tolerance("same arithmetic")
    np.testing.assert_allclose(single, values, rtol=rtol, atol=atol * abs(values).max())
    np.testing.assert_allclose(diff, double, rtol=rtol, atol=atol * float(double.abs().max()))


@DTYPES
@pytest.mark.parametrize("name", [*REFERENCES, *DESIGNED])
def test_the_layer_has_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    """A prototxt has its numbers in single precision."""
    make, text, _ = {**REFERENCES, **DESIGNED}[name]  # type: ignore[dict-item]
    logits, labels = batch(dtype)
    of_layer = passes(layer(text, logits.shape, labels.shape), logits, labels.to(dtype))
    of_module = passes(make(), logits, labels)
    for got, want in zip(of_layer, of_module, strict=True):
        rtol, atol, _ = tolerance("same arithmetic" if dtype == torch.float32 else "gradient", str(dtype)[6:])
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", DESIGNED)
def test_the_designed_gradient_has_the_papers_weights(name: str) -> None:
    """Equation 21: the L1 norm of an example's gradient; the value is MAE's."""
    make, _, weight = DESIGNED[name]
    logits, labels = batch()
    values, diff = passes(make(reduction="none"), logits, labels)
    q = np.array([softmax(row) for row in logits.numpy()])
    p = q[np.arange(len(q)), labels]
    close(values, 2 * (1 - p))
    rtol, atol, _ = tolerance("same arithmetic")  # the epsilon takes 1e-6 / (1 - p) away
    np.testing.assert_allclose(diff.abs().sum(1), weight(p), rtol=rtol, atol=atol)
    torch.testing.assert_close(passes(make(reduction="sum"), logits, labels)[1], diff, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["MAE", "MSE", "GCE", "IMAE", "DM"])
def test_sum_of_weights(name: str) -> None:
    """Value and gradient divided by the sum of the examples' weights."""
    made = getattr(losses, name)
    logits, labels = batch()
    values, diff = passes(made(reduction="none"), logits, labels)
    plain: DesignedLoss = made()
    q = torch.softmax(logits, 1).gather(1, labels[:, None])[:, 0]
    weight = plain.weight(q, 1 - q)
    got, got_diff = passes(made(normalizer="SUM_OF_WEIGHTS"), logits, labels)
    close(got, (weight * values).sum() / (1e-8 + weight.sum()))
    close(got_diff, diff / (1e-8 + weight.sum()))


# -- identities ----------------------------------------------------------------------------------------------

IDENTITIES: dict[str, tuple[Loss, Loss, float]] = {
    "GCE with q -> 0 is CCE": (losses.GCE(q=1e-13), losses.CCE(), 1),
    "GCE with q = 1 is half of MAE": (losses.GCE(q=1), losses.MAE(), 0.5),
    "SCE with beta 0 is alpha CCE": (losses.SCE(3, 0), losses.CCE(), 3),
    "SCE with alpha 0 is |A| / 2 MAE": (losses.SCE(0, 1), losses.MAE(), -A / 2),
    "label smoothing of 0 is CCE": (losses.LabelSmoothing(0), losses.CCE(), 1),
    "soft bootstrapping with beta 1 is CCE": (losses.Bootstrapping(beta=1), losses.CCE(), 1),
    "hard bootstrapping with beta 1 is CCE": (losses.Bootstrapping("HARD", 1), losses.CCE(), 1),
    "forward correction with the identity is CCE": (losses.ForwardCorrection(np.eye(5)), losses.CCE(), 1),
    "backward correction with the identity is CCE": (losses.BackwardCorrection(np.eye(5)), losses.CCE(), 1),
    "AGCE with a -> 0 is GCE": (losses.AGCE(1e-15, 0.7), losses.GCE(0.7), 1),
    "AGCE with q = 1 is half of MAE": (losses.AGCE(3, 1), losses.MAE(), 0.5),
    "AUL with q = 1 is half of MAE": (losses.AUL(3, 1), losses.MAE(), 0.5),
    "TCE with t = 1 is half of MAE": (losses.TCE(1), losses.MAE(), 0.5),
    "DM with lambda 1 is IMAE": (losses.DM(1, 5), losses.IMAE(5), 1),
    "NCE without its active part is the passive": (losses.NCE("MAE", alpha=0), losses.MAE(), 1),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identities(name: str) -> None:
    one, other, factor = IDENTITIES[name]
    logits, labels = batch()
    (value, diff), (want, want_diff) = passes(one, logits, labels), passes(other, logits, labels)
    close(value, factor * want)
    close(diff, factor * want_diff)


def test_those_that_torch_has() -> None:
    logits, labels = batch()
    for loss, smoothing in ((losses.CCE(), 0.0), (losses.LabelSmoothing(0.3), 0.3)):
        theirs = passes(
            lambda z, y, s=smoothing: torch.nn.functional.cross_entropy(z, y, label_smoothing=s),  # type: ignore[misc, arg-type]
            logits,
            labels,
        )
        for got, want in zip(passes(loss, logits, labels), theirs, strict=True):
            close(got, want)


def test_the_correct_correction_is_unbiased() -> None:
    """The mean of the backward correction over the noise is the CCE of the true label, as in theorem 1."""
    logits, _ = batch(examples=1)
    per_label = losses.BackwardCorrection(MATRIX, reduction="none")(
        logits.expand(CLASSES, CLASSES), torch.arange(CLASSES)
    )
    close(torch.tensor(MATRIX) @ per_label, -torch.log_softmax(logits[0], 0))


# -- what all have -------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("name", [*REFERENCES, *DESIGNED])
@pytest.mark.parametrize("shift", [0, 1e4, -1e4])
def test_saturated_logits_have_finite_losses_and_gradients(
    name: str, shift: float, dtype: torch.dtype
) -> None:
    make, *_ = {**REFERENCES, **DESIGNED}[name]  # type: ignore[dict-item]
    scores = [[200, -200, 0, 0, 0], [-200, 200, 0, 0, 0], [1e30, 0, 0, 0, -1e30], [-3e38, 3e38, 3e38, 0, 0]]
    loss, diff = passes(
        make(reduction="none"), torch.tensor(scores, dtype=dtype) + shift, torch.zeros(4).long()
    )
    assert loss.isfinite().all()
    assert diff.isfinite().all()


@pytest.mark.parametrize("name", [*REFERENCES, *DESIGNED])
def test_images_and_ignored_labels(name: str) -> None:
    """(N, C, H, W) is N * H * W examples; those with the ignored label are as if they were not there."""
    make, *_ = {**REFERENCES, **DESIGNED}[name]  # type: ignore[dict-item]
    logits, labels = batch(examples=24)
    ignored = torch.zeros(24, dtype=torch.bool)
    ignored[[1, 2, 12, 20]] = True
    want, want_diff = passes(make(), logits[~ignored], labels[~ignored])
    logits[1], logits[12, 2] = torch.nan, torch.inf
    labels[ignored] = 255
    images = logits.view(2, 3, 4, 5).permute(0, 3, 1, 2)
    for shape in ((2, 3, 4), (2, 1, 3, 4)):
        got, diff = passes(make(ignore_label=255), images, labels.view(shape))
        close(got, want)
        close(diff.permute(0, 2, 3, 1).reshape(24, 5)[~ignored], want_diff)
        each = make(ignore_label=255, reduction="none")(images, labels.view(shape))
        assert each.shape == shape
        assert (each.flatten()[ignored] == 0).all()
    for reduction in ("mean", "sum"):
        got, diff = passes(make(ignore_label=255, reduction=reduction), images, torch.full((2, 3, 4), 255))
        assert got == 0
        assert (diff == 0).all()


def test_the_constructors_defaults_are_the_prototxts() -> None:
    pairs = {
        "GCE": "gce", "IMAE": "imae", "DM": "dm", "SCE": "sce", "AUL": "aul", "AGCE": "agce", "AEL": "ael",
        "TCE": "tce", "NCE": "nce", "LabelSmoothing": "label_smoothing",
    }  # fmt: skip
    for name, field in pairs.items():
        loss: Loss = getattr(losses, name)()
        message = getattr(LayerParameter(), f"{field}_loss_param")
        assert loss.settings
        for setting in loss.settings:
            assert getattr(loss, setting) == pytest.approx(getattr(message, setting.rstrip("_"))), setting


def test_every_loss_has_a_reference_and_a_source() -> None:
    used = {type(make()) for make, *_ in [*REFERENCES.values(), *DESIGNED.values()]}
    assert used == {getattr(losses, name) for name in losses.__all__}
    for name in losses.__all__:
        text = " ".join((getattr(losses, name).__doc__ or "").split())
        assert re.search(r"arXiv \d{4}\.\d{4,5}|IJCAI 2020|T as in ForwardCorrection", text), name
        assert "ayer: " in text or "layer is " in text, name


def test_the_name_resolves() -> None:
    assert imae.losses is losses
    assert repr(imae.losses.IMAE(t=4, ignore_label=7)) == "IMAE(t=4, epsilon=1e-06, ignore_label=7)"
    by_size = imae.losses.IMAE(normalizer="BATCH_SIZE")
    assert repr(by_size) == "IMAE(t=8, epsilon=1e-06, normalizer='BATCH_SIZE')"
    assert repr(imae.losses.IMAE(reduction="sum")).startswith("IMAE(t=8, epsilon=1e-06")
    assert repr(imae.losses.MAE(normalizer="SUM_OF_WEIGHTS")) == "MAE(normalizer='SUM_OF_WEIGHTS')"


def test_imae_and_dm_are_divided_by_the_sum_of_weights_where_they_are_reduced_to_a_mean() -> None:
    for loss in (losses.IMAE, losses.DM):
        assert loss().by_weights and not loss(normalizer="BATCH_SIZE").by_weights
        assert not loss(reduction="sum").by_weights and not loss(reduction="none").by_weights
    assert not losses.MAE().by_weights


def test_labels_between_two_classes_are_refused() -> None:
    """A program that mixes labels must not train on cut-off ones; whole numbers in any type are classes."""
    logits, labels = torch.zeros(3, 10), torch.tensor([0.0, 9.0, 255.0])
    loss = losses.IMAE(ignore_label=255)
    assert torch.equal(loss(logits, labels), loss(logits, labels.long()))
    with pytest.raises(LossError, match=r"IMAE: label 1\.75 is no whole number: .* are 0 to 9"):
        losses.IMAE()(logits, torch.tensor([0.0, 1.75, 2.0]))
    with pytest.raises(LossError, match=r"IMAE: label nan is no whole number"):
        losses.IMAE()(logits, torch.tensor([0.0, float("nan"), 2.0]))


def test_a_loss_can_be_compiled_away_from_the_host() -> None:
    """Nothing reads a value: on the meta device there are none."""
    logits, labels = (bottom.to("meta") for bottom in batch())
    for make, *_ in [*REFERENCES.values(), *DESIGNED.values()]:
        value, diff = passes(make(ignore_label=1).to("meta"), logits, labels)
        assert (value.shape, diff.shape) == ((), logits.shape)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "reduction": (
        lambda: losses.MAE(reduction="all"),  # type: ignore[arg-type]
        "reduction must be one of mean, sum, none, got 'all'",
    ),
    "normalizer": (
        lambda: losses.MAE(normalizer="SUM"),  # type: ignore[arg-type]
        "normalizer must be one of BATCH_SIZE, SUM_OF_WEIGHTS, got 'SUM'",
    ),
    "sum of weights": (
        lambda: losses.MAE(normalizer="SUM_OF_WEIGHTS", reduction="none"),
        "normalizer SUM_OF_WEIGHTS needs reduction \"mean\", got 'none'",
    ),
    "passive": (
        lambda: losses.NCE("GCE"),  # type: ignore[arg-type]
        "passive must be one of NONE, RCE, MAE, got 'GCE'",
    ),
    "kind": (
        lambda: losses.Bootstrapping("soft"),  # type: ignore[arg-type]
        "kind must be one of SOFT, HARD, got 'soft'",
    ),
    "t": (lambda: losses.TCE(2.5), "t must be a whole number from 1 to 100, got 2.5"),  # type: ignore[arg-type]
    "matrix": (
        lambda: losses.ForwardCorrection([[1.0, 0]]),
        "transition must be a square matrix, of 2 classes or more, got the shape (1, 2)",
    ),
    "no matrix": (lambda: losses.ForwardCorrection("T.txt"), "transition must be a matrix of numbers: "),  # type: ignore[arg-type]
    "axes": (
        lambda: losses.MAE()(torch.zeros(4), torch.zeros(4)),
        "MAE: logits must have the shape (N, C, ...) with at least 2 classes, got (4,)",
    ),
    "whole numbers": (
        lambda: losses.MAE()(torch.zeros(4, 3).long(), torch.zeros(4)),
        "MAE: logits must be floating-point numbers, got torch.int64",
    ),
    "labels": (
        lambda: losses.MAE()(torch.zeros(4, 3), torch.zeros(3)),
        "MAE: logits (4, 3) need labels (4,), got (3,)",
    ),
    "classes": (
        lambda: losses.ForwardCorrection(MATRIX)(torch.zeros(4, 3), torch.zeros(4)),
        "ForwardCorrection is made for 5 classes, the logits have 3",
    ),
    "range": (
        lambda: losses.MAE()(torch.zeros(2, 3), torch.tensor([0, 3])),
        "MAE: label 3 is out of range: there are 3 classes, so labels are 0 to 2; mend the labels, or name "
        "one to ignore by ignore_label",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(LossError) as error:
        call()
    assert str(error.value).startswith(message)


# -- the matrix of a prototxt --------------------------------------------------------------------------------


def test_a_matrix_from_a_file_is_that_of_the_prototxt(tmp_path: Path) -> None:
    path = tmp_path / "T.csv"
    path.write_text("# row: class, column: label\n\n" + "\n".join(", ".join(map(str, row)) for row in MATRIX))
    logits, labels = batch()
    for direction in ("FORWARD", "BACKWARD"):
        source, numbers = (
            layer(
                f'type: "CorrectionLoss" correction_loss_param {{ direction: {direction} {field} }}',
                logits.shape,
                labels.shape,
            )
            for field in (f'source: "{path}"', f"transition: [{NUMBERS}]")
        )
        for got, want in zip(
            passes(source, logits, labels.double()), passes(numbers, logits, labels.double()), strict=True
        ):
            rtol, atol, _ = tolerance("same arithmetic")
            torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"1 0\n0 one\n", "line 2: expected numbers, got '0 one'"),
        (b"1 0\n", "must have as many numbers in each row as rows; it has 1 rows, one with 2 numbers"),
        (b"\xff\xfe", "is no text"),
        (b"", "transition must be a square matrix, of 2 classes or more, got the shape (0,)"),
        (b"nan 0\n0 1\n", "transition must have probabilities, from 0 to 1"),
    ],
)
def test_files_that_are_no_matrix(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "T.txt"
    path.write_bytes(content)
    with pytest.raises(LayerError) as error:
        layer(f'type: "CorrectionLoss" correction_loss_param {{ source: "{path}" }}', (2, 2), (2,))
    assert str(error.value).startswith("layer 'loss' (CorrectionLoss): correction_loss_param.")
    assert message in str(error.value)
