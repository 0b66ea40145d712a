"""DenseImageData against OpenCV and the draws of its streams, image by image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray
from single_layer import refused

from imae.files.errors import DataError, SnapshotError
from imae.layers.blob import blob_from_array
from imae.layers.caffe_random import CaffeRandom
from imae.layers.forks.dense_image_data import DenseImageData
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt import TEST, TRAIN, LayerParameter
from imae.prototxt.text import parse_net

COUNT = 5
Image = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with images, images of labels, and a list of both."""
    random = np.random.default_rng(0)
    (tmp_path / "sub").mkdir()
    for folder in ("", "sub/"):
        for i in range(COUNT):
            for name, size in ((f"image{i}", (12, 16, 3)), (f"label{i}", (12, 16))):
                picture = random.integers(0, 256 if "image" in name else 11, size, np.uint8)
                (tmp_path / f"{folder}{name}.png").write_bytes(bytes(cv2.imencode(".png", picture)[1]))
    (tmp_path / "list").write_text("".join(f"image{i}.png label{i}.png\n" for i in range(COUNT)))
    monkeypatch.chdir(tmp_path)


def build(fields: str = "", transform: str = "", phase: int = TRAIN, seed: int = 1) -> DenseImageData:
    param = text_format.Parse(
        f"""name: "it" type: "DenseImageData" top: "data" top: "label" transform_param {{ {transform} }}
        dense_image_data_param {{ source: "list" batch_size: 2 {fields} }}""".replace(
            "batch_size: 2", "" if "batch_size" in fields else "batch_size: 2"
        ).replace('source: "list"', "" if "source" in fields else 'source: "list"'),
        LayerParameter(),
    )
    param.phase = phase  # type: ignore[assignment]  # an int, checked by protobuf
    layer = DenseImageData(param)
    layer.build([], Run(CaffeRandom(seed)))
    return layer


