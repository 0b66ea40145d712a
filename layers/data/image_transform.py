"""The transformation of images that the SSD fork added to Caffe's: resize, noise, and a crop of two sides.

    resize_param   resize_mode WARP to height x width; FIT_SMALL_SIZE keeps the aspect, so that the image just
                   covers height x width; FIT_LARGE_SIZE_AND_PAD keeps it, and pads on both sides by pad_mode
                   and pad_value. One of interp_mode is drawn for each image; LINEAR where there is none
    noise_param    in this order, each if it is set: decolorize, gauss_blur, hist_eq, clahe, jpeg, erode,
                   posterize, inverse, saltpepper, convert_to_hsv
    crop_h, crop_w the window, at random in TRAIN, in the centre in TEST; crop_size counts before them. Where
                   only one of them is set, the window begins in the corner

resize_param.prob and noise_param.prob do nothing, as in the fork: it resizes and disturbs every image. The
order is resize, noise, crop and mirror, mean and scale. mean_file has the size after the resizing; in a
mirrored image it is not mirrored.

Two streams give the random words. The layer's transformer gives mirror and windows, as in Caffe. The thread
that makes the batches has one of its own, which gives interpolations and the places of salt and pepper:
columns and rows, word mod the image's width and height.

SSD (weiliu89/caffe): data_transformer.cpp, im_transforms.cpp. Differs: what ends the fork's process, or makes
it read foreign memory, is an error; so are images of several sizes in a batch without a resizing, of which
the fork takes the corner. OpenCV's version decides the last bits of resized, blurred and JPEG images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from imae.files.errors import DataError, LayerError
from imae.files.limits import blob_problem
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.datum import size_text
from imae.prototxt import TRAIN, TransformationParameter
from imae.prototxt.caffe_pb2 import NoiseParameter, ResizeParameter

f32 = np.float32
Image = NDArray[np.uint8]
Size = tuple[int, ...]

FIELDS = ("resize_param", "noise_param", "crop_h", "crop_w")
INTERPOLATIONS = {
    ResizeParameter.LINEAR: cv2.INTER_LINEAR,
    ResizeParameter.AREA: cv2.INTER_AREA,
    ResizeParameter.NEAREST: cv2.INTER_NEAREST,
    ResizeParameter.CUBIC: cv2.INTER_CUBIC,
    ResizeParameter.LANCZOS4: cv2.INTER_LANCZOS4,
}
BORDERS = {
    ResizeParameter.CONSTANT: cv2.BORDER_CONSTANT,
    ResizeParameter.MIRRORED: cv2.BORDER_REFLECT_101,
    ResizeParameter.REPEAT_NEAREST: cv2.BORDER_REPLICATE,
}
LEVELS = 64  # posterize: the width of a step of brightness


def is_transformed(param: TransformationParameter) -> bool:
    """Whether one of FIELDS says something."""
    return bool(
        param.HasField("resize_param") or param.HasField("noise_param") or param.crop_h or param.crop_w
    )


@dataclass(frozen=True)
class Plan:
    """What is done to one image.

    size           (height, width) after the resizing
    interpolation  a cv2.INTER_*, for the resizing
    points         (n, 2): columns and rows of salt and pepper
    flip           whether it is mirrored
    top, left      where the window begins
    window         its (height, width)
    raw            the record is not encoded: the fork neither resizes it nor adds noise, and its mean moves
                   with the window and is mirrored with it
    """

    size: tuple[int, int]
    interpolation: int
    points: NDArray[np.int64]
    flip: bool
    top: int
    left: int
    window: tuple[int, int]
    raw: bool


NO_POINTS = np.zeros((0, 2), np.int64)


@contextmanager
def of_image(name: Callable[[], str]) -> Iterator[None]:
    """Put the image's name before a DataError; `name` is called for an error alone."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{name()}: {error}") from None


