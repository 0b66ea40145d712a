"""ImageSegData against OpenCV and the draws of its stream, pixel by pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray
from single_layer import refused

from imae.files.errors import DataError, SnapshotError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.forks.image_seg_data import ImageSegData
from imae.layers.registry import layer_class
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt import TEST, TRAIN, LayerParameter
from imae.prototxt.text import parse_net

COUNT, MEANS = 4, (10.0, 20.0, 30.0)
MEAN = "mean_value: 10 mean_value: 20 mean_value: 30"
Image = NDArray[Any]
Batch = tuple[Image, Image, Image]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with images of several sizes, images of labels, and lists of them."""
    random = np.random.default_rng(0)
    for i in range(COUNT):
        for name, size in ((f"image{i}", (12 + i, 16 - i, 3)), (f"label{i}", (12 + i, 16 - i))):
            picture = random.integers(0, 256 if "image" in name else 21, size, np.uint8)
            (tmp_path / f"{name}.png").write_bytes(bytes(cv2.imencode(".png", picture)[1]))
    (tmp_path / "list").write_text("".join(f"image{i}.png label{i}.png\n" for i in range(COUNT)))
    (tmp_path / "numbers").write_text(
        "image0.png 7\nimage0.png\nimage0.png 300 9\nimage0.png -3\nimage0.png x\n"
    )
    monkeypatch.chdir(tmp_path)


def build(fields: str = "", transform: str = "", phase: int = TRAIN, seed: int = 1) -> ImageSegData:
    size = "" if "batch_size" in fields else "batch_size: 2"
    source = "" if "source" in fields else 'source: "list" label_type: PIXEL'
    param = text_format.Parse(
        f"""name: "it" type: "ImageSegData" top: "data" top: "label" top: "data_dim"
        transform_param {{ {transform} }} image_data_param {{ {source} {size} {fields} }}""",
        LayerParameter(),
    )
    param.phase = phase  # type: ignore[assignment]  # an int, checked by protobuf
    layer = ImageSegData(param)
    layer.build([], Run(CaffeRandom(seed)))
    return layer


def batches(layer: ImageSegData, count: int) -> list[Batch]:
    made = [layer.next_batch() for _ in range(count)]
    layer.close()
    return [(data.numpy(), label.numpy(), dim.numpy()) for data, label, dim in made]


def pair(i: int) -> tuple[Image, Image]:
    """Image (H, W, 3) and labels (H, W)."""
    image = cv2.imread(f"image{i}.png", cv2.IMREAD_COLOR)
    labels = cv2.imread(f"label{i}.png", cv2.IMREAD_GRAYSCALE)
    assert image is not None and labels is not None
    return image, labels


def stream_of(seed: int) -> CaffeRandom:
    """The transformer's: it is seeded twice, and the second seed is in use."""
    random = CaffeRandom(seed)
    random.fork()
    return random.fork()


def window(
    image: Image, labels: Image, crop: tuple[int, int], places: tuple[int, int]
) -> tuple[Image, Image]:
    """Pixel by pixel, what lies at these places; beyond the image: the means and 255."""
    pixels, near = np.zeros((3, *crop), np.float32), np.zeros(crop, np.float32)
    for row, column in np.ndindex(*crop):
        y, x = row + places[0], column + places[1]
        inside = y < image.shape[0] and x < image.shape[1]
        near[row, column] = labels[y, x] if inside else 255
        for channel in range(3):
            pixel = float(image[y, x, channel]) if inside else MEANS[channel]
            pixels[channel, row, column] = pixel - MEANS[channel]
    return pixels, near


