"""SegNet's fields of Caffe's own layers: class weights of SoftmaxWithLoss, masks of Dropout in phase TEST."""

from __future__ import annotations

import math

import pytest
import torch
from single_layer import build, check_contract, check_gradient, normal, refused, run
from tolerances import tolerance

from imae.files.errors import ExportError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt.text import parse_net

WEIGHTS = [0.5, 2, 1.25, 0]
WEIGHTED = "weight_by_label_freqs: true " + " ".join(f"class_weighting: {w}" for w in WEIGHTS)
SCORES = normal(3, 4, 2, 5)
LABELS = torch.tensor([[(i * 7 + n) % 4 for i in range(10)] for n in range(3)]).reshape(3, 1, 2, 5).float()


def loss(fields: str) -> str:
    return f'type: "SoftmaxWithLoss" loss_param {{ {fields} }}'


@pytest.mark.parametrize(
    ("fields", "ignored", "divisor"),
    [
        ("", None, 30),
        ("normalize: true", None, 30),
        ("normalize: false", None, 3),
        ("normalization: NONE", None, 1),
        ("ignore_label: 1", 1, 22),
        ("ignore_label: 1 normalize: false", 1, 3),
        ("ignore_label: 1 normalization: FULL", 1, 30),
    ],
)
def test_class_weights(fields: str, ignored: int | None, divisor: int) -> None:
    """Label by label; the weights are not part of the divisor."""
    total = 0.0
    for n in range(3):
        for y in range(2):
            for x in range(5):
                label = int(LABELS[n, 0, y, x])
                if label == ignored:
                    continue
                scores = [math.exp(float(s)) for s in SCORES[n, :, y, x]]
                total -= WEIGHTS[label] * math.log(scores[label] / sum(scores))
    text = loss(f"{WEIGHTED} {fields}")
    layer = build(text, SCORES.shape, LABELS.shape)
    assert layer.leftovers == []
    assert float(run(layer, SCORES, LABELS)[0]) == pytest.approx(
        total / divisor, rel=tolerance("same arithmetic").rtol
    )
    check_gradient(text, SCORES, LABELS, constant=(1,))
    check_contract(text, SCORES, LABELS)


def test_class_weights_that_are_not_asked_for_do_nothing() -> None:
    plain = build(loss(""), SCORES.shape, LABELS.shape)
    layer = build(loss("class_weighting: 5"), SCORES.shape, LABELS.shape)
    assert layer.leftovers == ["loss_param.class_weighting"]
    assert torch.equal(run(layer, SCORES, LABELS)[0], run(plain, SCORES, LABELS)[0])
    ones = "weight_by_label_freqs: true " + "class_weighting: 1 " * 4
    leaves = [SCORES.clone().requires_grad_() for _ in range(2)]
    for leaf, fields in zip(leaves, (ones, ""), strict=True):
        run(build(loss(fields), SCORES.shape, LABELS.shape), leaf, LABELS)[0].backward()
    assert leaves[0].grad is not None
    assert torch.equal(leaves[0].grad, leaves[1].grad)  # type: ignore[arg-type]  # it has one, too


def test_class_weights_are_one_for_each_class() -> None:
    for weights, count in (("", 0), ("class_weighting: 1 class_weighting: 2", 2)):
        with refused(f"class_weighting has {count}, there are 4 classes"):
            build(loss(f"weight_by_label_freqs: true {weights}"), SCORES.shape, LABELS.shape)
    layer = build(loss(WEIGHTED), SCORES.shape, LABELS.shape)
    with refused("class_weighting has 4, there are 3 classes"):
        layer.reshape([(3, 3, 2, 5), tuple(LABELS.shape)])


def test_other_losses_refuse_class_weights() -> None:
    for field in ("weight_by_label_freqs: true", "class_weighting: 1"):
        name = field.partition(":")[0]
        with refused(f"SigmoidCrossEntropyLoss does not look at loss_param.{name}; remove it"):
            build(f'type: "SigmoidCrossEntropyLoss" loss_param {{ {field} }}', (2, 3), (2, 3))


# -- Dropout -------------------------------------------------------------------------------------------------

SAMPLED = 'type: "Dropout" phase: {} dropout_param {{ dropout_ratio: 0.25 sample_weights_test: true }}'


def test_dropout_draws_the_same_masks_in_both_phases() -> None:
    x = normal(20, 30)
    train, test = (build(SAMPLED.format(phase), x.shape, seed=3) for phase in ("TRAIN", "TEST"))
    plain = build('type: "Dropout" phase: TRAIN dropout_param { dropout_ratio: 0.25 }', x.shape, seed=3)
    for _ in range(2):
        want = run(plain, x)[0]
        assert torch.equal(run(train, x)[0], want) and torch.equal(run(test, x)[0], want)
    assert 0.2 < float((want == 0).float().mean()) < 0.3
    assert not test.capturable


def test_dropout_in_test_sends_the_gradient_through_its_mask() -> None:
    layer = build(SAMPLED.format("TEST"), (50,), seed=3)
    leaf = torch.ones(50, requires_grad=True)
    (top,) = run(layer, leaf)
    top.sum().backward()
    assert torch.equal(leaf.grad, top.detach())  # type: ignore[arg-type]
    assert 0 < int((top == 0).sum()) < 50


def test_in_test_an_in_place_dropout_overwrites_its_bottom() -> None:
    """Only where it draws: otherwise a layer that reads the blob under another name still sees it."""
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 4 dim: 50 } } }
        layer { name: "flat" type: "Flatten" bottom: "x" top: "flat" }
        layer { name: "drop" type: "Dropout" bottom: "flat" top: "flat" dropout_param { %s } }
        layer { name: "y" type: "Power" bottom: "flat" top: "y" }"""
    x = normal(4, 50)
    for field, idle in (("", True), ("sample_weights_test: true", False)):
        net = Net(parse_net(text % field), Run(CaffeRandom(1)))
        assert [step.layer.idle_in_test for step in net.steps if step.layer.name == "drop"] == [idle]
        assert torch.equal(net({"x": x})["y"], x) is idle


def test_dropout_that_draws_has_no_onnx_form() -> None:
    layer = build(SAMPLED.format("TEST"), (2, 3))
    with pytest.raises(ExportError, match="sample_weights_test draws a mask in each pass"):
        layer.to_onnx(None, ["x"], ["y"])  # type: ignore[arg-type]  # it does not come to that
