"""The kernel that makes numbers of pixels: the bits of numpy's and OpenCV's, in and beside its domain."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from imae.layers.data import pixels as plain
from imae.layers.data.data_resources import DataResources
from imae.layers.run import Run
from imae.net import kernels
from imae.net.kernels import native
from imae.net.net import Net
from imae.prototxt.text import parse_net

built = pytest.mark.skipif(not native.available(), reason="the kernels in C were not built")

# Rows shorter than a vector, rows of an odd number of pixels, one pixel, and channels of every kind.
SIZES = [(5, 13, 3), (3, 5, 3), (2, 6, 3), (4, 1, 3), (1, 1, 1), (6, 67, 1), (3, 9, 2), (2, 11, 4), (2, 7, 5)]


@pytest.fixture(params=["auto", "default"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAE_KERNELS", raising=False)
    if request.param == "default":
        monkeypatch.setenv("IMAE_KERNELS_ISA", "default")


def no_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        def write(*_: Any) -> None:
            raise AssertionError("the kernel was not used")

        return write

    monkeypatch.setattr(plain, "plan_windows", refuse)


def values_of(
    plan: Any,
    image: NDArray[Any],
    size: tuple[int, int, int],
    mean: Any,
    scale: float,
    flip: bool,
    place: int = 1,
) -> NDArray[np.float32]:
    """place: how many numbers behind the start of a line of the cache the values begin, 0 to 15."""
    rows, columns = slice(2, 2 + size[0]), slice(1, 1 + size[1])
    count, line = int(np.prod(size)), 16
    whole = np.full(count + 4 * line, 7, np.float32)
    begin = line + -whole.ctypes.data // 4 % line + place
    values = whole[begin : begin + count].reshape(size)
    with np.errstate(all="ignore"):
        plan(size, mean, np.float32(scale))(image[rows, columns], flip, rows, columns, values)
    assert (whole[:begin] == 7).all() and (whole[begin + count :] == 7).all()
    return values


@built
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("flip", [False, True])
def test_the_bits_of_numpy(
    size: tuple[int, int, int], flip: bool, isa: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(size)
    height, width, channels = size
    image = random.integers(0, 256, (height + 3, width + 2, channels), np.uint8)
    constant = random.uniform(-3e38, 255, channels).astype(np.float32)
    constant[0] = 128.7
    for mean in (constant, random.uniform(-9, 300, image.shape).astype(np.float32)):
        for scale in (1, 0.0078, 3e38):
            want = values_of(plain.plan_windows, image, size, mean, scale, flip)
            window = image[2 : 2 + height, 1 : 1 + width].astype(np.float32)
            part = mean if mean.ndim == 1 else mean[2 : 2 + height, 1 : 1 + width]
            with np.errstate(all="ignore"):
                exact = (window - part) * np.float32(scale)
            np.testing.assert_array_equal(want, exact[:, ::-1] if flip else exact)
            with monkeypatch.context() as patch:
                no_numpy(patch)
                np.testing.assert_array_equal(
                    values_of(kernels.plan_windows, image, size, mean, scale, flip), want
                )


@built
@pytest.mark.parametrize("place", range(16))
@pytest.mark.parametrize("size", [*SIZES, (3, 16, 3), (40, 1, 1)], ids=str)
def test_values_anywhere_in_a_line_of_the_cache(
    size: tuple[int, int, int], place: int, isa: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(size).integers(0, 256, (size[0] + 3, size[1] + 2, size[2]), np.uint8)
    mean = np.random.default_rng(place).uniform(0, 255, image.shape).astype(np.float32)
    wants = [values_of(plain.plan_windows, image, size, mean, 0.5, flip, place) for flip in (False, True)]
    no_numpy(monkeypatch)
    for flip, want in zip((False, True), wants, strict=True):
        got = values_of(kernels.plan_windows, image, size, mean, 0.5, flip, place)
        np.testing.assert_array_equal(got, want)


@built
@pytest.mark.parametrize("kind", ["floats", "planes", "every second pixel", "no kernels"])
def test_other_images_are_numpys(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAE_KERNELS", "none" if kind == "no kernels" else "auto")
    size = (4, 6, 3)
    image: NDArray[Any] = np.arange(7 * 16 * 3, dtype=np.uint8).reshape(7, 16, 3)
    if kind == "floats":
        image = image.astype(np.float32) + np.float32(0.3)
    elif kind == "planes":
        image = image.transpose(2, 0, 1).copy().transpose(1, 2, 0)
    elif kind == "every second pixel":
        image = image[:, ::2]
    mean, windows = np.array([3, 4.5, 0], np.float32), []
    for plan in (kernels.plan_windows, plain.plan_windows):
        windows.append(values_of(plan, image, size, mean, 0.5, True))
    np.testing.assert_array_equal(*windows)
    with pytest.raises(AssertionError, match="not used"):
        no_numpy(monkeypatch)
        values_of(kernels.plan_windows, image, size, mean, 0.5, True)


@built
def test_a_window_outside_of_the_mean_image_is_refused(isa: None) -> None:
    image = np.zeros((9, 9, 3), np.uint8)
    with pytest.raises(ValueError, match="mean image"):
        values_of(kernels.plan_windows, image, (5, 5, 3), np.zeros((6, 9, 3), np.float32), 1, False)


def test_data_layers_of_a_net_use_it(tmp_path: Any) -> None:
    text = (
        'layer { name: "data" type: "ImageData" top: "data" top: "label" image_data_param '
        '{ source: "list.txt" batch_size: 2 new_height: 70 new_width: 70 } }'
    )
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((70, 70, 3), np.uint8))
    (tmp_path / "list.txt").write_text(f"{tmp_path}/a.png 0\n")
    text = text.replace("list.txt", f"{tmp_path}/list.txt")
    (layer,) = Net(parse_net(text, "<test>"), Run(data_resources=DataResources(0, 1))).data_layers()
    assert layer.transformer.plan_windows is kernels.plan_windows  # type: ignore[union-attr]
