"""EvalDetection against a slow reference: nothing of it is recorded."""

import numpy as np
import pytest
import torch
import yolo_reference
from single_layer import build, check_contract, normal, refused, run
from tolerances import tolerance
from torch import Tensor

from imae.layers.registry import layer_class

BIASES = (1.08, 1.19, 1.42, 2.41, 2.63, 1.38, 3.42, 3.11, 0.62, 0.52)
CLASSES, SIDE = 3, 5


def evaluation(fields: str = "nms: 0.45") -> str:
    biases = " ".join(f"biases: {value}" for value in BIASES)
    return (
        f'type: "EvalDetection" eval_detection_param {{ num_class: {CLASSES} side: {SIDE} num_object: 5 '
        f"{biases} {fields} }}"
    )


def predictions(images: int = 2) -> Tensor:
    return normal(images, 5 * (5 + CLASSES), SIDE, SIDE, seed=3)


def label() -> Tensor:
    """Of a batch of two images: class 3 is in the first one only; a row that is none."""
    rows = [
        [1, 2, 0, 0.1, 0.2, 0.5, 0.6, 0],
        [0, 1, 0, 0.3, 0.3, 0.9, 0.8, 0],
        [-1, -1, -1, -1, -1, -1, -1, -1],
        [0, 3, 1, 0.0, 0.2, 0.5, 0.7, 1],
        [1, 1, 2, 0.5, 0.4, 0.95, 0.95, 0],
        [1, 1, 2, 0.1, 0.1, 0.6, 0.5, 0],
    ]
    return torch.tensor(rows).view(1, 1, 6, 8)


@pytest.mark.parametrize("score_type", ["OBJ", "PROB", "MULTIPLY"])
@pytest.mark.parametrize("nms, threshold", [(0.9, 0.5), (0.45, 0.3), (0.9, 0.05), (-1, 0.5), (0, 0.0)])
def test_counts_and_boxes(score_type: str, nms: float, threshold: float) -> None:
    x = predictions()
    want = yolo_reference.evaluation(
        x.double().numpy(), label().double().numpy(), BIASES, CLASSES,
        score_type=score_type, nms=nms, threshold=threshold,
    )  # fmt: skip
    text = evaluation(f"score_type: {score_type} nms: {nms} threshold: {threshold}")
    rtol, atol, _ = tolerance("same arithmetic")
    for dtype in (torch.float32, torch.float64):
        got = run(build(text, tuple(x.shape), (1, 1, 6, 8)), x.to(dtype), label().to(dtype))[0]
        assert got.dtype == dtype and got.shape == want.shape == (2, CLASSES + 4 * 5 * SIDE**2)
        np.testing.assert_allclose(got.numpy(), want, rtol=rtol, atol=atol)


def test_a_box_is_right_or_wrong_or_neither() -> None:
    x = predictions()
    top = run(build(evaluation("nms: 0.9 threshold: 0.3"), tuple(x.shape), (1, 1, 6, 8)), x, label())[0]
    judged = top[:, CLASSES:].view(2, -1, 4)
    judged = judged[judged[..., 1] > 0]
    verdicts = {(float(right), float(wrong)) for right, wrong in judged[:, 2:]}
    assert verdicts == {(1, 0), (0, 1), (0, 0)}
    assert top[:, :CLASSES].tolist() == [[1, 0, 1], [2, 1, 0]]


def test_low_scores_are_left_out() -> None:
    x = predictions(1)
    x.view(1, 5, -1, SIDE, SIDE)[:, :, 4] = -20
    top = run(build(evaluation(), tuple(x.shape), (1, 1, 6, 8)), x, label()[:, :, 1:4])[0]
    assert not top[:, CLASSES:].any() and top[0, :CLASSES].tolist() == [1, 0, 1]


def test_without_truths_all_boxes_are_wrong() -> None:
    x = predictions(1)
    nothing = torch.full((1, 1, 1, 8), -1.0)
    top = run(build(evaluation(), tuple(x.shape), (1, 1, 1, 8)), x, nothing)[0]
    want = yolo_reference.evaluation(x.double().numpy(), nothing.double().numpy(), BIASES, CLASSES, nms=0.45)
    rtol, atol, _ = tolerance("same arithmetic")
    np.testing.assert_allclose(top.numpy(), want, rtol=rtol, atol=atol)


def test_contract() -> None:
    check_contract(evaluation(), predictions(), label())
    assert not layer_class("EvalDetection").deployed
    layer = build(
        evaluation("nms: 0.4 sqrt: true constriant: true"), tuple(predictions().shape), (1, 1, 6, 8)
    )
    assert layer.leftovers == ["eval_detection_param.sqrt", "eval_detection_param.constriant"]
    assert not layer.capturable and not layer.allows_force_backward(0)


def test_what_is_refused() -> None:
    x, boxes = (2, 40, SIDE, SIDE), (1, 1, 6, 8)
    with refused("num_object must be 5, as in Intel's EvalDetection"):
        build('type: "EvalDetection"', x, boxes)
    with refused("num_class must be at least 1; got 0"):
        build('type: "EvalDetection" eval_detection_param { num_object: 5 num_class: 0 }', x, boxes)
    with refused("biases must have a width and a height for each anchor, 10 numbers or more; got 0"):
        build('type: "EvalDetection" eval_detection_param { num_object: 5 }', x, boxes)
    with refused("bottom[0] must be (N, 40, H, W)"):
        build(evaluation(), (2, 41, SIDE, SIDE), boxes)
    with refused("side must be height and width of bottom[0]; got 5 and (2, 40, 5, 6)"):
        build(evaluation(), (2, 40, 5, 6), boxes)
    with refused("bottom[1] must be (1, 1, G, 8)"):
        build(evaluation(), x, (2, 1, 6, 5))
    wrong = label()
    wrong[0, 0, 0, 1] = 4
    with refused("label 3 is out of range: there are 3 classes"):
        run(build(evaluation(), x, boxes), predictions(), wrong)
