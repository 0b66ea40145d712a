"""Caffe's data transformer, for whole batches:  top = (pixel - mean) * scale  of the chosen pixels.

    crop_size    TRAIN: at a random offset; TEST: from the centre, (size - crop_size) / 2 rounded down
    mirror       left and right are swapped at random, in TEST, too
    mean_file    a BlobProto; subtracted at the pixel's position in the uncropped, unmirrored image
    mean_value   one for all channels, or one per channel
    scale        1 by default
    exclude_last_crop
                 mirror first, then crop as if the image had one row less at the bottom and one column less
                 on the right. This is not from Caffe but from the authors of IMAE. From CIFAR's images,
                 resized to 36 x 36, they crop 32 x 32 at offsets 0 to 3 along each axis, not 0 to 4; the
                 centre is offset 1, not 2. They also subtract the means of red, green and blue from blue,
                 green and red: that is mean_value: 125.3 mean_value: 123.0 mean_value: 113.9 on BGR images
    random_resize_param and other fields of Intel's and NVIDIA's forks: see random_resize.py

The random words come from its own stream. For each image in order: mirror (word mod 2), then in TRAIN with
crop_size the row and the column (word mod the number of offsets, size - crop_size + 1).

Caffe: data_transformer.cpp. force_color and force_gray are applied where images are decoded (datum.py). The
fields that the SSD fork added are in image_transform.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imae.files.caffe_log import log_line
from imae.files.errors import DataError, ImaeError, LayerError
from imae.layers.blob import array_from_blob
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.data_resources import MapIndices, Started, StartIndices, map_in_order
from imae.layers.data.datum import is_interleaved, planes, size_text
from imae.layers.data.image_transform import FIELDS, ImageTransform, Plan, is_transformed, of_image
from imae.layers.data.pixels import PlanWindows, WriteWindow, mirror_columns, plan_windows
from imae.layers.data.random_resize import make_random_resize
from imae.prototxt import TRAIN, BlobProto, TransformationParameter
from imae.prototxt.text import read_binary

Size = tuple[int, ...]
LARGE = 64 * 64  # pixels; from this size on, one image at a time is faster than a whole batch
CACHED = 1 << 18  # values that stay in the processor's cache from one operation to the next


def empty_array(shape: Size) -> NDArray[np.float32]:
    """An array for a batch, with arbitrary content."""
    return np.empty(shape, np.float32)


class DataTransformer:
    """Crops, mirrors, subtracts the mean and scales.

    param         TransformationParameter
    phase         TRAIN or TEST
    name          the owner's name in errors
    image_word    what Caffe's messages call an image: "datum", or "img" for a decoded image
    new_array     makes the arrays of the batches
    map_indices   applies a function to the indices of the images, perhaps in several threads
    by_forks      whether the fields of image_transform.py are looked at
    mean          a mean image (C, H, W) in place of mean_file

    start_indices begins such work, for batches of large images: a batch is then returned before its values
                  are there, and `unfinished` has what to wait for. None: it is waited for
    channels_last whether batches of large decoded images have the order N, H, W, C in memory, that in which
                  images are decoded. Shapes stay N, C, H, W
    plan_windows  how numbers are made of the pixels of large images
    """

    start_indices: StartIndices | None = None
    channels_last = False
    plan_windows: PlanWindows = staticmethod(plan_windows)

    def __init__(
        self,
        param: TransformationParameter,
        phase: int,
        name: str,
        image_word: str = "datum",
        new_array: Callable[[Size], NDArray[np.float32]] = empty_array,
        map_indices: MapIndices = map_in_order,
        by_forks: bool = True,
        mean: NDArray[np.float32] | None = None,
    ) -> None:
        self.name, self.image_word = name, image_word
        self.new_array, self.map_indices = new_array, map_indices
        self.unfinished: list[Started[None]] = []
        self.crop_size, self.mirror = param.crop_size, param.mirror
        self.excluded = int(param.exclude_last_crop)  # rows and columns
        if self.excluded and not self.crop_size:
            raise LayerError(f"{name}: exclude_last_crop has no effect without crop_size; leave it out")
        self.resize = make_random_resize(param, name)
        self.scale = np.float32(param.scale)
        self.random_crop = phase == TRAIN and self.crop_size > 0
        self.random: CaffeRandom | None = None
        self.thread: CaffeRandom | None = None
        self.mean = mean
        self.mean_values = np.array(param.mean_value, np.float32)
        self._mean_image = np.zeros((0, 0, 0), np.float32)  # mean_values as an image, once the size is known
        if param.HasField("mean_file"):
            if len(param.mean_value):
                raise LayerError(
                    f"{name}: Cannot specify mean_file and mean_value at the same time; leave one out"
                )
            self.mean = read_mean_file(param.mean_file, name)
        self._mean_pixels = np.zeros((0, 0, 0), np.float32)
        if self.mean is not None:
            self._mean_pixels = np.ascontiguousarray(self.mean.transpose(1, 2, 0))
        self.images: ImageTransform | None = None
        if by_forks and is_transformed(param):
            self.images = ImageTransform(param, phase, name, self.mean, self.mean_values)
        self.draws_from_thread = self.images is not None and self.images.needs_thread
        if self.images is not None and self.resize is not None:
            raise LayerError(
                f"{name}: transform_param has fields of the SSD fork ({', '.join(FIELDS)}) and of Intel's or "
                "NVIDIA's random resizing, which are not supported together; leave one kind out"
            )

    def seed(self, random: CaffeRandom) -> None:
        """Seed the stream with one word of `random`, if the transformer is random at all."""
        if self.mirror or self.random_crop or self.resize is not None:
            self.random = random.fork()

    def seed_thread(self, random: CaffeRandom) -> None:
        """Seed the stream of the thread that makes the batches, which only the fork's fields draw from."""
        thread = random.fork()
        if self.draws_from_thread:
            self.thread = thread

    def get_state(self) -> bytes:
        """The streams' state; empty where there is none."""
        return b"".join(stream.get_state() for stream in (self.random, self.thread) if stream is not None)

    def set_state(self, state: bytes) -> None:
        """Continue where `get_state` was called."""
        streams = [stream for stream in (self.random, self.thread) if stream is not None]
        step = len(state) // max(1, len(streams))
        for i, stream in enumerate(streams):
            stream.set_state(state[i * step : (i + 1) * step])

    def output_size(self, size: Size, name: str) -> Size:
        """(C, h, w) after the crop of an image of `size` (C, H, W); DataError if it does not fit."""
        if self.images is not None:
            with of_image(lambda: name):
                return self.images.output_size(size)
        if self.resize is None and (problem := self._problem(size)):
            raise DataError(f"{name}: {problem}")
        return self._cropped(size)

    def transform_rows(self, images: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """images[rows] of an array (K, C, H, W), transformed: (N, C, h, w); call `output_size` first."""
        n, (_, height, width) = len(rows), images.shape[1:]
        if self.images is not None or self.resize is not None:
            return self.transform_made(lambda i: images[rows[i]], n, str)
        if self._is_large(images.shape[1:]):
            return self._one_by_one(lambda i: images[rows[i]], n, images[rows[0]], str)
        flip, top, left = self.draw(np.full(n, height), np.full(n, width))
        return self._arithmetic(_mirrored(self._windows(images, rows, top, left), flip), flip, top, left)

    def transform_list(
        self, images: Sequence[NDArray[Any]], name_of: Callable[[int], str]
    ) -> NDArray[np.float32]:
        """Images (C, H, W) of any size that the crop makes equal, transformed: (N, C, h, w).

        `name_of(i)` is the name of images[i] in errors.
        """
        return self.transform_made(images.__getitem__, len(images), name_of)

    def transform_made(
        self, make: Callable[[int], NDArray[Any]], count: int, name_of: Callable[[int], str]
    ) -> NDArray[np.float32]:
        """The same for the images make(0), .., make(count - 1); `make` is called once per image."""
        if self.images is not None:
            return self._by_the_fork(self.images, make, count, name_of)
        if self.resize is not None:
            make = self._resized(make, count, name_of).__getitem__
        first = make(0)
        if problem := self._problem(first.shape):
            raise DataError(f"{name_of(0)}: {problem}")
        if self._is_large(first.shape):
            return self._one_by_one(make, count, first, name_of)
        images = [first, *self.map_indices(lambda i: make(i + 1), count - 1)]
        if len({image.shape for image in images}) > 1:
            for i, image in enumerate(images):
                self._check_fit(image.shape, first.shape, i, name_of)
        heights, widths = (np.array([image.shape[axis] for image in images]) for axis in (1, 2))
        flip, top, left = self.draw(heights, widths)
        size = self._cropped(first.shape)
        pixels = np.empty((count, *size), np.result_type(*{image.dtype for image in images}))
        for i, (image, y, x) in enumerate(zip(images, top.tolist(), left.tolist(), strict=True)):
            pixels[i] = image[:, y : y + size[1], x : x + size[2]]
        return self._arithmetic(_mirrored(pixels, flip), flip, top, left)

    def _resized(
        self, make: Callable[[int], NDArray[Any]], count: int, name_of: Callable[[int], str]
    ) -> list[NDArray[Any]]:
        """The images make(0), .., make(count - 1), resized at random."""
        resize, random = self.resize, self.random
        assert resize is not None and random is not None, "seed() comes first"
        images = list(self.map_indices(make, count))
        plans = [resize.plan(image.shape[1], image.shape[2], random) for image in images]
        return list(self.map_indices(lambda i: resize.apply(images[i], plans[i], name_of(i)), count))

    def _by_the_fork(
        self,
        transform: ImageTransform,
        make: Callable[[int], NDArray[Any]],
        count: int,
        name_of: Callable[[int], str],
    ) -> NDArray[np.float32]:
        """The images transformed by the fields of the SSD fork; the first one gives the batch its size."""
        images, plans = self.map_indices(make, count), list[Plan]()
        for i, image in enumerate(images):
            with of_image(partial(name_of, i)):
                plans.append(transform.plan(image.shape, self.random, self.thread))
        with of_image(partial(name_of, 0)):
            values = self.new_array((count, *transform.output_size(images[0].shape)))

        def apply(i: int) -> None:
            with of_image(partial(name_of, i)):
                transform.apply(images[i], plans[i], values[i])

        self.map_indices(apply, count)
        return values

    def keeps_interleaved(self, image: NDArray[Any]) -> bool:
        """Whether batches of images like this one are made faster if they are kept as they are decoded."""
        return self.channels_last and is_interleaved(image) and self._is_large(image.shape)

    def _cropped(self, size: Size) -> Size:
        return (size[0], self.crop_size, self.crop_size) if self.crop_size else size

    def _is_large(self, size: Size) -> bool:
        _, height, width = self._cropped(size)
        return height * width >= LARGE

    def _problem(self, size: Size) -> str | None:
        """Why an image of this size does not fit, in Caffe's words."""
        channels, height, width = size
        crop, word = self.crop_size, self.image_word
        if height < crop or width < crop:
            side, got = ("height", height) if height < crop else ("width", width)
            return f"{word}_{side} >= crop_size ({got} vs. {crop}); crop less or enlarge the image"
        if min(height, width) < crop + self.excluded:
            return (
                f"exclude_last_crop leaves no place for crop_size {crop} in {word}s of size "
                f"{size_text(size)}; enlarge them, or leave it out"
            )
        if self.mean is not None:
            for axis, got, want in zip(("channels", "height", "width"), size, self.mean.shape, strict=True):
                if got != want:
                    return (
                        f"{word}_{axis} == data_mean_.{axis}() ({got} vs. {want}); "
                        f"mean_file is of other images: {self.mean.shape} for {size}"
                    )
        num_means = len(self.mean_values)
        if num_means not in (0, 1, channels):
            return f"Specify either 1 mean_value or as many as channels: {channels}; got {num_means}"
        return None

    def _check_fit(self, size: Size, like: Size, i: int, name_of: Callable[[int], str]) -> None:
        """DataError if image i, of this size, cannot be in a batch whose first image has the size `like`."""
        if size != like and (problem := self._misfit(size, like) or self._problem(size)):
            raise DataError(f"{name_of(i)}: {problem}")

    def _misfit(self, size: Size, like: Size) -> str | None:
        word, (channels, height, width) = self.image_word, size
        top_channels, top_height, top_width = self._cropped(like)
        if channels != top_channels:
            problem = f"channels == {word}_channels ({top_channels} vs. {channels})"
        elif height < top_height:
            problem = f"height <= {word}_height ({top_height} vs. {height})"
        elif width < top_width:
            problem = f"width <= {word}_width ({top_width} vs. {width})"
        elif not self.crop_size and height != top_height:
            problem = f"{word}_height == height ({height} vs. {top_height})"
        elif not self.crop_size and width != top_width:
            problem = f"{word}_width == width ({width} vs. {top_width})"
        else:
            return None
        return (
            f"{problem}; its size is {size_text(size)}, that of the first in the batch is {size_text(like)}; "
            "make all images of one size, or use batch_size 1"
        )

    def draw(
        self, heights: NDArray[np.int64], widths: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Which of the next images, of these sizes, are mirrored, and where their windows begin."""
        return self._places(self._words(len(heights)), heights, widths)

    def _words(self, count: int) -> NDArray[np.int64]:
        """The random words of the next `count` images: (count, words per image)."""
        words_per_image = self.mirror + 2 * self.random_crop
        if not words_per_image:
            return np.zeros((count, 0), np.int64)
        assert self.random is not None, "seed() comes first"
        words = self.random.words(count * words_per_image).astype(np.int64)
        return words.reshape(count, words_per_image)

    def _places(
        self, words: NDArray[np.int64], heights: NDArray[np.int64], widths: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Which images of these sizes are mirrored, and where their windows begin."""
        flip = words[:, 0] % 2 == 1 if self.mirror else np.zeros(len(words), np.bool_)
        needed = self.crop_size + self.excluded
        down, right = (
            (heights - needed, widths - needed)
            if self.crop_size
            else (np.zeros_like(heights), np.zeros_like(widths))
        )
        top, left = down // 2, right // 2
        if self.random_crop:
            top, left = words[:, -2] % (down + 1), words[:, -1] % (right + 1)
        if self.excluded:  # in a mirrored image, the first column is the excluded one
            left = np.where(flip, right + self.excluded - left, left)
        return flip, top, left

    def _windows(
        self, images: NDArray[Any], rows: NDArray[np.int64], top: NDArray[np.int64], left: NDArray[np.int64]
    ) -> NDArray[Any]:
        """A copy of images[rows], cropped."""
        if not self.crop_size:
            return images[rows]
        images = np.ascontiguousarray(images)
        crop, (channels, height, width) = self.crop_size, images.shape[1:]
        # A row of a window is one numpy item, which is copied as a whole.
        item, places = images.itemsize, images.size - crop + 1
        items = np.ndarray((places,), f"V{crop * item}", images, strides=(item,))
        planes = rows[:, None] * channels + np.arange(channels)
        lines = (planes * height + top[:, None])[:, :, None] + np.arange(crop)
        windows: NDArray[Any] = items[lines * width + left[:, None, None]].view(images.dtype)
        return windows.reshape(len(rows), channels, crop, crop)

    def _arithmetic(
        self, pixels: NDArray[Any], flip: NDArray[np.bool_], top: NDArray[np.int64], left: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        values, size = self.new_array(pixels.shape), pixels.shape[1:]
        if self.mean is None and self.mean_values.any() and self._mean_image.shape != size:
            # In the images' size: numpy is slow where an inner axis is broadcast.
            self._mean_image = np.broadcast_to(self.mean_values[:, None, None], size).copy()
        step = max(1, CACHED // math.prod(size))
        with np.errstate(over="ignore", invalid="ignore"):  # a mean or float_data may hold anything
            for begin in range(0, len(values), step):
                part = slice(begin, begin + step)
                np.copyto(values[part], pixels[part], "unsafe")
                if self.mean is not None:
                    first = np.zeros(len(values[part]), np.int64)
                    means = self._windows(self.mean[None], first, top[part], left[part])
                    values[part] -= _mirrored(means, flip[part])
                elif self._mean_image.size:
                    values[part] -= self._mean_image
                if self.scale != 1:
                    values[part] *= self.scale
        return values

    def _one_by_one(
        self,
        make: Callable[[int], NDArray[Any]],
        count: int,
        first: NDArray[Any],
        name_of: Callable[[int], str],
    ) -> NDArray[np.float32]:
        """Large images, make(0) = first and so on: made and transformed one by one, while in the cache."""
        shape = first.shape
        channels, height, width = self._cropped(shape)
        words = self._words(count)
        places = self._places(words, np.full(count, shape[1]), np.full(count, shape[2]))
        flips, tops, lefts = (place.tolist() for place in places)
        means = np.broadcast_to(self.mean_values if len(self.mean_values) else np.float32(0), channels)
        if self.channels_last and is_interleaved(first):
            pixels = self.new_array((count, height, width, channels))
            values = pixels.transpose(0, 3, 1, 2)
            mean = means if self.mean is None else self._mean_pixels
            whole = self.plan_windows((height, width, channels), mean, self.scale)
            write = partial(_write_interleaved, whole, pixels)
        else:
            values = self.new_array((count, channels, height, width))
            of_planes = means[:, None] if self.mean is None else self.mean[..., None]
            writers = [self.plan_windows((height, width, 1), mean, self.scale) for mean in of_planes]
            write = partial(_write_planes, writers, values)

        def transform(i: int) -> None:
            image, flip, top, left = make(i) if i else first, flips[i], tops[i], lefts[i]
            if image.shape != shape:
                self._check_fit(image.shape, shape, i, name_of)
                own = self._places(words[i : i + 1], *(np.array([side]) for side in image.shape[1:]))
                flip, top, left = (place.item() for place in own)
            write(i, image, flip, slice(top, top + height), slice(left, left + width))

        if self.start_indices is None:
            self.map_indices(transform, count)
        else:
            self.unfinished.append(self.start_indices(transform, count))
        return values


def _write_planes(
    writers: Sequence[WriteWindow],
    values: NDArray[np.float32],
    i: int,
    image: NDArray[Any],
    flip: bool,
    rows: slice,
    columns: slice,
) -> None:
    """Transform a window of an image into values[i], (C, h, w), by a function for each plane."""
    window = planes(image[:, rows, columns])
    for write, plane, value in zip(writers, window, values[i], strict=True):
        write(plane[:, :, None], flip, rows, columns, value[:, :, None])


def _write_interleaved(
    write: WriteWindow,
    values: NDArray[np.float32],
    i: int,
    image: NDArray[Any],
    flip: bool,
    rows: slice,
    columns: slice,
) -> None:
    """The same into values[i], (h, w, C). Planes need not be taken apart, so it is faster."""
    write(image[:, rows, columns].transpose(1, 2, 0), flip, rows, columns, values[i])


def read_mean_file(path: str, name: str) -> NDArray[np.float32]:
    """The mean image (C, H, W) of a BlobProto file (1, C, H, W), as compute_image_mean writes it."""
    log_line("data_transformer.cpp:25", f"Loading mean file from: {path}")
    try:
        mean = array_from_blob(read_binary(path, BlobProto))
    except ImaeError as error:
        raise DataError(f"{name}: mean_file: {error}") from None
    if mean.ndim != 4 or mean.shape[0] != 1:
        raise DataError(f"{name}: mean_file: {path}: expected a blob of shape (1, C, H, W), got {mean.shape}")
    return np.ascontiguousarray(mean[0])


def _mirrored(pixels: NDArray[Any], flip: NDArray[np.bool_]) -> NDArray[Any]:
    """The images; those with `flip` are mirrored in place."""
    mirrored = pixels[flip]
    if mirrored.size:
        lines = mirrored.reshape(-1, pixels.shape[-1])
        pixels[flip] = mirror_columns(lines).reshape(mirrored.shape)
    return pixels
