"""Faster R-CNN's and R-FCN's losses, BoxAnnotatorOHEM, PRE_FIXED, scale_train: beyond the recorded cases."""

from __future__ import annotations

import pytest
import torch
from google.protobuf import text_format
from single_layer import build, check_contract, check_gradient, check_onnx, diffs, normal, refused, run
from tolerances import tolerance
from torch import Tensor

from imae.files.errors import LayerError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.forks.smooth_l1_loss_rcnn import RCNNSmoothL1Loss
from imae.layers.run import Run
from imae.prototxt import LayerParameter

RTOL, ATOL, _ = tolerance("same arithmetic")
A, B = normal(3, 4, 2, 5), 2 * normal(3, 4, 2, 5, seed=1)
W, OUTSIDE = normal(3, 4, 2, 5, seed=2), normal(3, 4, 2, 5, seed=3)


def rcnn(fields: str, *bottoms: Tensor, dtype: torch.dtype = torch.float32) -> RCNNSmoothL1Loss:
    """The layer of Faster R-CNN, whichever layer SmoothL1Loss chooses."""
    text = f'name: "it" type: "SmoothL1Loss" top: "loss" {fields}'
    param = text_format.Parse(text, LayerParameter())
    param.bottom.extend(f"bottom{index}" for index in range(len(bottoms)))
    layer = RCNNSmoothL1Loss(param)
    layer.build([tuple(bottom.shape) for bottom in bottoms], Run(CaffeRandom(1)))
    return layer.to(dtype)


def smooth_l1(d: float, sigma: float = 1) -> float:
    return sigma**2 * d * d / 2 if abs(d) < 1 / sigma**2 else abs(d) - 0.5 / sigma**2


@pytest.mark.parametrize("sigma", [0.5, 1, 3])
def test_smooth_l1_of_faster_rcnn(sigma: float) -> None:
    layer = rcnn(f"smooth_l1_loss_param {{ sigma: {sigma} }}", A, B, W, OUTSIDE)
    want = sum(
        float(outside) * smooth_l1(float(w * (a - b)), sigma)
        for a, b, w, outside in zip(A.flatten(), B.flatten(), W.flatten(), OUTSIDE.flatten(), strict=True)
    )
    torch.testing.assert_close(layer(A, B, W, OUTSIDE), torch.tensor(want / 3), rtol=RTOL, atol=ATOL)
    double = rcnn(f"smooth_l1_loss_param {{ sigma: {sigma} }}", A, B, W, OUTSIDE, dtype=torch.float64)
    leaves = [x.double().requires_grad_(index < 2) for index, x in enumerate((A, B, W, OUTSIDE))]
    rtol, atol, _ = tolerance("gradient", "float64")
    assert torch.autograd.gradcheck(double, leaves, rtol=rtol, atol=atol)


def test_smooth_l1_of_faster_rcnn_without_weights() -> None:
    """Only the targets, and in fewer axes."""
    a, b = A.reshape(3, 40), B.reshape(3, 40, 1, 1)
    ones = torch.ones_like(A)
    torch.testing.assert_close(rcnn("", a, b)(a, b), rcnn("", A, B, ones, ones)(A, B, ones, ones))
    grads = diffs(rcnn("", a, b), a, b)
    assert grads[0] is not None
    assert grads[1] is not None
    torch.testing.assert_close(grads[1].reshape(3, 40), -grads[0], rtol=0, atol=0)


def test_weights_get_no_gradient() -> None:
    layer = rcnn("", A, B, W, OUTSIDE)
    assert [grad is None for grad in diffs(layer, A, B, W, OUTSIDE)] == [False, False, True, True]
    assert [layer.allows_force_backward(index) for index in range(4)] == [True, True, False, False]


def test_a_sigma_of_0_makes_no_loss() -> None:
    layer = rcnn("smooth_l1_loss_param { sigma: 0 }", A, B)
    assert layer(A, B) == 0
    assert not any(bool(grad.any()) for grad in diffs(layer, A, B) if grad is not None)


