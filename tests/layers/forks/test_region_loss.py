"""RegionLoss of both forks against a slow reference: nothing of it is recorded."""

from typing import Any

import numpy as np
import pytest
import torch
import yolo_reference
from single_layer import build, check_contract, normal, refused, run
from tolerances import tolerance
from torch import Tensor

from imae.layers.caffe_random import CaffeRandom
from imae.net.net import Net
from imae.net.streams import Streams
from imae.prototxt.text import parse_net

BIASES = (1.08, 1.19, 3.42, 4.41, 6.63, 2.38, 9.42, 5.11, 0.62, 0.52)
CLASSES, SIDE = 3, 6


def region(fields: str = "", side: int = SIDE) -> str:
    biases = " ".join(f"biases: {value}" for value in BIASES)
    return f'type: "RegionLoss" region_loss_param {{ num_class: {CLASSES} side: {side} {biases} {fields} }}'


def predictions(images: int = 2) -> Tensor:
    return normal(images, 5 * (5 + CLASSES), SIDE, SIDE, seed=3)


def boxes_of_images() -> Tensor:
    """(2, 1, 9, 5): two boxes of one cell and anchor, one that ends a list for one purpose only, no box."""
    generator = np.random.default_rng(1)
    label = np.zeros((2, 1, 9, 5), np.float32)
    label[0, 0, :6, 0] = [2, 0, 1, 1, 0, 2]
    label[0, 0, :6, 1:3] = generator.uniform(0.05, 0.95, (6, 2))
    label[0, 0, :6, 3:] = generator.uniform(0.1, 0.6, (6, 2))
    label[0, 0, 3, 1:] = label[0, 0, 1, 1:] + 0.001  # with another class
    label[1, 0, :2] = [[1, 0.0, 0.4, 0.3, 0.3], [2, 0.6, 0.7, 0.2, 0.4]]  # x 0 ends the first list only
    return torch.from_numpy(label)


def boxes_of_a_batch() -> Tensor:
    """(1, 1, 5, 8), the images mixed, and a row that is none."""
    rows = [
        [1, 3, 0, 0.1, 0.2, 0.5, 0.4, 0],
        [0, 1, 0, 0.3, 0.3, 0.9, 0.8, 0],
        [-1, -1, -1, -1, -1, -1, -1, -1],
        [1, 2, 1, 0.11, 0.2, 0.5, 0.41, 1],
        [1, 2, 2, 0.7, 0.6, 0.8, 0.95, 0],
    ]
    return torch.tensor(rows).view(1, 1, 5, 8)


def with_gradient(text: str, x: Tensor, label: Tensor, top_diff: float = 1.0) -> tuple[Tensor, Tensor]:
    layer = build(text, tuple(x.shape), tuple(label.shape))
    leaf = x.clone().requires_grad_()
    loss = run(layer, leaf, label)[0]
    loss.backward(torch.tensor(top_diff, dtype=x.dtype))
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


