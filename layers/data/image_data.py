"""ImageData: images from the files named in a list.

    source: a text file, one image per line: path, a blank, label (an integer)

top[0]  (batch_size, C, H, W), or (.., crop_size, crop_size); C is 3, or 1 where is_color is false; BGR 0-255
        before the transformation (transformer.py)
top[1]  (batch_size,): the labels

Every path is prefixed with root_folder. The path ends at the line's last blank; a label that is no number
is 0. new_height and new_width resize by OpenCV's bilinear interpolation. `shuffle` shuffles the list at
set-up and again after every pass through it; rand_skip skips a random number of images, less than rand_skip,
once. The first image of a batch gives the batch its size. Where several ranks train together, every rank
reads the whole list: with `shuffle` in its own order, with rand_skip from its own start.

As in Caffe, images are read and decoded anew each time, so their files may change; several threads do it. An
LMDB of the images can be kept in memory (data.py).

transform_param.bgr2rgb, of Intel's fork, makes the images RGB, before the transformation.

Caffe: image_data_layer.cpp, io.cpp; image_data_layer.cpp of intel/caffe.
"""

from __future__ import annotations

import logging
import re

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from imae.files.caffe_log import log_line
from imae.files.errors import DataError
from imae.files.limits import blob_problem
from imae.layers.data.base_data import (
    Batch,
    PrefetchingLayer,
    checked_batch_size,
    note_fields_of_annotations,
    note_moved_fields,
    output_data_size,
)
from imae.layers.data.datum import read_image
from imae.layers.data.list_order import ListOrder, read_list_file
from imae.layers.data.saved_state import State
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter


@register_layer("ImageData")
class ImageData(PrefetchingLayer):
    num_tops = 2
    swaps_colours = True
    large_images_go_on = True

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        image = param.image_data_param
        note_moved_fields(self, "image_data_param", ("scale", "mean_file", "crop_size", "mirror"))
        note_fields_of_annotations(self)
        for field in ("ignore_label", "label_type"):
            if image.HasField(field):
                raise self.error(f"image_data_param.{field} is for ImageSegData alone; remove it")
        for field in ("force_color", "force_gray"):
            if getattr(param.transform_param, field):
                self.note_leftover(f"transform_param.{field}", "image_data_param { is_color: ... }")
        if (image.new_height > 0) != (image.new_width > 0):
            raise self.error(
                "Current implementation requires new_height and new_width to be set at the same time.; "
                f"got {image.new_height} and {image.new_width}"
            )
        self.batch_size = checked_batch_size(param, image.batch_size)
        self.new_size = (image.new_height, image.new_width)
        if image.new_height and (problem := blob_problem((3, *self.new_size))):
            raise self.error(f"new_height, new_width: {problem}")
        self.record_size = self.new_size if image.new_height else None
        self.flag = cv2.IMREAD_COLOR if image.is_color else cv2.IMREAD_GRAYSCALE

    def data_setup(self) -> None:
        image = self.param.image_data_param
        log_line("image_data_layer.cpp:38", f"Opening file {image.source}")
        self.paths, self.labels = read_list(image.source, image.root_folder)
        self.order = ListOrder(image.source, len(self.paths))
        if image.shuffle:
            log_line("image_data_layer.cpp:53", "Shuffling data")
            self.order.shuffle(self.random)
        elif self.ranks.size > 1 and not image.rand_skip:
            log_line(
                "image_data_layer.cpp:60",
                "Shuffling or skipping recommended for multi-GPU: all ranks read the same images",
                logging.WARNING,
            )
        log_line("image_data_layer.cpp:63", f"A total of {len(self.paths)} images.")
        if image.rand_skip:
            self.order.skip(self, image.rand_skip, "image_data_layer.cpp:70")
        line = self.order.current
        size = self.transformer.output_size(self._read(line).shape, self.paths[line])
        self.shapes = [(self.batch_size, *size), (self.batch_size,)]
        log_line("image_data_layer.cpp:90", output_data_size(self.shapes[0]))

    def load_batch(self) -> Batch:
        lines = self.order.next_lines(self.batch_size)
        values = self.transformer.transform_made(
            lambda i: self._read(lines[i]), len(lines), lambda i: self.paths[lines[i]]
        )
        return torch.from_numpy(values), torch.from_numpy(self.labels[lines].astype(np.float32))

    def position(self) -> State:
        return self.order.position("images")

    def seek(self, state: State) -> None:
        self.order.seek(state, "images")

    def _read(self, line: int) -> NDArray[np.uint8]:
        image = read_image(self.paths[line], self.flag, self.new_size)
        if self.param.transform_param.bgr2rgb:
            image = image[:, :, ::-1]
        return image.transpose(2, 0, 1)


def read_list(source: str, root_folder: str) -> tuple[list[str], NDArray[np.int64]]:
    """Paths and labels of an image list."""
    data = read_list_file(source, "image_data_param.source", "lines of a path and a label")
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"image list '{source}': File is empty")
    paths, labels = [], np.zeros(len(lines), np.int64)
    for i, line in enumerate(lines):
        path, blank, label = line.rpartition(b" ")
        paths.append(root_folder + (path if blank else line).decode(errors="surrogateescape"))
        number = re.match(rb"\s*([+-]?\d{1,20})", label)
        value = int(number[1]) if number else 0
        if not -(2**31) <= value < 2**31:
            raise DataError(f"image list '{source}', line {i + 1}: label {value} does not fit into 32 bits")
        labels[i] = value
    return paths, labels
