"""Yolov3, the loss, against a slow reference: nothing of it is recorded."""

from typing import Any

import numpy as np
import pytest
import torch
import yolo_reference
from single_layer import build, check_contract, normal, refused, run
from tolerances import tolerance
from torch import Tensor

from imae.layers.forks.yolo_boxes import penalised_overlap
from imae.layers.forks.yolov3 import overlap_gradient

BIASES = (10.0, 14.0, 23.0, 27.0, 37.0, 58.0, 81.0, 82.0, 35.0, 29.0)
CLASSES, HEIGHT, WIDTH = 3, 5, 6
KINDS = ("MSE", "IOU", "GIOU", "DIOU", "CIOU")


def yolo(fields: str = "", mask: tuple[int, ...] = (0, 1, 2), side: int = WIDTH) -> str:
    numbers = " ".join([f"biases: {value}" for value in BIASES] + [f"mask: {value}" for value in mask])
    return (
        f'type: "Yolov3" yolov3_param {{ num_class: {CLASSES} num: {len(mask)} side: {side} '
        f"anchors_scale: 16 {numbers} {fields} }}"
    )


def predictions(images: int = 2, boxes: int = 3) -> Tensor:
    return normal(images, boxes * (5 + CLASSES), HEIGHT, WIDTH, seed=3)


def boxes_of_images() -> Tensor:
    """(2, 1, 12, 5): several boxes of one cell, of classes that repeat; lists with an end for one purpose."""
    generator = np.random.default_rng(1)
    label = np.zeros((2, 1, 12, 5), np.float32)
    label[0, 0, :9, 0] = [2, 0, 1, 1, 0, 2, 1, 0, 2]
    label[0, 0, :9, 1:3] = generator.uniform(0.05, 0.95, (9, 2))
    label[0, 0, :9, 3:] = generator.uniform(0.08, 0.9, (9, 2))
    for index, source in ((3, 1), (6, 1), (7, 2)):
        label[0, 0, index, 1:] = label[0, 0, source, 1:] * 0.999
    label[1, 0, :2] = [[1, 0.0, 0.4, 0.3, 0.3], [2, 0.6, 0.7, 0.2, 0.4]]  # x 0 ends the first list only
    return torch.from_numpy(label)


def with_gradient(text: str, x: Tensor, label: Tensor, top_diff: float = 1.0) -> tuple[Tensor, Tensor]:
    layer = build(text, tuple(x.shape), tuple(label.shape))
    leaf = x.clone().requires_grad_()
    loss = run(layer, leaf, label)[0]
    loss.backward(torch.tensor(top_diff, dtype=x.dtype))
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def as_text(settings: dict[str, Any]) -> str:
    return " ".join(f"{name}: {str(v).lower() if isinstance(v, bool) else v}" for name, v in settings.items())


SETTINGS: list[dict[str, Any]] = [
    {},
    {"use_logic_gradient": True, "object_scale": 5},
    {"class_scale": 3, "coord_scale": 0.5, "thresh": 0.02, "iou_thresh": 0.1, "label_smooth_eps": 0},
    {"iou_thresh": 1, "use_focal_loss": True},
    {"iou_thresh": 0.2, "use_focal_loss": True, "accumulate": False, "iou_normalizer": 2, "max_delta": 0.3},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient(kind: str, settings: dict[str, Any]) -> None:
    label = boxes_of_images()
    for mask in ((0, 1, 2), (2, 3, 4), (4, 1)):
        x = predictions(boxes=len(mask))
        reference = yolo_reference.YoloV3(BIASES, mask, CLASSES, iou_loss=kind, anchors_scale=16, **settings)
        want, gradient = reference.run(x.double().numpy(), label.double().numpy())
        assert reference.count > 3
        text = yolo(f"iou_loss: {kind} {as_text(settings)}", mask)
        for dtype, what in ((torch.float32, "golden"), (torch.float64, "same arithmetic")):
            rtol, atol, _ = tolerance(what)
            loss, got = with_gradient(text, x.to(dtype), label.to(dtype), top_diff=2.0)
            np.testing.assert_allclose(float(loss), want, rtol=rtol)
            scale = np.abs(gradient).max()
            np.testing.assert_allclose(got.numpy(), 2 * gradient, rtol=rtol, atol=atol * scale)


def test_the_cases_have_what_they_are_for() -> None:
    """A place with several boxes and classes; one that is assigned twice, its place taken for an anchor."""
    x, label = predictions().double().numpy(), boxes_of_images().double().numpy()
    counts = {}
    for mask in ((0, 1, 2), (2, 3, 4)):
        for threshold in (0.5, 1):
            reference = yolo_reference.YoloV3(BIASES, mask, CLASSES, anchors_scale=16, iou_thresh=threshold)
            reference.run(x, label)
            counts[mask, threshold] = reference.count
    assert counts[(2, 3, 4), 0.5] > counts[(2, 3, 4), 1]
    _, gradient = with_gradient(yolo("label_smooth_eps: 0"), predictions(), boxes_of_images())
    classes = gradient.view(2, 3, -1, HEIGHT, WIDTH)[:, :, 5:]
    assert int((classes < 0).sum(2).max()) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind: str) -> None:
    check_contract(yolo(f"iou_loss: {kind}"), predictions(), boxes_of_images())


