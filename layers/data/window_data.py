"""WindowData: windows cut out of images and warped to one size (R-CNN; Girshick et al. 2014).

    source: a text file; for each image
        # index                            counted from 0
        path
        channels height width
        number of windows
        label overlap x1 y1 x2 y2          for each window, corners included

top[0]  (batch_size, 3, crop_size, crop_size): BGR, (pixel - mean) * window_data_param.scale
top[1]  (batch_size,): the labels

A window is foreground if its overlap is at least fg_threshold, background (label 0) if it is below
bg_threshold, and unused in between. A batch holds int(batch_size * fg_fraction) foreground windows, after the
background windows; every window is drawn at random, and with `mirror` mirrored at random. context_pad
enlarges a window so that its surroundings make up context_pad pixels on each side of the warped window;
crop_mode "square" enlarges it to the tightest square. Pixels outside the image are 0. The centre of mean_file
is used, never mirrored.

Caffe: window_data_layer.cpp. Differs: Caffe trusts the file; here windows must lie inside their images, and
indices must count the images.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from imae.files.caffe_log import log_line
from imae.files.errors import DataError, SnapshotError, printable
from imae.files.file_kinds import mistaken_for
from imae.files.read import read_bytes
from imae.layers.data.base_data import (
    Batch,
    PrefetchingLayer,
    checked_batch_size,
    note_moved_fields,
    output_data_size,
)
from imae.layers.data.datum import decode_image, read_file
from imae.layers.data.random_resize import FIELDS as RESIZE_FIELDS
from imae.layers.data.saved_state import State
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter

f32 = np.float32
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Window:
    """A window of image number `image`; corners included."""

    image: int
    label: int
    overlap: float
    x1: int
    y1: int
    x2: int
    y2: int


@dataclass(frozen=True)
class Place:
    """Source and target of a window: rows y1..y2 and columns x1..x2 of the image, warped to width x height.

    left, right, top   columns and rows of 0 around it
    """

    x1: int
    y1: int
    x2: int
    y2: int
    width: int
    height: int
    left: int = 0
    right: int = 0
    top: int = 0


@register_layer("WindowData")
class WindowData(PrefetchingLayer):
    num_tops = 2
    transforms_images = False

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        window, transform = param.window_data_param, param.transform_param
        note_moved_fields(self, "window_data_param", ("mean_file", "crop_size", "mirror"))
        if transform.scale != 1:
            self.note_leftover("transform_param.scale", "window_data_param { scale: ... }")
        for field in ("force_color", "force_gray", "crop_h", "crop_w"):
            if getattr(transform, field):
                self.note_leftover(f"transform_param.{field}")
        for field in ("resize_param", "noise_param", "distort_param", "expand_param", "emit_constraint"):
            if transform.HasField(field):
                self.note_leftover(f"transform_param.{field}")
        fields = transform.DESCRIPTOR.fields_by_name
        for field in ("exclude_last_crop", *RESIZE_FIELDS):
            is_default = (
                fields[field].message_type is None
                and getattr(transform, field) == fields[field].default_value
            )
            if transform.HasField(field) and not is_default:
                raise self.error(f"{field} has no effect here, where windows are warped; leave it out")
        if window.crop_mode not in ("warp", "square"):
            raise self.error(f'crop_mode must be "warp" or "square", got "{window.crop_mode}"')
        self.batch_size = checked_batch_size(param, window.batch_size)
        self.crop_size = transform.crop_size
        if self.crop_size == 0:
            raise self.error("crop_size > 0 (0 vs. 0); set transform_param.crop_size")
        if 2 * window.context_pad >= self.crop_size:
            raise self.error(f"context_pad {window.context_pad} leaves nothing of crop_size {self.crop_size}")

    def data_setup(self) -> None:
        window = self.param.window_data_param
        log_line(
            "window_data_layer.cpp:53",
            "Window data layer:\n"
            f"  foreground (object) overlap threshold: {window.fg_threshold:g}\n"
            f"  background (non-object) overlap threshold: {window.bg_threshold:g}\n"
            f"  foreground sampling fraction: {window.fg_fraction:g}\n"
            f"  cache_images: {window.cache_images:d}\n"
            f"  root_folder: {printable(window.root_folder)}",
            lines=True,
        )
        self.draws = self.random.fork()
        self.paths, windows = read_windows(window.source)
        self.paths = [window.root_folder + path for path in self.paths]
        self.foreground = [w for w in windows if w.overlap >= window.fg_threshold]
        self.background = [
            w for w in windows if w.overlap < window.bg_threshold and w.overlap < window.fg_threshold
        ]
        self._check_windows()
        self.files = [read_file(path) for path in self.paths] if window.cache_images else None
        self.shapes = [(self.batch_size, 3, self.crop_size, self.crop_size), (self.batch_size,)]
        log_line("window_data_layer.cpp:157", f"Number of images: {len(self.paths)}")
        samples = Counter({0: len(self.background)}) + Counter(w.label for w in self.foreground)
        for label in sorted(samples):
            log_line("window_data_layer.cpp:161", f"class {label} has {samples[label]} samples")
        log_line("window_data_layer.cpp:165", f"Amount of context padding: {window.context_pad}")
        log_line("window_data_layer.cpp:168", f"Crop mode: {window.crop_mode}")
        log_line("window_data_layer.cpp:180", output_data_size(self.shapes[0]))
        self.mean = self._mean()

    def load_batch(self) -> Batch:
        window = self.param.window_data_param
        data = np.zeros(self.shapes[0], f32)
        labels = np.zeros(self.shapes[1], f32)
        foreground = int(f32(self.batch_size) * f32(window.fg_fraction))
        for item in range(self.batch_size):
            is_foreground = item >= self.batch_size - foreground
            candidates = self.foreground if is_foreground else self.background
            chosen = candidates[self.draws.modulo(len(candidates))]
            mirror = self.transformer.mirror and self.draws.modulo(2) == 1
            labels[item] = chosen.label if is_foreground else 0
            self._warp(chosen, mirror, data[item])
        return torch.from_numpy(data), torch.from_numpy(labels)

    def position(self) -> State:
        return {
            "foreground": len(self.foreground),
            "background": len(self.background),
            "draws": self.draws.get_state(),
        }

    def seek(self, state: State) -> None:
        if (state["foreground"], state["background"]) != (len(self.foreground), len(self.background)):
            raise SnapshotError(
                f"'{self.param.window_data_param.source}' has other windows than when the snapshot was made; "
                "use the same file"
            )
        self.draws.set_state(state["draws"])

    def _check_windows(self) -> None:
        source = self.param.window_data_param.source
        for kind, windows in (("fg", self.foreground), ("bg", self.background)):
            if not windows:
                raise DataError(
                    f"window file '{source}': {kind}_windows_.size() > 0 (0 vs. 0); see {kind}_threshold"
                )
        wrong = [w.label for w in self.foreground if w.label <= 0]
        if wrong:
            raise DataError(f"window file '{source}': label > 0 ({wrong[0]} vs. 0) of a foreground window")

    def _mean(self) -> NDArray[np.float32] | None:
        """The mean to subtract, (3, crop_size, crop_size) or broadcastable to that shape."""
        file, values, crop = self.transformer.mean, self.transformer.mean_values, self.crop_size
        if file is not None:
            # Caffe: one offset, from the width, for rows and columns
            offset = (file.shape[2] - crop) // 2
            if file.shape[0] != 3 or offset < 0 or file.shape[1] < offset + crop:
                raise self.error(
                    f"mean_file must be at least (3, {crop}, {crop}) and square, got {file.shape}"
                )
            return file[:, offset : offset + crop, offset : offset + crop]
        if len(values) not in (0, 1, 3):
            raise self.error(f"Specify either 1 mean_value or as many as channels: 3; got {len(values)}")
        return values[:, None, None] if len(values) else None

    def _warp(self, window: Window, mirror: bool, top: NDArray[np.float32]) -> None:
        """Write the warped window into `top` (3, crop_size, crop_size), which holds zeros."""
        param, path, crop = self.param.window_data_param, self.paths[window.image], self.crop_size
        data = self.files[window.image] if self.files is not None else read_file(path)
        image = decode_image(data, cv2.IMREAD_COLOR, path)
        height, width = image.shape[:2]
        if param.context_pad > 0 or param.crop_mode == "square":
            place = place_with_context(
                window, height, width, crop, param.context_pad, param.crop_mode == "square"
            )
        else:
            place = Place(window.x1, window.y1, window.x2, window.y2, crop, crop)
        description = f"{path}: the window of columns {place.x1} to {place.x2}, rows {place.y1} to {place.y2}"
        if not (0 <= place.x1 <= place.x2 < width and 0 <= place.y1 <= place.y2 < height):
            raise DataError(f"{description} lies outside the image, which is {width} wide and {height} high")
        cut = image[place.y1 : place.y2 + 1, place.x1 : place.x2 + 1]
        left = place.right if mirror else place.left
        size = (min(place.width, crop - left), min(place.height, crop - place.top))  # rounding may overshoot
        if min(size) <= 0:
            raise DataError(f"{description} leaves no pixel of a top of {crop} x {crop}")
        pixels = cv2.resize(cut, size, interpolation=cv2.INTER_LINEAR)
        if mirror:
            pixels = pixels[:, ::-1]
        area = np.s_[:, place.top : place.top + size[1], left : left + size[0]]
        values = pixels.transpose(2, 0, 1).astype(f32)
        if self.mean is not None:
            values -= np.broadcast_to(self.mean, top.shape)[area]
        top[area] = values * f32(param.scale)


def place_with_context(
    window: Window, height: int, width: int, crop: int, context_pad: int, square: bool
) -> Place:
    """A window enlarged by its surroundings and clipped at the edges of the image (height x width).

    The enlarged window is scaled to crop x crop, with context_pad pixels of surroundings on each side.
    """
    scale = f32(crop) / f32(crop - 2 * context_pad)
    half_height, half_width = f32((window.y2 - window.y1 + 1) / 2), f32((window.x2 - window.x1 + 1) / 2)
    centre_x, centre_y = f32(window.x1) + half_width, f32(window.y1) + half_height
    if square:
        half_height = half_width = max(half_height, half_width)
    # The compiler's rounding decides a border of half a pixel. In the Caffe that recorded our cases, only the
    # multiplication and subtraction of x1 are fused, with one rounding instead of two; here double precision
    # is exact for both operations. Another build of Caffe may round such a border the other way.
    x1 = _round(f32(np.float64(centre_x) - np.float64(half_width) * np.float64(scale)))
    x2 = _round(centre_x + half_width * scale)
    y1, y2 = _round(centre_y - half_height * scale), _round(centre_y + half_height * scale)
    outside_left, outside_right = max(0, -x1), max(0, x2 - width + 1)
    outside_top, outside_bottom = max(0, -y1), max(0, y2 - height + 1)
    scale_x, scale_y = f32(crop) / f32(x2 - x1 + 1), f32(crop) / f32(y2 - y1 + 1)
    x1, x2, y1, y2 = x1 + outside_left, x2 - outside_right, y1 + outside_top, y2 - outside_bottom
    left, right, top = (
        _round(outside_left * scale_x),
        _round(outside_right * scale_x),
        _round(outside_top * scale_y),
    )
    return Place(
        x1, y1, x2, y2,
        _round(f32(x2 - x1 + 1) * scale_x), _round(f32(y2 - y1 + 1) * scale_y),
        left, right, top,
    )  # fmt: skip


def read_windows(source: str) -> tuple[list[str], list[Window]]:
    """The images' paths and all windows of a window file."""
    try:
        data = read_bytes(source)
    except OSError as error:
        raise DataError(f"Failed to open window file {source}: {error.strerror}") from None
    if mistaken := mistaken_for(data):
        raise DataError(f"window file '{source}': expected a text of images and windows{mistaken}")
    words = iter(data.decode(errors="surrogateescape").split())
    paths: list[str] = []
    windows: list[Window] = []

    def read(kind: Callable[[str], Number], name: str) -> Number:
        word = next(words, "the end of the file")
        try:
            return kind(word)
        except ValueError:
            raise DataError(
                f"window file '{source}', image {len(paths)}: expected {name}, got {word}"
            ) from None

    for word in words:
        if word != "#":
            raise DataError(f"window file '{source}', image {len(paths)}: expected #, got {word}")
        index = read(int, "its index")
        if index != len(paths):
            raise DataError(f"window file '{source}': expected index {len(paths)}, got {index}; count from 0")
        path = next(words, "")
        for name in ("channels", "height", "width"):
            size = read(int, name)
            if name == "channels" and size != 3:
                raise DataError(f"window file '{source}', image {index}: channels must be 3, got {size}")
        for _ in range(read(int, "the number of windows")):
            label = read(int, "a label")
            with np.errstate(over="ignore"):
                overlap = float(f32(read(float, "an overlap")))
            windows.append(
                Window(index, label, overlap, *(read(int, name) for name in ("x1", "y1", "x2", "y2")))
            )
        paths.append(path)
    if not paths:
        raise DataError(f"window file '{source}': Window file is empty")
    return paths, windows


def _round(value: np.float32) -> int:
    """C's round: halves away from 0."""
    return int(math.copysign(math.floor(abs(float(value)) + 0.5), value))