SETTINGS: list[dict[str, Any]] = [
    {},
    {"bias_match": False},
    {"rescore": False},
    {"object_scale": 5, "noobject_scale": 2, "class_scale": 3, "coord_scale": 0.5, "thresh": 0.05},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("intel", [False, True])
def test_loss_and_gradient(intel: bool, settings: dict[str, Any]) -> None:
    x, label = predictions(), boxes_of_a_batch() if intel else boxes_of_images()
    fields = " ".join(f"{name}: {int(v) if isinstance(v, bool) else v}" for name, v in settings.items())
    want, gradient = yolo_reference.region_loss(
        x.double().numpy(), label.double().numpy(), BIASES, CLASSES, intel=intel, **settings
    )
    rtol, atol, _ = tolerance("same arithmetic")
    for dtype in (torch.float32, torch.float64):
        loss, got = with_gradient(region(fields), x.to(dtype), label.to(dtype), top_diff=2.0)
        np.testing.assert_allclose(float(loss), want, rtol=rtol)
        np.testing.assert_allclose(got.numpy(), 2 * gradient, rtol=rtol, atol=atol * np.abs(gradient).max())


@pytest.mark.parametrize("label", [boxes_of_images(), boxes_of_a_batch()])
def test_contract(label: Tensor) -> None:
    check_contract(region(), predictions(), label)


def test_the_last_box_of_a_place_counts() -> None:
    """Two boxes of one cell and anchor and of different classes: the loss is that of the second alone."""
    x, label = predictions(1), boxes_of_images()[:1]
    both = label[:, :, [1, 3]]
    text = region("thresh: 2")
    assert torch.equal(with_gradient(text, x, both)[1], with_gradient(text, x, label[:, :, [3]])[1])
    assert not torch.equal(with_gradient(text, x, both)[1], with_gradient(text, x, label[:, :, [1]])[1])


@pytest.mark.parametrize("label", [torch.zeros(2, 1, 4, 5), torch.full((1, 1, 1, 8), -1.0)])
def test_a_batch_without_boxes(label: Tensor) -> None:
    x = predictions()
    loss, gradient = with_gradient(region(), x, label)
    p = x.view(2, 5, -1, SIDE, SIDE)[:, :, 4].sigmoid()
    diff = 0.5 * p * p * (1 - p)
    torch.testing.assert_close(loss, (diff * diff).sum() / (1 if label.shape[0] == 1 else 2))
    torch.testing.assert_close(gradient.view(2, 5, -1, SIDE, SIDE)[:, :, 4], diff / 2)
    assert not gradient.view(2, 5, -1, SIDE, SIDE)[:, :, [0, 1, 2, 3, 5, 6, 7]].any()


def test_unused_fields_are_noted() -> None:
    shapes = (tuple(predictions().shape), (2, 1, 9, 5))
    unused = "softmax: 1 jitter: 0.2 absolute: 1 random: 0"
    names = [f"region_loss_param.{name}" for name in ("softmax", "jitter", "absolute", "random")]
    assert build(region(f"{unused} rescore: 1"), *shapes).leftovers == names
    assert build(region(unused, side=13), *shapes).leftovers == [*names, "region_loss_param.side"]
    of_a_batch = build(region(f"{unused} rescore: 1"), shapes[0], (1, 1, 7, 8))
    assert of_a_batch.leftovers == [*names, "region_loss_param.rescore"]


def test_what_is_refused() -> None:
    x, label = (2, 40, SIDE, SIDE), (2, 1, 9, 5)
    with refused(
        "bottom[1] must be (N, 1, B, 5), eric612's RegionLoss, or (1, 1, G, 8), Intel's; got (2, 9, 5)"
    ):
        build(region(), x, (2, 9, 5))
    with refused("bottom[0] must be (N, 40, H, W), for 5 boxes of 4 coordinates, an object and 3 classes"):
        build(region(), (2, 41, SIDE, SIDE), label)
    with refused("5 boxes of 4 coordinates, an object and 3 classes; got ()"):
        build(region(), (), label)
    with refused("bottom[0] must be as high as it is wide"):
        build(region(), (2, 40, 5, SIDE), label)
    with refused("both bottoms must have as many images; got 2 and 3"):
        build(region(), x, (3, 1, 9, 5))
    with refused("side must be that of bottom[0], 6; got 13"):
        build(region(side=13), x, (1, 1, 9, 8))
    with refused("coords must be 4; got 5"):
        build(region("coords: 5"), x, label)
    with refused("num must be at least 1; got 0"):
        build(region("num: 0"), x, label)
    for name in ("softmax_tree", "class_map"):
        with refused(f"{name} is not supported; got 'file'"):
            build(region(f'{name}: "file"'), x, label)
    with refused("biases must have a width and a height for each anchor, 12 numbers or more; got 10"):
        build(region("num: 6"), x, label)
    few = 'type: "RegionLoss" region_loss_param { num_class: 3 num: 1 side: 6 biases: 1 biases: 2 }'
    with refused("biases must have ten numbers or more; the fork takes 0 for 2"):
        build(few, (2, 8, SIDE, SIDE), label)
    assert build(few, (2, 8, SIDE, SIDE), (1, 1, 9, 8)).leftovers == []


def test_wrong_labels_are_named() -> None:
    x, label = predictions(), boxes_of_images()
    layer = build(region(), tuple(x.shape), tuple(label.shape))
    wrong = label.clone()
    wrong[0, 0, 0, 0] = 3
    with refused("label 3 is out of range: there are 3 classes"):
        run(layer, x, wrong)
    wrong = label.clone()
    wrong[0, 0, 0, 1] = 1.0
    with refused("a box whose centre is outside of the image, in cell 6 of 6, from 0"):
        run(layer, x, wrong)
    wrong = boxes_of_a_batch()
    wrong[0, 0, 0, 0] = 2
    with refused("the label has a box of image 2; the batch has 2, from 0"):
        run(build(region(), tuple(x.shape), tuple(wrong.shape)), x, wrong)


def test_no_gradient_goes_to_the_label() -> None:
    x, label = predictions(), boxes_of_images().requires_grad_()
    layer = build(region(), tuple(x.shape), tuple(label.shape))
    loss = run(layer, x.requires_grad_(), label)[0]
    with refused("RegionLoss Layer cannot backpropagate to label inputs."):
        loss.backward()


@pytest.mark.parametrize("label", [boxes_of_images(), boxes_of_a_batch()])
def test_an_iteration_needs_nothing_of_the_host(label: Tensor) -> None:
    """On a device that has shapes only, where no value can be asked for."""
    x = predictions()
    layer = build(region(), tuple(x.shape), tuple(label.shape)).to("meta")
    leaf = x.to("meta").requires_grad_()
    run(layer, leaf, label.to("meta"))[0].backward()
    assert leaf.grad is not None and leaf.grad.shape == x.shape


def test_a_resumed_run_has_the_anchors_of_its_own_prototxt() -> None:
    """They are no state of the run: whoever changes them, and resumes, means to have the new ones."""
    x, label = predictions(), boxes_of_images()

    def streams(text: str) -> Streams:
        net = f"""layer {{ name: "in" type: "Input" top: "x" top: "l" input_param {{
                shape {{ dim: {list(x.shape)} }} shape {{ dim: {list(label.shape)} }} }} }}
            layer {{ name: "it" {text} bottom: "x" bottom: "l" top: "y" }}"""
        return Streams(CaffeRandom(1), [Net(parse_net(net))], torch.device("cpu"))

    old, new = streams(region()), streams(region().replace("1.08", "2.16"))
    feeds = {"x": x, "l": label}
    want = new.nets[0](feeds)["y"].item()
    assert want != old.nets[0](feeds)["y"].item()
    new.set_state(old.get_state())
    assert new.nets[0](feeds)["y"].item() == want
