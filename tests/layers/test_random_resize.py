"""Images that are resized at random, as Intel's and NVIDIA's forks do it, and their colours.

Nothing of these is recorded. The references are independent: the forks' steps, number by number.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from test_record_order import build as build_data
from test_record_order import make_lmdb

from imae.files.errors import DataError, ImaeError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.image_data import ImageData
from imae.layers.data.transformer import DataTransformer
from imae.layers.run import Run
from imae.prototxt import TEST, TRAIN, LayerParameter, TransformationParameter
from imae.prototxt.text import parse_text

pytestmark = pytest.mark.usefixtures("here")

Image = NDArray[np.uint8]
SIZES = ((9, 14), (14, 9), (11, 11), (20, 9))


def images(channels: int = 3) -> list[Image]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (channels, *size), np.uint8) for size in SIZES]


def transformer(text: str, phase: int = TEST, seed: int = 5) -> DataTransformer:
    made = DataTransformer(parse_text(text, TransformationParameter, "<test>"), phase, "it")
    made.seed(CaffeRandom(seed))
    return made


def transformed(text: str, pictures: list[Image], phase: int = TEST) -> NDArray[np.float32]:
    return transformer(text, phase).transform_list(pictures, str)


def resized(image: Image, height: int, width: int, interpolation: int) -> Image:
    made = cv2.resize(
        np.ascontiguousarray(image.transpose(1, 2, 0)), (width, height), None, 0, 0, interpolation
    )
    return np.asarray(made, np.uint8).reshape(height, width, -1).transpose(2, 0, 1)


def centre(image: Image, size: int) -> Image:
    top, left = (image.shape[1] - size) // 2, (image.shape[2] - size) // 2
    return image[:, top : top + size, left : left + size]


def stream_of(seed: int = 5) -> CaffeRandom:
    """The transformer's stream."""
    return CaffeRandom(seed).fork()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("low", "high", "mode", "interpolation"),
    [(6, 8, "", cv2.INTER_LINEAR), (0, 0, "", cv2.INTER_LINEAR), (12, 30, "CUBIC", cv2.INTER_CUBIC),
     (7, 7, "AREA", cv2.INTER_AREA)],
)  # fmt: skip
def test_intels_random_size(low: int, high: int, mode: str, interpolation: int, channels: int) -> None:
    resize = f"resize_param {{ interp_mode: {mode} }}" if mode else ""
    text = f"crop_size: 6 random_resize_param {{ min_size: {low} max_size: {high} {resize} }}"
    random, want = stream_of(), []
    for image in images(channels):
        height, width = image.shape[1:]
        least, most = low or min(height, width), high or max(height, width)
        side = least + random.word() % (most - least + 1)
        size = (side, int(width / height * side)) if height < width else (int(height / width * side), side)
        want.append(centre(resized(image, *size, interpolation), 6))
    np.testing.assert_array_equal(transformed(text, images(channels)), np.stack(want))


def test_the_words_of_mirror_and_crop_come_after_those_of_the_sizes() -> None:
    text = "crop_size: 4 mirror: true random_resize_param { min_size: 6 max_size: 9 }"
    random, scaled, want = stream_of(), [], []
    for image in images():
        height, width = image.shape[1:]
        side = 6 + random.word() % 4
        size = (side, int(width / height * side)) if height < width else (int(height / width * side), side)
        scaled.append(resized(image, *size, cv2.INTER_LINEAR))
    for image in scaled:
        flip, top, left = random.word() % 2, random.word(), random.word()
        top, left = top % (image.shape[1] - 3), left % (image.shape[2] - 3)
        window = image[:, top : top + 4, left : left + 4]
        want.append(window[:, :, ::-1] if flip else window)
    np.testing.assert_array_equal(transformed(text, images(), TRAIN), np.stack(want))