@pytest.mark.parametrize("kind", ["IOU", "GIOU"])
def test_the_gradient_of_an_overlap_is_its_derivative(kind: str) -> None:
    """Where two boxes overlap; twice of it for the size. (Darknet's for DIOU and CIOU is not.)"""
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.5]], dtype=torch.float64)
    truth = torch.tensor([[0.55, 0.44, 0.3, 0.4], [0.28, 0.5, 0.1, 0.2]], dtype=torch.float64)
    leaf = boxes.clone().requires_grad_()
    penalised_overlap(leaf, truth, kind).sum().backward()
    assert leaf.grad is not None
    centre, size = overlap_gradient(boxes, truth, kind)
    rtol, atol, _ = tolerance("formula", "float64")
    torch.testing.assert_close(centre, leaf.grad[:, :2], rtol=rtol, atol=atol)
    torch.testing.assert_close(size, 2 * leaf.grad[:, 2:], rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_boxes(kind: str) -> None:
    x = predictions()
    loss, gradient = with_gradient(yolo(f"iou_loss: {kind}"), x, torch.zeros(2, 1, 4, 5))
    p = x.view(2, 3, -1, HEIGHT, WIDTH)[:, :, 4].sigmoid()
    torch.testing.assert_close(loss, (p * p).sum() / 2)
    split = gradient.view(2, 3, -1, HEIGHT, WIDTH)
    torch.testing.assert_close(split[:, :, 4], p / 2)
    assert not split[:, :, [0, 1, 2, 3, 5, 6, 7]].any()


def test_unused_fields_are_noted() -> None:
    shapes = (tuple(predictions().shape), (2, 1, 9, 5))
    assert build(yolo(), *shapes).leftovers == []
    layer = build(yolo("noobject_scale: 1", side=13), *shapes)
    assert layer.leftovers == ["yolov3_param.noobject_scale", "yolov3_param.side"]


def test_what_is_refused() -> None:
    x, label = (2, 24, HEIGHT, WIDTH), (2, 1, 9, 5)
    with refused("bottom[1] must be (N, 1, B, 5), rows of class, x, y, width, height; got (2, 1, 9, 8)"):
        build(yolo(), x, (2, 1, 9, 8))
    with refused("bottom[0] must be (N, 24, H, W), for 3 boxes of 4 coordinates, an object and 3 classes"):
        build(yolo(), (2, 25, HEIGHT, WIDTH), label)
    with refused("axis 0 out of range for a blob with 0 axes; got data ()"):
        build(yolo(), (), label)
    with refused("The data and label should have the same first dimension"):
        build(yolo(), x, (3, 1, 9, 5))
    with refused("mask must have num, 4, numbers; got 3"):
        build(yolo().replace("num: 3", "num: 4"), x, label)
    with refused("biases must have a width and a height for each anchor, 12 numbers or more; got 10"):
        build(yolo(mask=(0, 1, 5)), x, label)
    with refused("anchors_scale must be at least 1; got 0"):
        build(yolo().replace("anchors_scale: 16", "anchors_scale: 0"), x, label)


def test_wrong_labels_are_named() -> None:
    x, label = predictions(), boxes_of_images()
    layer = build(yolo(), tuple(x.shape), tuple(label.shape))
    label[0, 0, 1, 0] = -1
    with refused("label -1 is out of range: there are 3 classes"):
        run(layer, x, label)
    label[0, 0, 1, :3] = torch.tensor([0, 0.5, 1.0])
    with refused("a box whose centre is outside of the image, in cell 5 of 5, from 0"):
        run(layer, x, label)


def test_no_gradient_goes_to_the_label() -> None:
    x, label = predictions(), boxes_of_images().requires_grad_()
    loss = run(build(yolo(), tuple(x.shape), tuple(label.shape)), x.requires_grad_(), label)[0]
    with refused("Yolov3 Layer cannot backpropagate to label inputs."):
        loss.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_an_iteration_needs_nothing_of_the_host(kind: str) -> None:
    """On a device that has shapes only, where no value can be asked for."""
    x, label = predictions(), boxes_of_images()
    layer = build(yolo(f"iou_loss: {kind}"), tuple(x.shape), tuple(label.shape)).to("meta")
    leaf = x.to("meta").requires_grad_()
    run(layer, leaf, label.to("meta"))[0].backward()
    assert leaf.grad is not None and leaf.grad.shape == x.shape