@pytest.mark.parametrize(
    ("transform", "crop"),
    [
        ("crop_size: 9", (9, 9)),
        ("crop_size: 14", (14, 14)),  # of some images more than their height or width
        ("crop_size: 20", (20, 20)),
        ("crop_height: 13 crop_width: 15 mirror: true", (13, 15)),
        ("crop_size: 10 mirror: true scale_factors: 0.5 scale_factors: 1 scale_factors: 1.75", (10, 10)),
    ],
)
@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_scaled_padded_cropped_and_mirrored_alike(transform: str, crop: tuple[int, int], phase: int) -> None:
    if phase == TEST and "mirror" not in transform:
        transform += " mirror: true"
    layer = build("batch_size: 3", f"{transform} {MEAN}", phase, seed=4)
    stream, factors = stream_of(4), layer.param.transform_param.scale_factors
    assert layer.shapes == [(3, 3, *crop), (3, 1, *crop), (3, 1, 1, 2)]
    for number, (data, label, dim) in enumerate(batches(layer, 6)):
        for place in range(3):
            image, labels = pair((3 * number + place) % COUNT)
            assert dim[place, 0, 0].tolist() == [
                min(a, b) for a, b in zip(crop, image.shape[:2], strict=True)
            ]
            flip = layer.param.transform_param.mirror and stream.modulo(2)
            factor = factors[stream.modulo(len(factors))] if factors else 1
            if factor != 1:
                size = (int(image.shape[1] * factor), int(image.shape[0] * factor))
                image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
                labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
            spare = [max(0, side - wanted) for side, wanted in zip(image.shape[:2], crop, strict=True)]
            if phase == TRAIN:
                places = stream.modulo(spare[0] + 1), stream.modulo(spare[1] + 1)
            else:
                places = spare[0] // 2, spare[1] // 2
            pixels, near = window(image, labels, crop, places)
            step = -1 if flip else 1
            np.testing.assert_array_equal(data[place], pixels[:, :, ::step])
            np.testing.assert_array_equal(label[place, 0], near[:, ::step])


def test_labels_of_whole_images() -> None:
    """What is no number is 0; the label is a byte."""
    got = batches(build('source: "numbers" batch_size: 5 label_type: IMAGE'), 1)[0]
    assert [set(label.flatten()) for label in got[1]] == [{7}, {0}, {255}, {0}, {0}]
    np.testing.assert_array_equal(got[0][1], pair(0)[0].transpose(2, 0, 1))
    assert got[2].reshape(5, 2).tolist() == [[12, 16]] * 5
    default = batches(build('source: "numbers" batch_size: 1'), 1)[0]
    assert set(default[1].flatten()) == {7}
    for field, value in (("", 255), ("ignore_label: 11", 11), ("ignore_label: 999", 255)):
        none = batches(build(f'source: "numbers" label_type: NONE {field}'), 1)[0]
        assert set(none[1].flatten()) == {value}


def test_new_sizes_interpolate_the_labels_too() -> None:
    ((data, label, dim),) = batches(build("new_height: 8 new_width: 30", f"scale: 0.5 {MEAN}"), 1)
    for place in range(2):
        image, labels = (cv2.resize(picture, (30, 8)) for picture in pair(place))
        want = (np.float32(image) - np.float32(MEANS)) * np.float32(0.5)
        np.testing.assert_array_equal(data[place], want.transpose(2, 0, 1))
        np.testing.assert_array_equal(label[place, 0], labels)
    assert dim.reshape(2, 2).tolist() == [[8, 30]] * 2


def test_grey_images_and_one_mean() -> None:
    ((data, _, _),) = batches(build("is_color: false", "mean_value: 5 crop_size: 20"), 1)
    assert data.shape == (2, 1, 20, 20)
    grey = cv2.imread("image1.png", cv2.IMREAD_GRAYSCALE)
    assert grey is not None
    np.testing.assert_array_equal(data[1, 0, :13, :15], np.float32(grey) - 5)
    assert not data[1, 0, 13:].any() and not data[1, 0, :, 15:].any()


def test_a_run_that_is_resumed_goes_on_with_the_same_batches() -> None:
    fields = "shuffle: true", f"crop_size: 9 mirror: true scale_factors: 1 scale_factors: 1.5 {MEAN}"
    layer, other = build(*fields, seed=5), build(*fields, seed=6)
    for _ in range(5):
        layer.next_batch()
    state = layer.get_state()
    want = batches(layer, 4)
    other.set_state(state)
    for got, expected in zip(batches(other, 4), want, strict=True):
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    Path("list").write_text("image0.png label0.png\n")
    with pytest.raises(SnapshotError, match="'list' lists 1 images; it listed 4 when the snapshot was made"):
        build(*fields).set_state(state)