def batches(layer: DenseImageData, count: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    for _ in range(count):
        data, label = layer.next_batch()
        yield data.numpy(), label.numpy()
    layer.close()


def pair(i: int, folder: str = "") -> tuple[Image, Image]:
    """Image (H, W, 3) and labels (H, W)."""
    image = cv2.imread(f"{folder}image{i}.png", cv2.IMREAD_COLOR)
    return image, cv2.imread(f"{folder}label{i}.png", cv2.IMREAD_GRAYSCALE)  # type: ignore[return-value]


def chw(image: Image) -> NDArray[np.float32]:
    return np.float32(image.transpose(2, 0, 1))


@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_pairs_in_the_order_of_the_list(phase: int) -> None:
    layer = build(phase=phase)
    assert layer.shapes == [(2, 3, 12, 16), (2, 1, 12, 16)]
    order = [i % COUNT for i in range(8)]
    for number, (data, label) in enumerate(batches(layer, 4)):
        for place, i in enumerate(order[2 * number : 2 * number + 2]):
            image, labels = pair(i)
            np.testing.assert_array_equal(data[place], chw(image))
            np.testing.assert_array_equal(label[place, 0], labels)


def test_mean_and_scale_are_the_images_alone() -> None:
    mean = np.random.default_rng(1).random((1, 3, 12, 16), np.float32)
    Path("mean").write_bytes(blob_from_array(mean).SerializeToString())
    image, labels = pair(0)
    for transform, want in (
        ("scale: 0.5 mean_value: 10 mean_value: 20 mean_value: 30",
         (chw(image) - np.float32([10, 20, 30])[:, None, None]) * np.float32(0.5)),
        ('mean_file: "mean"', chw(image) - mean[0]),
    ):  # fmt: skip
        ((data, label),) = batches(build(transform=transform), 1)
        np.testing.assert_array_equal(data[0], want)
        np.testing.assert_array_equal(label[0, 0], labels)


@pytest.mark.parametrize(("fields", "size"), [("", (12, 16)), ("root_folder: 'sub/'", (12, 16))])
def test_root_folder_and_grey_images(fields: str, size: tuple[int, int]) -> None:
    ((data, label),) = batches(build(f"{fields} is_color: false"), 1)
    folder = "sub/" if fields else ""
    grey = cv2.imread(f"{folder}image1.png", cv2.IMREAD_GRAYSCALE)
    assert data.shape == (2, 1, *size)
    np.testing.assert_array_equal(data[1, 0], grey)
    np.testing.assert_array_equal(label[1, 0], pair(1, folder)[1])


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_resizing(factor: int) -> None:
    """The labels by the nearest pixel, to a fraction of the size: no values that the file lacks."""
    layer = build(f"new_height: 10 new_width: 9 label_divide_factor: {factor}")
    small = (10 // factor, 9 // factor)
    assert layer.shapes == [(2, 3, 10, 9), (2, 1, *small)]
    ((data, label),) = batches(layer, 1)
    for place in range(2):
        image, labels = pair(place)
        bilinear = cv2.resize(image, (9, 10), interpolation=cv2.INTER_LINEAR)
        nearest = cv2.resize(labels, small[::-1], interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(data[place], chw(bilinear))  # type: ignore[arg-type]
        np.testing.assert_array_equal(label[place, 0], nearest)


@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_mirror_and_crop_are_the_same_for_image_and_labels(phase: int) -> None:
    """In the words' order: mirror, row, column, of the stream that is seeded after the set-up."""
    layer = build("mirror: true crop_height: 5 crop_width: 7", phase=phase, seed=4)
    assert layer.shapes == [(2, 3, 5, 7), (2, 1, 5, 7)]
    stream, seen = CaffeRandom(4).fork(), set()
    for number, (data, label) in enumerate(batches(layer, 10)):
        for place in range(2):
            image, labels = pair((2 * number + place) % COUNT)
            flip, down, right = stream.modulo(2), stream.modulo(8), stream.modulo(10)
            if flip:
                image, labels = image[:, ::-1], labels[:, ::-1]
            rows, columns = slice(down, down + 5), slice(right, right + 7)
            np.testing.assert_array_equal(data[place], chw(image[rows, columns]))
            np.testing.assert_array_equal(label[place, 0], labels[rows, columns])
            seen.add(flip)
    assert seen == {0, 1}


def test_mirrored_images_of_many_pixels() -> None:
    """They are transformed one by one."""
    layer = build("mirror: true new_height: 80 new_width: 100 batch_size: 6", "scale: 2", seed=4)
    stream = CaffeRandom(4).fork()
    ((data, label),) = batches(layer, 1)
    flips = []
    for place in range(6):
        image, labels = pair(place % COUNT)
        flips.append(stream.modulo(2))
        image = cv2.resize(image, (100, 80))  # type: ignore[assignment]
        labels = cv2.resize(labels, (100, 80), interpolation=cv2.INTER_NEAREST)  # type: ignore[assignment]
        step = -1 if flips[-1] else 1
        np.testing.assert_array_equal(data[place], 2 * chw(image[:, ::step]))
        np.testing.assert_array_equal(label[place, 0], labels[:, ::step])
    assert 0 < sum(flips) < 6


def test_shuffle_and_rand_skip() -> None:
    layer = build("shuffle: true batch_size: 1", seed=3)
    shuffler = CaffeRandom(3).fork()
    order = shuffler.shuffle(COUNT)
    again = order[shuffler.shuffle(COUNT)]
    got = [data[0] for data, _ in batches(layer, 2 * COUNT)]
    for data, i in zip(got, [*order, *again], strict=True):
        np.testing.assert_array_equal(data, chw(pair(i)[0]))
    skipped = CaffeRandom(3).modulo(4)
    assert skipped
    ((data, _),) = batches(build("rand_skip: 4 batch_size: 1", seed=3), 1)
    np.testing.assert_array_equal(data[0], chw(pair(skipped)[0]))


def test_a_batch_of_one_has_the_size_of_its_image() -> None:
    small = np.zeros((4, 5, 3), np.uint8)
    for name, picture in (("image1", small), ("label1", small[:, :, 0])):
        Path(f"{name}.png").write_bytes(bytes(cv2.imencode(".png", picture)[1]))
    shapes = [(data.shape, label.shape) for data, label in batches(build("batch_size: 1"), 3)]
    assert shapes == [((1, 3, 12, 16), (1, 1, 12, 16)), ((1, 3, 4, 5), (1, 1, 4, 5)),
                      ((1, 3, 12, 16), (1, 1, 12, 16))]  # fmt: skip
    with pytest.raises(DataError, match=r"image1\.png: height <= img_height"):
        list(batches(build(), 1))


def test_a_run_that_is_resumed_goes_on_with_the_same_batches() -> None:
    fields = "shuffle: true mirror: true crop_height: 5 crop_width: 7"
    layer, other = build(fields, seed=5), build(fields, seed=6)
    for _ in range(4):
        layer.next_batch()
    state = layer.get_state()
    want = list(batches(layer, 4))
    other.set_state(state)
    for got, expected in zip(batches(other, 4), want, strict=True):
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    Path("list").write_text("image0.png label0.png\n")
    with pytest.raises(SnapshotError, match="'list' lists 1 images; it listed 5 when the snapshot was made"):
        build(fields).set_state(state)


@pytest.mark.parametrize(
    ("fields", "transform", "message"),
    [
        ("batch_size: 0", "", "Positive batch size required; set batch_size"),
        ("new_height: 5", "", "requires new_height and new_width to be set at the same time.; got 5 and 0"),
        ("crop_width: 5", "", "requires crop_height and crop_width to be set at the same time.; got 0 and 5"),
        ("", "mirror: true", "would change the image and not its labels; remove them"),
        ("", "crop_size: 3", "write mirror, crop_height and crop_width in dense_image_data_param"),
        ("label_divide_factor: 0", "", "label_divide_factor must be at least 1; got 0"),
        (
            "label_divide_factor: 2 crop_height: 2 crop_width: 2",
            "",
            "leaves no labels to crop like the image",
        ),
        ("new_height: 3 new_width: 9 label_divide_factor: 4", "", "leaves no labels of 3 x 9"),
        ("rand_skip: 1000", "", "Not enough points to skip"),
    ],
)
def test_errors(fields: str, transform: str, message: str) -> None:
    with refused(message):
        build(fields, transform)


def test_errors_of_files() -> None:
    for text, message in (
        ("", "image list 'other': File is empty"),
        ("image0.png label0.png image1.png", "it has 3 paths, an odd number (a path may have no blank)"),
        ("image0.png none.png", "none.png"),
        ("image0.png small.png", "small.png: Input and label image heights and widths must match; the labels "
                                 "have 3 x 4, 12 x 16 are needed"),
    ):  # fmt: skip
        Path("other").write_text(text)
        Path("small.png").write_bytes(bytes(cv2.imencode(".png", np.zeros((3, 4), np.uint8))[1]))
        with pytest.raises(DataError) as error:
            build('source: "other"')
        assert message in str(error.value)
    with pytest.raises(DataError, match="image list 'none': No such file or directory; mend dense_image"):
        build('source: "none"')
    with pytest.raises(DataError, match="size is 12 x 16, smaller than crop_height x crop_width, 13 x 4"):
        build("crop_height: 13 crop_width: 4")
    with pytest.raises(DataError, match="12 x 16, 6 x 8 are needed"):
        build("label_divide_factor: 2")


def test_its_own_mean_file_does_nothing() -> None:
    layer = build('mean_file: "mean"')
    assert layer.leftovers == ["dense_image_data_param.mean_file (write transform_param { mean_file: ... })"]


def test_a_net_of_segnet() -> None:
    """Data, normalisation, loss with class weights: TRAIN and TEST."""
    weights = "class_weighting: 1 " * 11
    net = parse_net(
        f"""layer {{ name: "data" type: "DenseImageData" top: "data" top: "label"
                dense_image_data_param {{ source: "list" batch_size: 2 shuffle: true }} }}
        layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
                convolution_param {{ num_output: 11 kernel_size: 1 weight_filler {{ type: "msra" }} }} }}
        layer {{ name: "bn" type: "BN" bottom: "conv" top: "bn" bn_param {{ scale_filler {{ value: 1 }} }} }}
        layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "bn" bottom: "label" top: "loss"
                loss_param {{ weight_by_label_freqs: true {weights} }} }}"""
    )
    for phase in (TRAIN, TEST):
        net.state.phase = phase  # type: ignore[assignment]  # an int, checked by protobuf
        made = Net(net, Run(CaffeRandom(1)))
        assert 1 < made({})["loss"].item() < 6