@pytest.mark.parametrize(
    ("fields", "bottoms", "message"),
    [
        ("", (A, B, W), "must specify both inside and outside weights; got 3 bottoms, not 4"),
        ("", (A, B, W, OUTSIDE, W), "takes at most 4 bottom blob(s)"),
        ("", (A, B[:, :3]), "bottom[1] must have the shape of bottom[0], (3, 4, 2, 5); got (3, 3, 2, 5)"),
        ("", (A, B, W, OUTSIDE[..., :4]), "bottom[3] must have the shape of bottom[0]"),
        ("", (A[None], B[None]), "bottom[0] may have four axes at most"),
        (
            "loss_param { normalization: NONE }",
            (A, B),
            "divides the sum by 1 in intel/caffe and by the number",
        ),
    ],
)
def test_errors_of_smooth_l1(fields: str, bottoms: tuple[Tensor, ...], message: str) -> None:
    with refused(message):
        rcnn(fields, *bottoms)


# -- SmoothL1LossOHEM ----------------------------------------------------------------------------------------

OHEM = 'type: "SmoothL1LossOHEM" top: "loss" top: "losses" loss_param { %s }'
DIVISORS = {
    "": 30,
    "normalization: FULL": 30,
    "normalization: VALID": 30,
    "normalize: true": 30,
    "normalization: BATCH_SIZE": 3,
    "normalize: false": 3,
    "normalization: NONE": 1,
    "normalization: PRE_FIXED pre_fixed_normalizer: 7": 7,
    "normalization: PRE_FIXED pre_fixed_normalizer: 0.5": 1,
    "normalization: PRE_FIXED": 1,
}