@pytest.mark.parametrize("attempts", [0, 1, 10])
@pytest.mark.parametrize("fields", ["", "min_area_ratio: 0.25 max_area_ratio: 0.5 aspect_ratio_change: 0.75"])
def test_intels_random_aspect_ratio(fields: str, attempts: int) -> None:
    text = f"crop_size: 5 random_aspect_ratio_param {{ {fields} max_attempt: {attempts} }}"
    low, high, change = (0.25, 0.5, 0.75) if fields else (0.5, 1.0, 1.0)
    random, want, fits = stream_of(), [], 0

    def drawn(least: float, most: float) -> float:
        return (random.word() % int((most - least) * 1000 + 1) + least * 1000) / 1000

    for image in images():
        height, width = image.shape[1:]
        for _ in range(attempts):
            area, factor = drawn(low, high) * height * width, drawn(change, 1 / change)
            rows, columns = int(math.sqrt(area) * factor), int(math.sqrt(area) / factor)
            if drawn(0, 1) < 0.5:
                rows, columns = columns, rows
            if rows <= height and columns <= width:
                top, left = random.word() % (height - rows + 1), random.word() % (width - columns + 1)
                window = image[:, top : top + rows, left : left + columns]
                want.append(resized(window, 5, 5, cv2.INTER_LINEAR))
                fits += 1
                break
        else:
            size = (5, int(width / height * 5)) if height < width else (int(height / width * 5), 5)
            want.append(centre(resized(image, *size, cv2.INTER_LINEAR), 5))
    assert bool(fits) == bool(attempts)
    np.testing.assert_array_equal(transformed(text, images()), np.stack(want))


@pytest.mark.parametrize(
    "fields",
    [
        {"img_rand_resize_lower": 7, "img_rand_resize_upper": 8},
        {"img_rand_resize_lower": 7, "img_rand_resize_upper": 30, "allow_upscale": 1},
        {"img_rand_resize_lower": 7, "img_rand_resize_upper": 30},
        {"rand_resize_ratio_lower": 1.0, "rand_resize_ratio_upper": 1.5, "allow_upscale": 1},
        {"vertical_stretch_lower": 0.5, "vertical_stretch_upper": 1.5, "allow_upscale": 1},
        {"img_rand_resize_lower": 8, "img_rand_resize_upper": 8, "horizontal_stretch_lower": 0.7,
         "horizontal_stretch_upper": 1.3, "vertical_stretch_lower": 1.3, "vertical_stretch_upper": 0.7},
        {"img_rand_resize_lower": 8},
    ],
)  # fmt: skip
@pytest.mark.parametrize("modes", [("INTER_NEAREST", "INTER_CUBIC"), ("INTER_AREA", "INTER_LINEAR")])
def test_nvidias_random_size(fields: dict[str, float], modes: tuple[str, str]) -> None:
    algorithms = "" if modes[1] == "INTER_CUBIC" else (
        f"interpolation_algo_down: {modes[0]} interpolation_algo_up: {modes[1]}"
    )  # fmt: skip
    given = " ".join(f"{name}: {value}" for name, value in fields.items()).replace(
        "upscale: 1", "upscale: true"
    )
    random, want = stream_of(), []

    def between(name: str, default: float) -> float:
        ends = [fields.get(f"{name}_{end}", default) for end in ("lower", "upper")]
        low, high = sorted(ends)
        return low if low == high else low + (high - low) * random.word() / (2**32 - 1)

    for image in images():
        height, width = image.shape[1:]
        side = min(height, width)
        low, high = fields.get("img_rand_resize_lower", 0), fields.get("img_rand_resize_upper", 0)
        if low and high:
            side = int(low + random.word() % (high - low + 1))
        scale = side / min(height, width)
        rows, columns = scale * height, scale * width
        if "rand_resize_ratio_upper" in fields:
            ratio = between("rand_resize_ratio", 0)
            if columns > rows or (columns == rows and random.word() % 2):
                columns = rows * ratio
            else:
                rows = columns * ratio
        rows *= between("vertical_stretch", 1)
        columns *= between("horizontal_stretch", 1)
        size = [max(5, math.floor(number + 0.5)) for number in (rows, columns)]
        if "allow_upscale" not in fields:
            size = [min(size[0], height), min(size[1], width)]
        mode = modes[0] if size[0] <= height and size[1] <= width else modes[1]
        want.append(centre(resized(image, *size, getattr(cv2, mode)), 5))
    np.testing.assert_array_equal(transformed(f"crop_size: 5 {given} {algorithms}", images()), np.stack(want))


