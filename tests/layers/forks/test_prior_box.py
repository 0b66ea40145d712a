"""PriorBox and PriorBoxClustered against loops, beyond the recorded cases.

PriorBoxClustered is not recorded: the loop is written from the description of its results.
"""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from single_layer import build, check_contract, check_onnx, normal, refused, run
from tolerances import tolerance

from imae.layers.forks.prior_box import PriorBox

MAP, IMAGE = normal(2, 4, 3, 5), normal(2, 3, 30, 41)


def loops(
    sizes: list[tuple[float, float]], steps: tuple[float, float], image: tuple[int, int], offset: float = 0.5
) -> NDArray[np.float64]:
    """Boxes in the order row, column, size."""
    boxes = []
    for row in range(3):
        for column in range(5):
            y, x = (row + offset) * steps[0], (column + offset) * steps[1]
            for width, height in sizes:
                boxes.append([(x - width / 2) / image[1], (y - height / 2) / image[0],
                              (x + width / 2) / image[1], (y + height / 2) / image[0]])  # fmt: skip
    return np.array(boxes)


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ("min_size: 7.9", [(7, 7)]),
        ("min_size: 4 min_size: 8", [(4, 4), (8, 8)]),
        (
            "min_size: 4 min_size: 8 max_size: 8.5 max_size: 9",
            [(4, 4), (math.sqrt(32),) * 2, (8, 8), (math.sqrt(72),) * 2],
        ),
        (
            "min_size: 4 aspect_ratio: 4 aspect_ratio: 1 aspect_ratio: 0.25",
            [(4, 4), (8, 2), (2, 8)],
        ),
        ("min_size: 4 aspect_ratio: 4 aspect_ratio: 0.25 flip: false", [(4, 4), (8, 2), (2, 8)]),
        ("min_size: 4 max_size: 9 aspect_ratio: 4 flip: false", [(4, 4), (6, 6), (8, 2)]),
    ],
)
def test_sizes(fields: str, sizes: list[tuple[float, float]]) -> None:
    (top,) = run(
        build(f'type: "PriorBox" prior_box_param {{ {fields} }}', MAP.shape, IMAGE.shape), MAP, IMAGE
    )
    want = loops(sizes, (10, 8.2), (30, 41))
    assert top.shape == (1, 2, want.size)
    rtol, atol, _ = tolerance("formula")
    np.testing.assert_allclose(top[0, 0].reshape(-1, 4), want, rtol=rtol, atol=atol)
    assert torch.equal(top[0, 1], torch.full_like(top[0, 1], 0.1))


@pytest.mark.parametrize(
    ("fields", "steps", "image", "offset"),
    [
        ("step: 8", (8, 8), (30, 41), 0.5),
        ("step_h: 8 step_w: 9 offset: 0.25", (8, 9), (30, 41), 0.25),
        ("img_size: 60", (20, 12), (60, 60), 0.5),
        ("img_h: 60 img_w: 50", (20, 10), (60, 50), 0.5),
    ],
)
@pytest.mark.parametrize("clip", [False, True])
def test_places(
    fields: str, steps: tuple[float, float], image: tuple[int, int], offset: float, clip: bool
) -> None:
    words = f"min_size: 12 {fields} clip: {str(clip).lower()} variance: 0.1 variance: 0.2 variance: 0.3"
    layer = build(f'type: "PriorBox" prior_box_param {{ {words} variance: 4 }}', MAP.shape, IMAGE.shape)
    (top,) = run(layer, MAP, IMAGE)
    want = loops([(12, 12)], steps, image, offset)
    rtol, atol, _ = tolerance("formula")
    np.testing.assert_allclose(
        top[0, 0].reshape(-1, 4), want.clip(0, 1) if clip else want, rtol=rtol, atol=atol
    )
    np.testing.assert_allclose(top[0, 1].reshape(-1, 4), [[0.1, 0.2, 0.3, 4]] * 15, rtol=rtol)


@pytest.mark.parametrize("flip", ["true", "false"])
def test_many_ratios_are_each_compared_with_all(flip: str) -> None:
    """In a time that grows with their number, not with its square."""
    rng = np.random.default_rng(3)
    values = np.float32(np.round(np.exp(rng.uniform(-1, 1, 300)), 2) + rng.choice([0, 5e-7, 2e-6], 300))
    values = np.concatenate([values, np.float32(1) / values[:50]])
    expected = [np.float32(1)]
    for value in values:
        if all(abs(value - ratio) >= 1e-6 for ratio in expected):
            expected += [value, np.float32(1 / float(value))][: 2 if flip == "true" else 1]
    assert 50 < len(expected) < 600

    def layer(values: object) -> PriorBox:
        ratios = " ".join(f"aspect_ratio: {value!r}" for value in np.asarray(values, float).tolist())
        made = build(
            f'type: "PriorBox" prior_box_param {{ min_size: 4 flip: {flip} {ratios} }}',
            (1, 1, 1, 1),
            (1, 1, 8, 8),
        )
        assert isinstance(made, PriorBox)
        return made

    assert layer(values)._ratios().tolist() == [float(value) for value in expected]
    before = time.process_time()
    assert len(layer(1 + 1e-4 * np.arange(1, 20_000))._ratios()) >= 20_000
    assert time.process_time() - before < 15