@pytest.mark.parametrize("fields", DIVISORS)
def test_smooth_l1_ohem(fields: str) -> None:
    """The gradient lacks the factor w; the losses give none."""
    layer = build(OHEM % fields, *[A.shape] * 3)
    loss, losses = run(layer, A, B, W)
    d = W * (A - B)
    values = torch.tensor([smooth_l1(float(x)) for x in d.flatten()]).view(A.shape)
    torch.testing.assert_close(losses, values.sum(1, keepdim=True), rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(loss, values.sum() / DIVISORS[fields], rtol=RTOL, atol=ATOL)
    assert not losses.requires_grad
    leaves = [x.clone().requires_grad_() for x in (A, B, W)]
    run(layer, *leaves)[0].backward(torch.tensor(2.0))
    of_a, of_b, of_w = (leaf.grad for leaf in leaves)
    want = torch.where(d.abs() < 1, d, d.sign()) * 2 / DIVISORS[fields]
    torch.testing.assert_close(of_a, want, rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(of_b, -want, rtol=RTOL, atol=ATOL)
    assert of_w is None


def test_smooth_l1_ohem_without_weights_and_losses() -> None:
    text = 'type: "SmoothL1LossOHEM"'
    check_gradient(text, A, B)
    check_contract(OHEM % "", A, B)
    check_contract(OHEM % "", A.reshape(3, 40), B.reshape(3, 40, 1, 1))


# -- SoftmaxWithLossOHEM -------------------------------------------------------------------------------------

SCORES = normal(4, 5, 3)
LABELS = torch.tensor([[0.0, 4, 2], [1, 1, 3], [2, 0, 4], [3, 2, 1]])
SOFTMAX = 'type: "SoftmaxWithLoss%s" loss_param { %s }'


@pytest.mark.parametrize(
    "fields",
    ["", "ignore_label: 2", "ignore_label: 1 normalization: FULL", "normalization: BATCH_SIZE",
     "normalize: false", "normalization: NONE",
     "ignore_label: 2 normalization: PRE_FIXED pre_fixed_normalizer: 2.5"],
)  # fmt: skip
def test_softmax_ohem_is_softmax_with_more_tops(fields: str) -> None:
    plain = build(SOFTMAX % ("", fields), SCORES.shape, LABELS.shape)
    layer = build(
        SOFTMAX % ("OHEM", fields) + 'top: "loss" top: "prob" top: "losses"', SCORES.shape, LABELS.shape
    )
    loss, prob, losses = run(layer, SCORES, LABELS)
    torch.testing.assert_close(loss, run(plain, SCORES, LABELS)[0], rtol=RTOL, atol=ATOL)
    torch.testing.assert_close(prob, SCORES.softmax(1), rtol=RTOL, atol=ATOL)
    want = -SCORES.log_softmax(1).gather(1, LABELS.long()[:, None])[:, 0]
    if "ignore_label" in fields:
        want = want * LABELS.ne(layer.param.loss_param.ignore_label)
    torch.testing.assert_close(losses, want, rtol=RTOL, atol=ATOL)
    leaves = [SCORES.clone().requires_grad_() for _ in range(2)]
    for leaf, it in zip(leaves, (layer, plain), strict=True):
        loss, *others = run(it, leaf, LABELS)
        assert not any(other.requires_grad for other in others)
        loss.backward(torch.tensor(3.0))
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=RTOL, atol=ATOL)


def test_tops_of_softmax_ohem() -> None:
    for tops in (["loss"], ["loss", "prob"], ["loss", "prob", "losses"]):
        text = SOFTMAX % ("OHEM", "") + " ".join(f'top: "{top}"' for top in tops)
        check_contract(text, SCORES, LABELS)
        assert len(run(build(text, SCORES.shape, LABELS.shape), SCORES, LABELS)) == len(tops)
    check_gradient(SOFTMAX % ("OHEM", ""), SCORES, LABELS, constant=(1,))
    with refused("label 5 is out of range: there are 5 classes"):
        run(build(SOFTMAX % ("OHEM", ""), SCORES.shape, LABELS.shape), SCORES, LABELS + 1)


@pytest.mark.parametrize("kind", ["SoftmaxWithLoss", "SigmoidCrossEntropyLoss", "IMAELoss", "MAELoss"])
def test_pre_fixed_in_other_losses(kind: str) -> None:
    """PRE_FIXED n is NONE divided by n, but never by less than 1."""
    bottoms = (SCORES, LABELS) if kind != "SigmoidCrossEntropyLoss" else (SCORES, SCORES.gt(0).float())
    shapes = [tuple(bottom.shape) for bottom in bottoms]

    def loss(fields: str) -> Tensor:
        return run(build(f'type: "{kind}" loss_param {{ {fields} }}', *shapes), *bottoms)[0]

    whole = loss("normalization: NONE")
    for number, divisor in ((4.0, 4.0), (0.25, 1.0)):
        got = loss(f"normalization: PRE_FIXED pre_fixed_normalizer: {number}")
        torch.testing.assert_close(got, whole / divisor, rtol=RTOL, atol=ATOL)


def test_pre_fixed_with_infogain() -> None:
    matrix = torch.eye(5).view(1, 1, 5, 5)
    bottoms = SCORES, LABELS, matrix
    shapes = [tuple(bottom.shape) for bottom in bottoms]
    losses = [
        run(build(f'type: "InfogainLoss" loss_param {{ normalization: {mode} }}', *shapes), *bottoms)[0]
        for mode in ("NONE", "PRE_FIXED pre_fixed_normalizer: 4")
    ]
    torch.testing.assert_close(losses[1], losses[0] / 4, rtol=RTOL, atol=ATOL)


def test_the_sum_of_weights_refuses_a_fixed_normalizer() -> None:
    with refused("loss_param.pre_fixed_normalizer does nothing with the sum of weights"):
        build(
            'type: "IMAELoss" imae_loss_param { normalizer: SUM_OF_WEIGHTS } '
            "loss_param { pre_fixed_normalizer: 2 }",
            SCORES.shape,
            LABELS.shape,
        )


# -- BoxAnnotatorOHEM ----------------------------------------------------------------------------------------

ANNOTATOR = (
    'type: "BoxAnnotatorOHEM" top: "labels" top: "weights" box_annotator_ohem_param { roi_per_img: %d %s }'
)


def annotated(
    rois: Tensor, losses: Tensor, labels: Tensor, weights: Tensor, kept: int, ignored: float
) -> tuple[Tensor, Tensor]:
    """Position by position; rois (R, 5, H, W) and so on."""
    labels, weights = labels.clone(), weights.clone()
    places = [(r, h, w) for r in range(len(rois)) for h in range(rois.shape[2]) for w in range(rois.shape[3])]
    counts: dict[int, int] = {}
    for r, h, w in sorted(places, key=lambda place: -float(losses[place[0], 0, place[1], place[2]])):
        image = int(rois[r, 0, h, w])
        counts[image] = counts.get(image, 0) + 1
        if counts[image] > kept:
            labels[r, 0, h, w] = ignored
            weights[r, :, h, w] = 0
    return labels, weights


@pytest.mark.parametrize("ignored", ["", "ignore_label: 255"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_annotator(size: tuple[int, int], ignored: str) -> None:
    rois = normal(12, 5, *size)
    rois[:, 0] = torch.randint(0, 4, (12, *size), generator=torch.Generator().manual_seed(1)) ** 2
    losses = normal(12, 1, *size, seed=1).round(decimals=1)  # some are equal
    labels, weights = normal(12, 1, *size, seed=2).abs().ceil(), normal(12, 8, *size, seed=3)
    shapes = [tuple(bottom.shape) for bottom in (rois, losses, labels, weights)]
    layer = build(ANNOTATOR % (3, ignored), *shapes)
    got = run(layer, rois, losses, labels, weights)
    want = annotated(rois, losses, labels, weights, 3, 255 if ignored else -1)
    assert (want[0] != labels).any()
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    check_contract(ANNOTATOR % (3, ignored), rois, losses, labels, weights)


def test_annotator_takes_rows() -> None:
    """ROIs of two axes, as a Python layer makes them."""
    bottoms = torch.zeros(3, 5), torch.tensor([1.0, 3, 2]), torch.tensor([5.0, 6, 7]), torch.ones(3, 2)
    layer = build(ANNOTATOR % (2, ""), *(tuple(bottom.shape) for bottom in bottoms))
    labels, weights = run(layer, *(bottom.requires_grad_() for bottom in bottoms))
    assert labels.flatten().tolist() == [-1, 6, 7]
    assert weights.flatten().tolist() == [0, 0, 1, 1, 1, 1]
    assert not labels.requires_grad
    assert not weights.requires_grad
    assert not any(layer.allows_force_backward(index) for index in range(4))


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        (ANNOTATOR % (0, ""), [(3, 5), (3, 1), (3, 1), (3, 8)], "roi_per_img must be given and > 0"),
        (ANNOTATOR % (1, ""), [(3, 4), (3, 1), (3, 1), (3, 8)], "bottom[0] must be (3, 5, 1, 1); got (3, 4)"),
        (ANNOTATOR % (1, ""), [(3, 5), (3, 2), (3, 1), (3, 8)], "bottom[1] must be (3, 1, 1, 1); got (3, 2)"),
        (ANNOTATOR % (1, ""), [(3, 5), (3, 1), (2, 1), (3, 8)], "bottom[2] must be (3, 1, 1, 1); got (2, 1)"),
        (
            ANNOTATOR % (1, ""),
            [(3, 5), (3, 1), (3, 1), (3, 8, 2)],
            "bottom[3] must be (3, 8, 1, 1); got (3, 8, 2)",
        ),
        (ANNOTATOR % (1, ""), [(3, 5), (3, 1), (3, 1)], "takes 4 bottom blob(s)"),
    ],
)
def test_errors_of_the_annotator(text: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with refused(message):
        build(text, *shapes)


def test_a_negative_image() -> None:
    rois = torch.zeros(3, 5)
    rois[1, 0] = -2
    with refused("an ROI is of image -2; images are counted from 0"):
        run(build(ANNOTATOR % (1, ""), (3, 5), (3, 1), (3, 1), (3, 8)),
            rois, torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3, 8))  # fmt: skip


# -- Dropout -------------------------------------------------------------------------------------------------

DROPOUT = 'type: "Dropout" dropout_param { dropout_ratio: 0.25 scale_train: false }'


def test_dropout_without_scale_in_training() -> None:
    layers = [
        build(f"{text} phase: TRAIN", A.shape, seed=3) for text in (DROPOUT, DROPOUT.replace("false", "true"))
    ]
    (plain,), (scaled,) = (run(layer, A) for layer in layers)
    torch.testing.assert_close(plain, scaled * 0.75, rtol=RTOL, atol=ATOL)
    assert set((plain / A).flatten().tolist()) == {0.0, 1.0}


def test_dropout_without_scale_in_training_in_onnx() -> None:
    (top,) = run(build(f"{DROPOUT} phase: TEST", A.shape), A)
    torch.testing.assert_close(top, A * 0.75, rtol=RTOL, atol=ATOL)
    check_onnx(f"{DROPOUT} phase: TEST", A)


def test_an_idle_dropout_is_told_apart() -> None:
    assert not build(f"{DROPOUT} phase: TEST", A.shape).idle_in_test
    assert build('type: "Dropout"', A.shape).idle_in_test
    with pytest.raises(LayerError):
        build('type: "Dropout" dropout_param { dropout_ratio: 1 scale_train: false }', A.shape)