def test_means_and_scale_come_after_it() -> None:
    text = "crop_size: 5 random_resize_param { min_size: 7 max_size: 7 }"
    want = (transformed(text, images()) - np.array([1, 2, 3], np.float32)[:, None, None]) * np.float32(0.5)
    got = transformed(text + " mean_value: 1 mean_value: 2 mean_value: 3 scale: 0.5", images())
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("random_resize_param {}", "it: images of random sizes need a crop_size"),
        (
            'crop_size: 2 mean_file: "m" random_resize_param {}',
            "mean_file does not fit images of random sizes",
        ),
        (
            "crop_size: 2 random_resize_param {} random_aspect_ratio_param {}",
            "passes over random_aspect_ratio",
        ),
        (
            "crop_size: 2 random_resize_param {} img_rand_resize_lower: 3",
            "by fields of Intel's fork and of NVIDIA",
        ),
        ("crop_size: 2 random_resize_param { resize_param { height: 3 } }", "may have one interp_mode"),
        ("crop_size: 2 random_aspect_ratio_param { min_area_ratio: 0 }", "min_area_ratio must be above 0"),
        (
            "crop_size: 2 random_aspect_ratio_param { min_area_ratio: 2 }",
            "at most max_area_ratio, got 2 and 1",
        ),
        (
            "crop_size: 2 random_aspect_ratio_param { aspect_ratio_change: 2 }",
            "aspect_ratio_change must be above",
        ),
        (
            "crop_size: 2 img_rand_resize_lower: 4 img_rand_resize_upper: 3",
            "upper bound can't be less than lower",
        ),
        (
            "crop_size: 2 vertical_stretch_lower: inf",
            "vertical_stretch_lower must be a finite number, got inf",
        ),
        ("pad: 1", "transform_param.pad, of Intel's fork, would put a border of zeros"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ImaeError, match=message):
        transformer(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crop_size: 5 random_resize_param { min_size: 3 max_size: 4 }", "0: datum_height >= crop_size"),
        (
            "crop_size: 5 random_resize_param { min_size: 30 max_size: 20 }",
            "sizes from 30 to 20, for an image of 9",
        ),
        (
            "crop_size: 1 random_aspect_ratio_param { min_area_ratio: 0.001 max_area_ratio: 0.001 }",
            "0: nothing is",
        ),
        ("crop_size: 5 random_resize_param { min_size: 100000 max_size: 100000 }", "0: resized: "),
    ],
)
def test_images_that_cannot_be_resized(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        transformed(text, images())
    with pytest.raises(DataError, match="0: Image data type must be unsigned byte"):
        transformer("crop_size: 5 random_resize_param { min_size: 6 }").transform_list(
            [np.zeros((3, 9, 9), np.float32)], str
        )


def test_a_data_layer_goes_on_where_it_stood() -> None:
    make_lmdb([0, 1, 2])
    text = "crop_size: 4 mirror: true random_resize_param { min_size: 5 max_size: 9 }"
    whole, resumed = build_data("", 2, text), build_data("", 2, text)
    assert not whole.make_resident(whole.next_batch()[0].device, 1 << 30)
    state = whole.get_state()
    want = [whole.next_batch()[0].numpy() for _ in range(3)]
    resumed.set_state(state)
    for batch in want:
        np.testing.assert_array_equal(resumed.next_batch()[0].numpy(), batch)


def test_bgr2rgb(here: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (6, 5, 3), np.uint8)
    (here / "0.png").write_bytes(bytes(cv2.imencode(".png", picture)[1]))
    (here / "list").write_text("0.png 0\n")
    tops = []
    for field in ("", "transform_param { bgr2rgb: true mean_value: 1 mean_value: 2 mean_value: 3 }"):
        source = 'top: "x" top: "y" image_data_param { source: "list" batch_size: 1 }'
        text = f'name: "it" type: "ImageData" {source}'
        layer = ImageData(parse_text(f"{text} {field}", LayerParameter, "<test>"))
        layer.build([], Run(CaffeRandom(1)))
        tops.append(layer.next_batch()[0].numpy()[0])
    np.testing.assert_array_equal(tops[0], picture.transpose(2, 0, 1))
    np.testing.assert_array_equal(tops[1] + np.array([1, 2, 3])[:, None, None], tops[0][::-1])