class ImageTransform:
    """One image at a time: `plan` draws, in the order of the images; `apply` computes, in any thread.

    Their errors do not name the image: see `of_image`.

    param         TransformationParameter
    phase         TRAIN or TEST
    name          the owner's name in errors
    mean          the mean image (C, H, W)
    mean_values   one mean for each channel, or for all
    """

    def __init__(
        self,
        param: TransformationParameter,
        phase: int,
        name: str,
        mean: NDArray[np.float32] | None,
        mean_values: NDArray[np.float32],
    ) -> None:
        self.name, self.mean, self.mean_values = name, mean, mean_values
        self.mirror, self.scale = param.mirror, f32(param.scale)
        self.resize = param.resize_param if param.HasField("resize_param") else None
        self.noise = param.noise_param if param.HasField("noise_param") else None
        self.crop_size = param.crop_size
        self.crop_h, self.crop_w = (param.crop_size or param.crop_h), (param.crop_size or param.crop_w)
        self.crops = self.crop_h > 0 and self.crop_w > 0
        self.random_crop = phase == TRAIN and self.crops
        if param.exclude_last_crop:
            raise LayerError(
                f"{name}: exclude_last_crop is for plain crops, not for images that are transformed as by "
                "the SSD fork; leave it out"
            )
        if self.random_crop and not (param.crop_size or param.mirror):
            raise LayerError(
                f"{name}: crop_h and crop_w crop at random in TRAIN, for which the fork has random numbers "
                "only with mirror: true; set that, or crop_size"
            )
        if self.resize is not None:
            check_resize(self.resize, name)
        if self.noise is not None:
            check_noise(self.noise, name)

    @property
    def needs_thread(self) -> bool:
        """Whether it draws from the stream of the thread."""
        return bool(
            (self.resize is not None and self.resize.interp_mode)
            or (self.noise is not None and self.noise.saltpepper)
        )

    def output_size(self, size: Size, raw: bool = False) -> Size:
        """(C, h, w) of the top for an image (C, H, W); DataError if it does not fit. `raw` as in Plan."""
        channels, height, width = size
        if self.resize is not None:
            height, width = new_size(self.resize, height, width)
        for side, got, crop in (("height", height, self.crop_h), ("width", width, self.crop_w)):
            if got < crop:
                raise DataError(
                    f"img_{side} >= crop_{side[0]} ({got} vs. {crop}); crop less or enlarge the image"
                )
        if len(self.mean_values) not in (0, 1, channels):
            raise DataError(
                f"Specify either 1 mean_value or as many as channels: {channels}; got {len(self.mean_values)}"
            )
        top = (channels, self.crop_h or height, self.crop_w or width)
        if self.mean is not None:
            if raw:
                height, width = size[1:]
            elif self.crops and top[1:] != (height, width):
                raise DataError(
                    f"a window of {size_text(top)} is cut out of {size_text((channels, height, width))}"
                    ", where the fork reads outside of mean_file; write mean_value instead"
                )
            if self.mean.shape != (channels, height, width):
                raise DataError(
                    f"mean_file is of {size_text(self.mean.shape)}, the image of "
                    f"{size_text((channels, height, width))}"
                )
        if problem := blob_problem((1, *top)):
            raise DataError(f"{problem}")
        return top

    def plan(
        self, size: Size, random: CaffeRandom | None, thread: CaffeRandom | None, raw: bool = False
    ) -> Plan:
        """Draw what is done to the next image, of `size` (C, H, W).

        random, thread   the streams of the transformer and of the thread; None where nothing is drawn
        raw              as in Plan
        """
        _, crop_h, crop_w = self.output_size(size, raw)
        flip = False
        if self.mirror:
            assert random is not None, "seed() comes first"
            flip = random.modulo(2) == 1
        height, width = size[1:]
        interpolation, points = cv2.INTER_LINEAR, NO_POINTS
        if raw:
            self._check_raw(size, (crop_h, crop_w))
        else:
            interpolation = self._interpolation(thread)
            if self.resize is not None:
                height, width = new_size(self.resize, height, width)
            points = self._points(size[0], height, width, thread)
        top = left = 0
        if self.random_crop:
            assert random is not None, "seed() comes first"
            top, left = random.modulo(height - crop_h + 1), random.modulo(width - crop_w + 1)
        elif self.crops:
            top, left = (height - crop_h) // 2, (width - crop_w) // 2
        return Plan((height, width), interpolation, points, flip, top, left, (crop_h, crop_w), raw)

    def _check_raw(self, size: Size, window: tuple[int, int]) -> None:
        """DataError for a raw record that is to be resized, disturbed or cut: the fork cannot."""
        if self.noise is not None:
            raise DataError("noise_param is for encoded images, this one is raw; encode it")
        fits = min(size[1] - window[0], size[2] - window[1]) >= 0 if self.crop_size else size[1:] == window
        if not fits:
            raise DataError(
                f"a raw image of {size_text(size)} for a top of {size_text((size[0], *window))}; "
                "the fork resizes encoded images alone, and cuts raw ones by crop_size alone; encode it"
            )

    def apply(self, image: NDArray[Any], plan: Plan, top: NDArray[np.float32]) -> None:
        """Write the transformed image (C, H, W) into `top` (C, h, w)."""
        if not plan.raw:
            if image.dtype != np.uint8:
                raise DataError(f"Image data type must be unsigned byte; got {image.dtype}")
            pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
            if self.resize is not None:
                pixels = resize_image(pixels, self.resize, plan.interpolation)
            if self.noise is not None:
                pixels = add_noise(pixels, self.noise, plan.points)
            image = pixels.transpose(2, 0, 1)
        if image.shape[0] != top.shape[0]:
            raise DataError(
                f"channels == img_channels ({top.shape[0]} vs. {image.shape[0]}); make all images of one kind"
            )
        (y, x), (height, width) = (plan.top, plan.left), plan.window
        window = image[:, y : y + height, x : x + width]
        if window.shape != top.shape:
            raise DataError(
                f"an image of {size_text(window.shape)} for a top of {size_text(top.shape)}; "
                "resize all images to one size"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(top, window[:, :, ::-1] if plan.flip else window, "unsafe")
            if self.mean is not None and plan.raw:
                mean = self.mean[:, y : y + height, x : x + width]
                top -= mean[:, :, ::-1] if plan.flip else mean
            elif self.mean is not None:
                top -= self.mean[:, :height, :width]
            elif self.mean_values.any():
                top -= self.mean_values[:, None, None]
            if self.scale != 1:
                top *= self.scale

    def _interpolation(self, thread: CaffeRandom | None) -> int:
        modes = list(self.resize.interp_mode) if self.resize is not None else []
        if not modes:
            return cv2.INTER_LINEAR
        if thread is not None:
            return INTERPOLATIONS[modes[roll_die(len(modes), thread)]]
        if len(modes) > 1:
            raise DataError("of several interp_mode one is drawn at random; here there may be one")
        return INTERPOLATIONS[modes[0]]

    def _points(
        self, channels: int, height: int, width: int, thread: CaffeRandom | None
    ) -> NDArray[np.int64]:
        """Where salt and pepper are put: the fork does so on images of one and of three channels."""
        if self.noise is None or not self.noise.saltpepper:
            return NO_POINTS
        channels = 3 if self.noise.decolorize else channels
        share = f32(self.noise.saltpepper_param.fraction) * f32(width) * f32(height)
        if channels not in (1, 3) or share < 1:
            return NO_POINTS
        if thread is None:
            raise DataError("noise_param.saltpepper draws at random; leave it out here")
        return thread.words(2 * int(share)).astype(np.int64).reshape(-1, 2) % (width, height)


def roll_die(sides: int, thread: CaffeRandom) -> int:
    """A number below `sides`: the first whose cumulative probability is not below a uniform value."""
    bounds = np.cumsum(np.full(sides, f32(1) / f32(sides)), dtype=f32)
    return int(np.searchsorted(bounds, thread.uniform_value(0, float(bounds[-1])), "left"))


# -- resizing ------------------------------------------------------------------------------------------------


def check_resize(param: ResizeParameter, name: str) -> None:
    """LayerError for a size that is not given, or that no image can have."""
    if not (param.height and param.width):
        raise LayerError(
            f"{name}: resize_param needs height and width above 0; got {param.height} and {param.width}"
        )
    if problem := blob_problem((1, 1, param.height, param.width)):
        raise LayerError(f"{name}: resize_param: {problem}")


def aspects(param: ResizeParameter, height: int, width: int) -> tuple[np.float32, np.float32]:
    """Width by height of an image, and of the size that is asked for."""
    return f32(width) / f32(height), f32(param.width) / f32(param.height)


def new_size(param: ResizeParameter, height: int, width: int) -> tuple[int, int]:
    """(height, width) of an image after the resizing; DataError where that leaves nothing, or too much."""
    if param.resize_mode != ResizeParameter.FIT_SMALL_SIZE:
        return param.height, param.width
    old, new = aspects(param, height, width)
    size = param.height, param.width
    if old < new:
        size = int(f32(param.width) / old), param.width
    else:
        size = param.height, int(old * f32(param.height))
    if problem := blob_problem((1, 1, *size)):
        raise DataError(f"{height} x {width} resized by FIT_SMALL_SIZE: {problem}")
    return size


def resize_image(image: Image, param: ResizeParameter, interpolation: int) -> Image:
    """Pixels (H, W, C) resized and padded."""
    height, width, channels = image.shape
    if param.resize_mode != ResizeParameter.FIT_LARGE_SIZE_AND_PAD:
        return _resized(image, *new_size(param, height, width), interpolation)
    values = list(param.pad_value) or [0.0]
    if len(values) not in (1, channels):
        raise DataError(f"Specify either 1 pad_value or as many as channels: {channels}; got {len(values)}")
    old, new = aspects(param, height, width)
    size = param.height, param.width
    if old > new:
        size = math.floor(f32(param.width) / old), param.width
    else:
        size = param.height, math.floor(old * f32(param.height))
    if 0 in size:
        raise DataError(f"{height} x {width} leaves nothing in {param.height} x {param.width}")
    resized = _resized(image, *size, interpolation)
    above, left = (param.height - size[0]) // 2, (param.width - size[1]) // 2
    below, right = param.height - size[0] - above, param.width - size[1] - left
    scalar = (values * channels)[:4] if len(values) == 1 else values[:4]
    border = BORDERS[param.pad_mode]
    padded = cv2.copyMakeBorder(resized, above, below, left, right, border, value=scalar)
    return np.asarray(padded, np.uint8).reshape(param.height, param.width, channels)


def _resized(image: Image, height: int, width: int, interpolation: int) -> Image:
    resized = cv2.resize(image, (width, height), interpolation=interpolation)  # drops an axis of size 1
    return np.asarray(resized, np.uint8).reshape(height, width, -1)


# -- noise ---------------------------------------------------------------------------------------------------


def check_noise(param: NoiseParameter, name: str) -> None:
    """LayerError for values from which the fork makes no image."""
    if param.convert_to_lab:
        raise LayerError(
            f"{name}: noise_param.convert_to_lab makes real numbers, whose bytes the fork takes for pixels; "
            "leave it out"
        )
    if not (math.isfinite(param.jpeg) and param.jpeg <= 100):
        raise LayerError(f"{name}: noise_param.jpeg is a quality up to 100, got {param.jpeg:g}")
    salt = param.saltpepper_param
    if not all(0 <= value < 256 for value in salt.value):
        raise LayerError(f"{name}: saltpepper_param.value must be 0 to 255, got {list(salt.value)}")
    if param.saltpepper and not salt.value:
        raise LayerError(f"{name}: noise_param.saltpepper needs saltpepper_param {{ value: ... }}")
    if not 0 <= salt.fraction <= 1:
        raise LayerError(f"{name}: saltpepper_param.fraction must be 0 to 1, got {salt.fraction:g}")


def add_noise(image: Image, param: NoiseParameter, points: NDArray[np.int64]) -> Image:
    """Pixels (H, W, C) with noise; `points` are those of salt and pepper."""
    colours = [field for field in ("decolorize", "jpeg", "convert_to_hsv") if getattr(param, field) > 0]
    if (colours and image.shape[2] != 3) or image.shape[2] not in (1, 3):
        needed = f"noise_param.{colours[0]} needs 3" if colours else "noise_param needs 1 or 3"
        raise DataError(f"{needed} channels, the image has {image.shape[2]}; see force_color")
    if param.decolorize:
        image = _image(cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR))
    if param.gauss_blur:
        image = _image(cv2.GaussianBlur(image, (7, 7), 1.5))
    if param.hist_eq:
        image = _with_brightness(image, cv2.equalizeHist)
    if param.clahe:
        image = _with_brightness(image, cv2.createCLAHE(clipLimit=4).apply)
    if param.jpeg > 0:
        image = through_jpeg(image, cv2.IMREAD_COLOR, int(param.jpeg))
    if param.erode:
        image = _image(cv2.erode(image, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))))
    if param.posterize:
        image = image // LEVELS * LEVELS + LEVELS // 2
    if param.inverse:
        image = ~image
    if param.saltpepper_param.value:
        values = list(param.saltpepper_param.value)
        if len(values) not in (1, image.shape[2]):
            raise DataError(
                f"Specify either 1 saltpepper_param.value or as many as channels: {image.shape[2]}; "
                f"got {len(values)}"
            )
        if len(points):
            image = image.copy()
            image[points[:, 1], points[:, 0]] = np.array(values).astype(np.uint8)
    if param.convert_to_hsv:
        image = _image(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    return image


def through_jpeg(image: Image, flag: int, quality: int | None = None) -> Image:
    """The image as a JPEG file holds it; `flag` is a cv2.IMREAD_*; without a quality, OpenCV's own."""
    options: Sequence[int] = () if quality is None else (cv2.IMWRITE_JPEG_QUALITY, quality)
    decoded = None
    with suppress(cv2.error):
        done, data = cv2.imencode(".jpg", image, options)
        decoded = cv2.imdecode(data, flag) if done else None
    if decoded is None:
        raise DataError(f"{size_text(image.shape)} pixels and channels cannot be stored as a JPEG file")
    return _image(decoded)


def _with_brightness(image: Image, change: Any) -> Image:
    """The image with a changed brightness: its only channel, or the first one of YCrCb."""
    if image.shape[2] == 1:
        return _image(change(image))
    planes = list(cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2YCrCb)))
    planes[0] = change(planes[0])
    return _image(cv2.cvtColor(cv2.merge(planes), cv2.COLOR_YCrCb2BGR))


def _image(pixels: Any) -> Image:
    """OpenCV's result as (H, W, C): it drops an axis of one channel."""
    array = np.asarray(pixels, np.uint8)
    return array.reshape(*array.shape[:2], -1)
