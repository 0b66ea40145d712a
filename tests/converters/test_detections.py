"""Boxes go back to the image as it was: what the prepared image shows is where it is in the original."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from imae.converters.detections import are_rows, boxes_in_pixels
from imae.converters.preprocessing import PreprocessingOptions, Size, make_preprocessing, read_transform
from imae.converters.run_onnx import resized
from imae.files.errors import ExportError

# A bright rectangle in an image of this size: rows and columns. Its sides, and the image's, are multiples of
# what the image shrinks by, so that it is as sharp in the prepared image.
CASES: list[tuple[str, dict[str, Any], Size, Size]] = [
    ("resize_param { height: 24 width: 32 }", {}, (48, 128), (24, 32)),
    ("", {}, (48, 128), (24, 32)),
    ("resize_param { height: 32 width: 32 resize_mode: FIT_LARGE_SIZE_AND_PAD }", {}, (48, 128), (32, 32)),
    ("resize_param { height: 32 width: 32 resize_mode: FIT_LARGE_SIZE_AND_PAD }", {}, (128, 64), (32, 32)),
    ("resize_param { height: 24 width: 30 resize_mode: FIT_SMALL_SIZE }", {}, (48, 128), (24, 64)),
    ("crop_size: 24", {}, (48, 96), (24, 24)),
    ("crop_size: 22", {"resize": (24, 32)}, (48, 128), (22, 22)),
    ("crop_h: 20 crop_w: 28 resize_param { height: 24 width: 32 }", {}, (48, 128), (20, 28)),
    ("crop_h: 40 crop_w: 100", {"resize": (48, 128)}, (48, 128), (40, 100)),
]
ROWS, COLUMNS = (12, 36), (32, 96)


@pytest.mark.parametrize(("transform", "options", "size", "input_size"), CASES)
def test_a_box_of_the_prepared_image_is_one_of_the_original(
    transform: str, options: dict[str, Any], size: Size, input_size: Size
) -> None:
    pixels = np.zeros((*size, 3), np.uint8)
    columns = COLUMNS if size[1] > COLUMNS[1] else (16, 48)
    pixels[slice(*ROWS), slice(*columns)] = 200
    shape = (1, 3, *input_size)
    own = make_preprocessing(read_transform(transform, "x"))
    prepared = PreprocessingOptions(**options).apply(own, shape)
    assert prepared is not None
    image = resized(pixels, prepared, shape)
    (values,) = prepared.transformer("x").transform_list([image], lambda _: "x")
    assert values.shape[1:] == input_size
    lit = np.argwhere(values[0] > 100)
    (ymin, xmin), (ymax, xmax) = lit.min(0), lit.max(0) + 1
    height, width = input_size
    row = np.array([[0, 3, 0.75, xmin / width, ymin / height, xmax / width, ymax / height]], np.float32)
    (box,) = boxes_in_pixels(row, size, prepared, shape, 0.5, "x")
    assert (box.label, box.score) == (3, 0.75)
    assert [round(side, 2) for side in box[2:]] == [columns[0], ROWS[0], columns[1], ROWS[1]]


def found(*rows: list[float], threshold: float = 0.5) -> list[tuple[int, float]]:
    own = make_preprocessing(read_transform("", "x"))
    values: NDArray[np.float32] = np.array(rows, np.float32).reshape(1, 1, -1, 7)
    return [box[:2] for box in boxes_in_pixels(values, (9, 9), own, (1, 3, 5, 5), threshold, "x")]


def test_the_best_come_first_and_those_below_the_threshold_not_at_all() -> None:
    rows = [[0, label, score, 0, 0, 1, 1] for label, score in ((1, 0.5), (2, 0.75), (3, 0.25), (4, 0.75))]
    assert found(*rows) == [(2, 0.75), (4, 0.75), (1, 0.5)]
    assert found([0, -1, -1, -1, -1, -1, -1], threshold=0) == []


def test_rows_that_are_no_boxes() -> None:
    with pytest.raises(ExportError, match="x: a box or its score is NaN or infinite"):
        found([0, 1, 0.9, 0, np.inf, 1, 1])
    with pytest.raises(ExportError, match=r"are no boxes: label 0\.25 is no whole number"):
        found([0, 0.25, 0.9, 0, 0, 1, 1])


def test_the_shape_of_rows() -> None:
    assert are_rows([1, 1, "k", 7]) and are_rows([1, 1, 200, 7])
    assert not any(are_rows(shape) for shape in ([1, 2, "k", 7], ["n", 1, 5, 7], [1, 1, 5, 6], [1, 7]))
