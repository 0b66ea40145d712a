"""How the authors of IMAE prepared CIFAR's images, as switches: 36 x 36 pixels, four crop places, means."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tolerances import tolerance

from imae.cli import command_convert_cifar as convert_cifar
from imae.cli import command_convert_folder as convert_folder
from imae.cli import command_convert_imageset as convert_imageset
from imae.converters.resize import cubic_weights, resize_bicubic, resize_bilinear
from imae.files.errors import DataError, LayerError
from imae.layers.blob import blob_from_array
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.lmdb_source import open_lmdb
from imae.layers.data.transformer import DataTransformer
from imae.prototxt import TEST, TRAIN, TransformationParameter
from imae.prototxt.text import parse_text

MEANS = "mean_value: 125.3 mean_value: 123.0 mean_value: 113.9"


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def transformer(text: str, phase: int = TRAIN, seed: int = 1) -> DataTransformer:
    made = DataTransformer(parse_text(text, TransformationParameter, "<test>"), phase, "it")
    made.seed(CaffeRandom(seed))
    return made


# -- resizing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(36, 36), (48, 40), (20, 28), (32, 32)])
def test_bicubic_is_the_wide_cubic_of_torch_of_the_mirrored_picture(height: int, width: int) -> None:
    """Torch has the same kernel, but ends it at the edges: so they are put far away."""
    pixels = picture(32, 32)
    bordered = torch.from_numpy(cv2.copyMakeBorder(pixels, 32, 32, 32, 32, cv2.BORDER_REFLECT))
    want = torch.nn.functional.interpolate(
        bordered.permute(2, 0, 1)[None].double(), (3 * height, 3 * width), mode="bicubic", antialias=True
    )[0, :, height : 2 * height, width : 2 * width]
    got = np.einsum("yh,hwc,xw->cyx", cubic_weights(32, height), pixels, cubic_weights(32, width))
    rtol, atol, _ = tolerance("formula", "float64")
    np.testing.assert_allclose(got, want.numpy(), rtol, atol * 255)
    rounded = np.rint(got).clip(0, 255).astype(np.uint8)
    assert np.array_equal(resize_bicubic(pixels, height, width), rounded.transpose(1, 2, 0))
    if (height, width) == (32, 32):
        assert np.array_equal(resize_bicubic(pixels, height, width), pixels)


def test_bicubic_keeps_what_is_flat_and_stays_within_bytes() -> None:
    assert np.array_equal(resize_bicubic(np.full((5, 7, 1), 93, np.uint8), 9, 3), np.full((9, 3, 1), 93))
    edge = np.zeros((8, 8, 1), np.uint8)
    edge[:, 4:] = 255
    row = resize_bicubic(edge, 8, 32)[0, :, 0]
    assert row.min() == 0 and row.max() == 255  # an unclipped kernel goes beyond both


def test_bilinear_is_opencvs_and_keeps_one_channel() -> None:
    pixels = picture(9, 8, 1)
    assert np.array_equal(resize_bilinear(pixels, 5, 4)[:, :, 0], cv2.resize(pixels, (4, 5)))


def run(module: Any, *arguments: object) -> None:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_args([str(argument) for argument in arguments]))


def images_of(path: Path) -> Iterator[NDArray[np.uint8]]:
    """The images (H, W, C) of a database of raw Datums."""
    with open_lmdb(path) as source:
        for index in range(len(source)):
            datum = source.datum(index)
            flat = np.frombuffer(datum.data, np.uint8)
            yield flat.reshape(datum.channels, datum.height, datum.width).transpose(1, 2, 0)


def write_cifar(folder: Path) -> Path:
    """CIFAR-10's binary version with two images a file."""
    folder.mkdir()
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        records = np.random.default_rng(seed).integers(0, 256, (2, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    return folder


@pytest.mark.parametrize(
    ("options", "resize"), [([], resize_bilinear), (["--interpolation", "bicubic"], resize_bicubic)]
)
def test_converted_images_are_resized(tmp_path: Path, options: list[str], resize: Any) -> None:
    cifar = write_cifar(tmp_path / "cifar")
    run(convert_cifar, cifar, tmp_path / "plain")
    run(convert_cifar, cifar, tmp_path / "data", "--resize", 36, "--pad", 1, "--bgr", *options)
    for part, pad in (("train", 1), ("test", 0)):
        old, new = (list(images_of(tmp_path / d / f"cifar10_{part}_lmdb")) for d in ("plain", "data"))
        assert len(old) == len(new) > 0
        for before, after in zip(old, new, strict=True):
            want = resize(before[:, :, ::-1], 36, 36)
            assert np.array_equal(after, np.pad(want, ((pad, pad), (pad, pad), (0, 0))))
    pixels = picture(9, 8)
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "0.png").write_bytes(bytes(cv2.imencode(".png", pixels)[1]))
    (tmp_path / "list").write_text("a/0.png 0\n")
    size = ["--resize-height", 12, "--resize-width", 10]
    run(convert_folder, tmp_path / "in", tmp_path / "folder", *size, *options)
    run(convert_imageset, f"{tmp_path}/in/", tmp_path / "list", tmp_path / "imageset", *size, *options)
    for name in ("folder", "imageset"):
        (image,) = images_of(tmp_path / name)
        assert np.array_equal(image, resize(pixels, 12, 10))


def test_an_interpolation_without_a_size_is_refused(tmp_path: Path) -> None:
    cifar = write_cifar(tmp_path / "cifar")
    bicubic = ["--interpolation", "bicubic"]
    with pytest.raises(DataError, match=r"^--interpolation is for --resize N, which is missing$"):
        run(convert_cifar, cifar, tmp_path / "data", *bicubic)
    for module, arguments in (
        (convert_folder, [cifar, tmp_path / "x"]),
        (convert_imageset, [cifar, "list", tmp_path / "x"]),
    ):
        with pytest.raises(
            DataError, match=r"^--interpolation is for resizing; it needs --resize-height and"
        ):
            run(module, *arguments, *bicubic)


# -- crops ---------------------------------------------------------------------------------------------------


def slowly(image: NDArray[Any], flip: int, top: int, left: int) -> NDArray[np.float32]:
    """What the authors do: mirror, crop 32 x 32, subtract the means."""
    mirrored = image[:, :, ::-1] if flip else image
    means = np.array([125.3, 123.0, 113.9], np.float32)[:, None, None]
    return mirrored[:, top : top + 32, left : left + 32].astype(np.float32) - means


def test_a_training_image_is_prepared_as_the_authors_do() -> None:
    images = np.stack([picture(36, 36, seed=i).transpose(2, 0, 1) for i in range(50)])
    rows = np.arange(50)
    got = transformer(f"crop_size: 32 mirror: true exclude_last_crop: true {MEANS}").transform_rows(
        images, rows
    )
    words = CaffeRandom(1).fork().words(150).reshape(50, 3)
    want = [slowly(images[i], w[0] % 2, w[1] % 4, w[2] % 4) for i, w in enumerate(words)]
    np.testing.assert_array_equal(got, np.stack(want))


def test_a_test_image_is_cropped_one_pixel_off_the_centre() -> None:
    images = picture(36, 36).transpose(2, 0, 1)[None]
    got = transformer(f"crop_size: 32 exclude_last_crop: true {MEANS}", TEST).transform_rows(
        images, np.zeros(1, np.int64)
    )
    np.testing.assert_array_equal(got[0], slowly(images[0], 0, 1, 1))


@pytest.mark.parametrize(("exclude", "places"), [(False, 5), (True, 4)])
def test_all_places_are_equally_likely(exclude: bool, places: int) -> None:
    """16 of the 25 places, where the last row and column are left out. The pixels of the image say where."""
    n = 20000
    image = np.arange(36 * 36, dtype=np.float32).reshape(1, 1, 36, 36)
    text = f"crop_size: 32 exclude_last_crop: {str(exclude).lower()}"
    corners = transformer(text).transform_rows(image, np.zeros(n, np.int64))[:, 0, 0, 0].astype(int)
    drawn = Counter(divmod(corner, 36) for corner in corners.tolist())
    assert set(drawn) == {(y, x) for y in range(places) for x in range(places)}
    for count in drawn.values():
        assert abs(count / n - places**-2) < tolerance("drawn share").atol


def test_images_of_several_sizes_and_a_mean_file(tmp_path: Path) -> None:
    """The mean is subtracted at the pixel's own place, whichever way the image is cropped."""
    mean = picture(9, 11).transpose(2, 0, 1).astype(np.float32)
    (tmp_path / "mean").write_bytes(blob_from_array(mean[None]).SerializeToString())
    text = f'crop_size: 6 mirror: true exclude_last_crop: true mean_file: "{tmp_path}/mean"'
    got = transformer(text).transform_rows(mean[None], np.zeros(9, np.int64))
    assert not got.any()
    images = [picture(7 + i % 3, 10 - i % 4, seed=i).transpose(2, 0, 1) for i in range(30)]
    got = transformer("crop_size: 6 mirror: true exclude_last_crop: true").transform_list(images, str)
    words = CaffeRandom(1).fork().words(90).reshape(30, 3).astype(int)
    for image, values, (flip, top, left) in zip(images, got, words, strict=True):
        mirrored = image[:, :, ::-1] if flip % 2 else image
        top, left = top % (image.shape[1] - 6), left % (image.shape[2] - 6)
        np.testing.assert_array_equal(values, mirrored[:, top : top + 6, left : left + 6])


def test_a_crop_must_leave_something_to_exclude() -> None:
    with pytest.raises(LayerError, match=r"^it: exclude_last_crop has no effect without crop_size; leave it"):
        transformer("exclude_last_crop: true")
    with pytest.raises(
        DataError,
        match=r"^db: exclude_last_crop leaves no place for crop_size 9 in datums of size 3 x 9 x 11; enlarge",
    ):
        transformer("crop_size: 9 exclude_last_crop: true").output_size((3, 9, 11), "db")
    assert transformer("crop_size: 9 exclude_last_crop: true").output_size((3, 10, 11), "db") == (3, 9, 9)
