"""Images that are resized at random before they are cropped: fields of Intel's and NVIDIA's transform_param.

    random_resize_param        Intel: the shorter side becomes a random size, min_size to max_size (0: the
                               image's shorter, longer side); the other one in proportion, rounded down
    random_aspect_ratio_param  Intel: a random window of min_area_ratio to max_area_ratio of the image's area,
                               whose height and width are changed by a factor of aspect_ratio_change to its
                               inverse and perhaps exchanged, becomes crop_size x crop_size. After max_attempt
                               windows that do not fit, the shorter side becomes crop_size
    img_rand_resize_lower ...  NVIDIA: the shorter side becomes a random size, or stays; the longer one
                               becomes the shorter one times rand_resize_ratio; both are stretched. No side is
                               less than crop_size, nor, unless allow_upscale, more than the image's

All are in phase TEST, too. A batch's images are resized first, one after another in the transformer's stream;
then come the words of mirror and crop. The forks' threads draw in no fixed order.

intel/caffe: data_transformer.cpp, RandomResizeImage, RandomAlterAspectRatio. NVIDIA/caffe, branch caffe-0.17:
data_transformer.cpp, image_random_resize. Differs: Intel's takes the planes of a raw Datum for one image of
mixed colours, here it is resized as an encoded one; a mean_file, whose pixels would not fit, is refused.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from imae.files.errors import DataError, LayerError
from imae.files.limits import blob_problem
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.image_transform import INTERPOLATIONS
from imae.prototxt import TransformationParameter
from imae.prototxt.caffe_pb2 import ResizeParameter

f32 = np.float32

NVIDIA_SWITCHES = (
    "rand_resize_ratio_lower", "rand_resize_ratio_upper", "vertical_stretch_lower", "vertical_stretch_upper",
    "horizontal_stretch_lower", "horizontal_stretch_upper",
)  # fmt: skip
# What a type that makes its images in another way has no use for.
FIELDS = (
    "random_resize_param", "random_aspect_ratio_param", "img_rand_resize_lower", "img_rand_resize_upper",
    *NVIDIA_SWITCHES, "interpolation_algo_down", "interpolation_algo_up", "allow_upscale", "pad",
)  # fmt: skip


class Plan(NamedTuple):
    """The part of an image that is resized, and how: rows and columns, the new height and width."""

    top: int
    left: int
    height: int
    width: int
    new_height: int
    new_width: int
    interpolation: int


class RandomResize:
    """Draws the plan of each image.

    param   TransformationParameter
    name    the owner's name in errors
    """

    def __init__(self, param: TransformationParameter, name: str) -> None:
        self.param, self.name, self.crop_size = param, name, param.crop_size
        if not self.crop_size:
            raise LayerError(f"{name}: images of random sizes need a crop_size; set it")
        if param.HasField("mean_file"):
            raise LayerError(f"{name}: mean_file does not fit images of random sizes; write mean_value")

    def plan(self, height: int, width: int, random: CaffeRandom) -> Plan:
        """Draw the plan of an image of this size."""
        raise LayerError(f"{self.name}: a RandomResize defines no plan")

    def apply(self, image: NDArray[np.uint8], plan: Plan, name: str) -> NDArray[np.uint8]:
        """The image (C, H, W) as planned; DataError, which calls it `name`, where that is impossible."""
        channels, size = len(image), (plan.new_height, plan.new_width)
        if image.dtype != np.uint8:
            raise DataError(f"{name}: Image data type must be unsigned byte; it cannot be resized")
        if 0 in (plan.height, plan.width, *size):
            raise DataError(f"{name}: nothing is left of it where it is resized to {size[0]} x {size[1]}")
        if problem := blob_problem((channels, *size)):
            raise DataError(f"{name}: resized: {problem}")
        rows, columns = slice(plan.top, plan.top + plan.height), slice(plan.left, plan.left + plan.width)
        part = np.ascontiguousarray(image[:, rows, columns].transpose(1, 2, 0))
        if part.shape[:2] != size:
            resized = cv2.resize(part, size[::-1], interpolation=plan.interpolation)
            part = np.asarray(resized, np.uint8).reshape(*size, channels)  # it drops an axis of one channel
        return part.transpose(2, 0, 1)


class IntelResize(RandomResize):
    """random_resize_param."""

    def __init__(self, param: TransformationParameter, name: str) -> None:
        super().__init__(param, name)
        sizes = param.random_resize_param
        self.low, self.high = sizes.min_size, sizes.max_size
        self.interpolation = _interpolation(sizes.resize_param, f"{name}: random_resize_param")

    def plan(self, height: int, width: int, random: CaffeRandom) -> Plan:
        low, high = self.low or min(height, width), self.high or max(height, width)
        if high < low:
            raise DataError(
                f"{self.name}: random_resize_param: sizes from {low} to {high}, for an image of {height} x "
                f"{width}"
            )
        return self.to_shorter_side(height, width, random.modulo(high - low + 1) + low)

    def to_shorter_side(self, height: int, width: int, side: int) -> Plan:
        """The whole image, with `side` for its shorter side."""
        new_height = new_width = side
        if height < width:
            new_width = int(f32(width) / f32(height) * f32(side))
        else:
            new_height = int(f32(height) / f32(width) * f32(side))
        return Plan(0, 0, height, width, new_height, new_width, self.interpolation)


class IntelAspectRatio(IntelResize):
    """random_aspect_ratio_param."""

    def __init__(self, param: TransformationParameter, name: str) -> None:
        super().__init__(param, name)
        self.ratios = ratios = param.random_aspect_ratio_param
        who = f"{name}: random_aspect_ratio_param"
        if not 0 < ratios.min_area_ratio <= ratios.max_area_ratio < math.inf:
            raise LayerError(
                f"{who}: min_area_ratio must be above 0 and at most max_area_ratio, got "
                f"{ratios.min_area_ratio:g} and {ratios.max_area_ratio:g}"
            )
        if not 0 < ratios.aspect_ratio_change <= 1:
            raise LayerError(
                f"{who}: aspect_ratio_change must be above 0, at most 1, got {ratios.aspect_ratio_change:g}"
            )
        self.interpolation = _interpolation(ratios.resize_param, who)

    def plan(self, height: int, width: int, random: CaffeRandom) -> Plan:
        ratios, area = self.ratios, f32(height * width)
        change = f32(ratios.aspect_ratio_change)
        for _ in range(ratios.max_attempt):
            new_area = _thousandths(f32(ratios.min_area_ratio), f32(ratios.max_area_ratio), random) * area
            factor = _thousandths(change, f32(1) / change, random)
            rows, columns = int(np.sqrt(new_area) * factor), int(np.sqrt(new_area) / factor)
            if _thousandths(f32(0), f32(1), random) < 0.5:
                rows, columns = columns, rows
            if rows <= height and columns <= width:
                top, left = random.modulo(height - rows + 1), random.modulo(width - columns + 1)
                return Plan(top, left, rows, columns, self.crop_size, self.crop_size, self.interpolation)
        return self.to_shorter_side(height, width, self.crop_size)


class NvidiaResize(RandomResize):
    """img_rand_resize_lower and the fields after it."""

    def __init__(self, param: TransformationParameter, name: str) -> None:
        super().__init__(param, name)
        low, high = param.img_rand_resize_lower, param.img_rand_resize_upper
        if low and 0 < high < low:
            raise LayerError(
                f"{name}: random resize upper bound can't be less than lower: img_rand_resize_lower is "
                f"{low}, img_rand_resize_upper {high}"
            )
        for field in NVIDIA_SWITCHES:
            if not math.isfinite(value := getattr(param, field)):
                raise LayerError(f"{name}: {field} must be a finite number, got {value:g}")

    def plan(self, height: int, width: int, random: CaffeRandom) -> Plan:
        param, side = self.param, min(height, width)
        low, high = param.img_rand_resize_lower, param.img_rand_resize_upper
        if low and high:
            side = low + random.modulo(high - low + 1)
        scale = f32(side) / f32(height if width >= height else width)
        new_height, new_width = scale * f32(height), scale * f32(width)
        if param.rand_resize_ratio_lower >= 1 and param.rand_resize_ratio_upper > 1:
            ratio = _between(param.rand_resize_ratio_lower, param.rand_resize_ratio_upper, random)
            if new_width > new_height or (new_width == new_height and random.modulo(2)):
                new_width = new_height * ratio
            else:
                new_height = new_width * ratio
        if param.vertical_stretch_lower > 0 and param.vertical_stretch_upper > 0:
            new_height *= _between(param.vertical_stretch_lower, param.vertical_stretch_upper, random)
        if param.horizontal_stretch_lower > 0 and param.horizontal_stretch_upper > 0:
            new_width *= _between(param.horizontal_stretch_lower, param.horizontal_stretch_upper, random)
        rows, columns = max(self.crop_size, _rounded(new_height)), max(self.crop_size, _rounded(new_width))
        if not param.allow_upscale:
            rows, columns = min(rows, height), min(columns, width)
        shrinks = rows <= height and columns <= width
        mode = param.interpolation_algo_down if shrinks else param.interpolation_algo_up
        return Plan(0, 0, height, width, rows, columns, mode)  # the enum's values are OpenCV's


def make_random_resize(param: TransformationParameter, name: str) -> RandomResize | None:
    """What resizes the images; None where no field asks for it. LayerError for fields that are refused."""
    if param.pad:
        raise LayerError(
            f"{name}: transform_param.pad, of Intel's fork, would put a border of zeros around the images "
            "after the crop, which is not supported; remove it, and set the pad of the first convolution"
        )
    kinds: list[type[RandomResize]] = []
    if param.HasField("random_resize_param"):
        kinds.append(IntelResize)
    elif param.HasField("random_aspect_ratio_param"):
        kinds.append(IntelAspectRatio)
    if (
        param.img_rand_resize_lower
        or param.img_rand_resize_upper
        or any(param.HasField(field) for field in NVIDIA_SWITCHES)
    ):
        kinds.append(NvidiaResize)
    if param.HasField("random_resize_param") and param.HasField("random_aspect_ratio_param"):
        raise LayerError(
            f"{name}: with random_resize_param, Intel's fork passes over random_aspect_ratio_param; remove it"
        )
    if len(kinds) > 1:
        raise LayerError(f"{name}: images are resized by fields of Intel's fork and of NVIDIA's; remove some")
    return kinds[0](param, name) if kinds else None


def _interpolation(resize: ResizeParameter, who: str) -> int:
    """The interpolation of a resize_param, where it has nothing else."""
    others = [
        field.name for field, _ in resize.ListFields() if field.name not in ("interp_mode", "resize_mode")
    ]
    if others or len(resize.interp_mode) > 1 or resize.resize_mode != ResizeParameter.WARP:
        raise LayerError(
            f"{who}: its resize_param may have one interp_mode and resize_mode: WARP, nothing else is "
            f"supported; got {' '.join(str(resize).split())}"
        )
    return INTERPOLATIONS[resize.interp_mode[0]] if resize.interp_mode else cv2.INTER_LINEAR


def _thousandths(low: np.float32, high: np.float32, random: CaffeRandom) -> np.float32:
    """A random number between two, in steps of 1 / 1000."""
    return (f32(random.modulo(int((high - low) * f32(1000) + f32(1)))) + low * f32(1000)) / f32(1000)


def _between(low: float, high: float, random: CaffeRandom) -> np.float32:
    """A random number between two, in any order; if they are equal, nothing is drawn."""
    if low == high:
        return f32(low)
    low, high = min(low, high), max(low, high)
    return f32(low + (high - low) * random.word() / (2**32 - 1))


def _rounded(value: np.float32) -> int:
    """To the nearest integer, halves up."""
    return math.floor(float(value) + 0.5)