@pytest.mark.parametrize("variance", ["", "variance: 0.3"])
def test_clustered(variance: str) -> None:
    text = f"""type: "PriorBoxClustered" prior_box_param {{
        width: 9.4 height: 15.5 width: 25.1 height: 3 {variance} step: 8 offset: 0.4 }}"""
    (top,) = run(build(text, MAP.shape, IMAGE.shape), MAP, IMAGE)
    want = loops([(9.4, 15.5), (25.1, 3)], (8, 8), (30, 41), 0.4)
    rtol, atol, _ = tolerance("formula")
    np.testing.assert_allclose(top[0, 0].reshape(-1, 4), want, rtol=rtol, atol=atol)
    np.testing.assert_allclose(top[0, 1], 0.3 if variance else 0.1, rtol=rtol)
    check_contract(text, MAP, IMAGE)


def test_contract_and_onnx() -> None:
    text = 'type: "PriorBox" prior_box_param { min_size: 9 max_size: 12 aspect_ratio: 2 clip: true }'
    check_contract(text, MAP, IMAGE)
    # In a net the map and the image share the batch size; the priors have none.
    check_onnx(text, MAP, IMAGE)


def test_the_image_may_be_left_out_where_its_size_is_given() -> None:
    text = 'type: "PriorBox" prior_box_param { min_size: 9 img_h: 30 img_w: 41 }'
    (alone,) = run(build(text, MAP.shape), MAP)
    assert torch.equal(alone, run(build(text, MAP.shape, IMAGE.shape), MAP, IMAGE)[0])
    with refused("give the image as a second bottom, or its size as img_size, or img_h and img_w"):
        build('type: "PriorBox" prior_box_param { min_size: 9 }', MAP.shape)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("", "must provide min_size, larger than 0; got []"),
        ("min_size: 0", "must provide min_size, larger than 0; got [0.0]"),
        ("min_size: 4 max_size: 4", "max_size must be greater than min_size.; got 4.0 and 4.0"),
        ("min_size: 4 min_size: 5 max_size: 6", "as many max_sizes as min_sizes; got 1 and 2"),
        ("min_size: 4 variance: 1 variance: 2", "variance: 1 or 4 values larger than 0 are needed"),
        ("min_size: 4 variance: 0", "variance: 1 or 4 values larger than 0 are needed"),
        ("min_size: 4 img_size: 3 img_h: 4", "Either img_size or img_h/img_w should be specified; not both."),
        ("min_size: 4 img_h: 4", "img_h and img_w should be larger than 0.; got 4 and 0"),
        ("min_size: 4 step: 1 step_h: 4", "Either step or step_h/step_w should be specified; not both."),
        ("min_size: 4 step: 0", "step should be larger than 0."),
        (
            "min_size: 4 aspect_ratio: -2",
            "aspect_ratio must be larger than 0, and not too small or large; got -2.0",
        ),
        ("min_size: inf", "must provide min_size, larger than 0; got [inf]"),
        ("min_size: 4 max_size: nan", "max_size must be greater than min_size.; got nan and 4.0"),
        ("min_size: 4 variance: nan", "variance: 1 or 4 values larger than 0 are needed; got [nan]"),
        ("min_size: 4 aspect_ratio: 1e-30", "aspect_ratio must be larger than 0"),
        ("min_size: 4 width: 2", "width and height are PriorBoxClustered's; PriorBox has min_size"),
    ],
)
def test_fields_that_are_refused(fields: str, message: str) -> None:
    with refused(message):
        build(f'type: "PriorBox" prior_box_param {{ {fields} }}', MAP.shape, IMAGE.shape)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("", "must provide width, and as many heights; got 0 and 0"),
        ("width: 2 width: 3 height: 1", "must provide width, and as many heights; got 2 and 1"),
        ("width: 2 height: 0", "width and height must be positive."),
    ],
)
def test_fields_of_the_clustered_one_that_are_refused(fields: str, message: str) -> None:
    with refused(message):
        build(f'type: "PriorBoxClustered" prior_box_param {{ {fields} }}', MAP.shape, IMAGE.shape)


def test_shapes_that_are_refused() -> None:
    text = 'type: "PriorBox" prior_box_param { min_size: 4 }'
    for shape in ((2, 4, 0, 5), (2, 4, 1, 5, 5)):
        with refused("a map and an image have at most 4 axes and at least one cell"):
            build(text, shape, IMAGE.shape)