@pytest.mark.parametrize(
    ("fields", "transform", "message"),
    [
        ("new_width: 5", "", "requires new_height and new_width to be set at the same time.; got 0 and 5"),
        ("", "mean_file: 'mean'", "ImageSegDataLayer does not support mean file"),
        ("", "crop_height: 5", "Must either specify crop_size or both crop_height and crop_width."),
        ("", "crop_size: 5 crop_height: 5 crop_width: 5", "Must either specify crop_size or both"),
        ("", "crop_height: 0 crop_width: 5", "crop_height and crop_width must both be above 0; got (0, 5)"),
        ("", "crop_height: 4 crop_width: 5", "draw from a stream that there is only with mirror: true"),
        ("", "scale_factors: 1 crop_height: 4 crop_width: 5", "draw from a stream"),
        ("", "scale_factors: -1 mirror: true", "scale_factors must be above 0; got [-1.0]"),
        ("", "mean_value: 1 mean_value: 2", "Specify either 1 mean_value or as many as channels: 3; got 2"),
        ("rand_skip: 1000", "", "Not enough points to skip"),
    ],
)
def test_errors(fields: str, transform: str, message: str) -> None:
    with refused(message):
        build(fields, transform)


def test_crops_of_the_centre_need_no_stream() -> None:
    ((data, _, _),) = batches(build("", f"crop_height: 4 crop_width: 5 {MEAN}", TEST), 1)
    np.testing.assert_array_equal(data[0], window(*pair(0), (4, 5), (4, 5))[0])
    with refused("draw from a stream"):
        build("", "scale_factors: 2 crop_size: 5", TEST)


def test_errors_of_files() -> None:
    for text, message in (
        ("", "image list 'other': File is empty"),
        ("image0.png label0.png\nimage1.png\n", "line 2: expected two paths, got b'image1.png'"),
        ("image0.png label0.png\n\n", "line 2: expected two paths, got b''"),
    ):
        Path("other").write_text(text)
        with pytest.raises(DataError) as error:
            build('source: "other" label_type: PIXEL')
        assert message in str(error.value)
    Path("other").write_text("image0.png label1.png\n")
    with pytest.raises(DataError, match=r"label1\.png: img_height == .* have 13 x 15, the image 12 x 16"):
        batches(build('source: "other" label_type: PIXEL'), 1)
    with pytest.raises(DataError, match="is 13 x 15, that of the first image was 12 x 16; give crop_size"):
        batches(build(), 1)
    with pytest.raises(DataError, match="is smaller than the crop, 30 x 30; it is padded with mean_value"):
        batches(build("", "crop_size: 30"), 1)
    with pytest.raises(DataError, match=r"a scale factor of 0\.01 makes 0 x 0 of its 12 x 16 pixels"):
        batches(build("", f"crop_size: 5 scale_factors: 0.01 {MEAN}"), 1)


@pytest.mark.parametrize("field", ["scale_factors: 2", "crop_width: 3", "crop_height: 3"])
@pytest.mark.parametrize("kind", ["Data", "ImageData", "WindowData"])
def test_other_data_layers_refuse_its_fields(kind: str, field: str) -> None:
    param = text_format.Parse(
        f'name: "it" type: "{kind}" transform_param {{ {field} }} image_data_param {{ batch_size: 1 }}',
        LayerParameter(),
    )
    with refused(f"transform_param.{field.partition(':')[0]} is for ImageSegData alone; remove it"):
        layer_class(kind)(param)


def test_a_net_makes_the_third_top_itself() -> None:
    net = Net(
        parse_net(
            """layer { name: "data" type: "ImageSegData" top: "data" top: "label"
                image_data_param { source: "list" label_type: PIXEL batch_size: 1 }
                transform_param { crop_size: 9 mirror: true } }
            layer { name: "interp" type: "Interp" bottom: "label" top: "small"
                interp_param { shrink_factor: 8 } }"""
        ),
        Run(CaffeRandom(1)),
    )
    assert net.blob_shapes["small"] == (1, 1, 2, 2)
    assert net({})["small"].shape == (1, 1, 2, 2)
