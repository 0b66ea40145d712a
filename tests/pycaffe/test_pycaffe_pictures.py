"""Classifier and Detector: what the net is given, and what becomes of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tolerances import tolerance

import imae.pycaffe as caffe
from imae.files.errors import DataError, ImaeError
from imae.pycaffe import io

# Means of three channels, so that an answer tells what the net was given.
NET = """
force_backward: true
layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 4 dim: 3 dim: 8 dim: 8 } } }
layer { name: "mean" type: "Pooling" bottom: "data" top: "mean"
        pooling_param { pool: AVE global_pooling: true } }
layer { name: "ip" type: "InnerProduct" bottom: "mean" top: "ip" inner_product_param { num_output: 3 } }
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    net = caffe.Net("net.prototxt", caffe.TEST)
    net.params["ip"][0].data[...] = np.eye(3)
    net.params["ip"][1].data[...] = 0
    net.save("net.caffemodel")
    return "net.prototxt", "net.caffemodel"


def pictures(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).random(shape).astype(np.float32)


def close(got: NDArray[Any], want: NDArray[Any]) -> None:
    rtol, atol, _ = tolerance("same arithmetic")
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol * max(1, float(np.abs(want).max())))


def test_classifier_takes_the_centre(model: tuple[str, str]) -> None:
    classifier = caffe.Classifier(*model, image_dims=(11, 12))
    images = pictures(6, 11, 12, 3)
    close(classifier.predict(images, oversample=False), images[:, 1:9, 2:10].mean((1, 2)))


def test_classifier_takes_the_mean_over_ten_crops(model: tuple[str, str]) -> None:
    classifier = caffe.Classifier(*model, image_dims=(11, 12))
    images = list(pictures(2, 11, 12, 3))
    want = io.oversample(images, (8, 8)).mean((1, 2)).reshape(2, 10, 3).mean(1)
    close(classifier.predict(images), want)


def test_classifier_resizes_and_scales_as_it_is_told(model: tuple[str, str]) -> None:
    classifier = caffe.Classifier(
        *model, mean=np.array([1, 2, 3]), input_scale=0.5, raw_scale=255, channel_swap=(2, 1, 0)
    )
    assert tuple(classifier.image_dims) == (8, 8)
    (image,) = pictures(1, 16, 16, 3)
    rgb = image.reshape(8, 2, 8, 2, 3).mean((0, 1, 2, 3))
    close(classifier.predict([image]), (rgb[None, ::-1] * 255 - [1, 2, 3]) / 2)


def test_classifier_refuses(model: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=r"image_dims \(8, 7\) are less than the net's input"):
        caffe.Classifier(*model, image_dims=(8, 7))


def test_detector_classifies_windows(model: tuple[str, str]) -> None:
    detector = caffe.Detector(*model)
    grey_levels = (pictures(16, 24, 3) * 255).astype(np.uint8)
    cv2.imwrite("it.png", grey_levels[:, :, ::-1])
    windows = [(0, 0, 16, 16), (0, 8, 16, 24), (2, 3, 10, 11)]
    found = detector.detect_windows([("it.png", windows), ("it.png", [])])
    assert [one["window"] for one in found] == windows
    assert {one["filename"] for one in found} == {"it.png"}
    for one, (top, left, bottom, right) in zip(found, windows, strict=True):
        close(one["prediction"], grey_levels[top:bottom, left:right].mean((0, 1)) / 255)
    assert detector.detect_windows([]) == []


def test_detector_shows_the_context_of_a_window(model: tuple[str, str]) -> None:
    detector = caffe.Detector(
        *model, mean=np.array([1, 2, 3]), raw_scale=10, channel_swap=(2, 1, 0), context_pad=2
    )
    assert detector.crop_mean[0, 0].tolist() == pytest.approx([0.3, 0.2, 0.1])
    image = pictures(32, 32, 3)
    # The window has 4 x 4 pixels, its last ones included. They fill the middle, so that 8 x 8 are to be seen.
    close(detector.crop(image, (10, 12, 13, 15)), image[8:16, 10:18])
    corner = detector.crop(image, (0, 0, 3, 3))
    mean = np.array([0.3, 0.2, 0.1], np.float32)
    close(corner[:2], np.broadcast_to(mean, (2, 8, 3)))
    close(corner[:, :2], np.broadcast_to(mean, (8, 2, 3)))
    close(corner[2:, 2:], image[:6, :6])


def test_detector_refuses(model: tuple[str, str]) -> None:
    detector = caffe.Detector(*model)
    for window in ((0, 0, 0, 5), (-1, 0, 5, 5), (0, 24, 5, 30)):
        with pytest.raises(DataError, match="does not lie in an image"):
            detector.crop(pictures(16, 24, 3), window)
    with pytest.raises(DataError, match="context_pad needs a square input of more than 8 pixels; got 8 x 8"):
        caffe.Detector(*model, context_pad=4)
    with pytest.raises(ImaeError, match="needs the package selective_search_ijcv_with_python"):
        detector.detect_selective_search(["it.png"])
