"""ImageSegData: images from the files named in a list, with a label for each pixel.

    source: a text file, one image per line: its path, white space, and by image_data_param.label_type
        PIXEL   the path of an image of its labels
        IMAGE   the label of all its pixels, a number (the default); what is no number is 0
        NONE    nothing: the label of all its pixels is ignore_label (default 255)

top[0]  (batch_size, C, H, W); C is 3, or 1 where is_color is false; BGR 0-255, from which transform_param
        subtracts mean_value, and which it scales
top[1]  (batch_size, 1, H, W), the labels, 0 to 255; others are the nearest of these
top[2]  (batch_size, 1, 1, 2): height and width of the image before scale_factors, at most those of top[0]

Every path is prefixed with root_folder. new_height and new_width resize by OpenCV's bilinear interpolation,
the labels, too. Then, by transform_param: one of scale_factors, drawn, resizes image and labels, these by the
nearest neighbour, to sizes cut to integers; where the image is smaller than crop_size, or crop_height and
crop_width, it is padded at the bottom and on the right, by mean_value and ignore_label; TRAIN crops at a
random place, TEST the centre; `mirror` swaps left and right at random, in TEST, too. `shuffle` and rand_skip
as in ImageData.

The random words come from the transformer's stream (transformer.py), which the forks seed only with mirror,
or crop_size in TRAIN. For each image in order: mirror (word mod 2), the factor (word mod their number), row
and column (word mod the number of places).

DeepLab (cdmh/deeplab-public-ver2), PSPNet (hszhao/PSPNet): image_seg_data_layer.cpp, data_transformer.cpp.
Differs: without a crop all images need the size of the first one, and padding needs mean_value (the forks
read foreign memory). Drawing without a stream is an error, as in the forks.
"""

from __future__ import annotations

import re

import cv2
import numpy as np
import torch

from imae.files.caffe_log import log_line
from imae.files.errors import DataError
from imae.files.limits import blob_problem
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.base_data import Batch, note_moved_fields, output_data_size
from imae.layers.data.datum import read_image
from imae.layers.forks.image_pairs import ImagePairs, Picture, read_text
from imae.layers.layer import Shape
from imae.layers.registry import register_layer
from imae.prototxt import TRAIN, LayerParameter
from imae.prototxt.caffe_pb2 import SegLabel

FILE = "image_seg_data_layer.cpp"
TRANSFORMS = ("scale", "mirror", "crop_size", "mean_value", "mean_file", "scale_factors", "crop_width",
              "crop_height")  # fmt: skip
MAX_SIDE = 2**16


@register_layer("ImageSegData")
class ImageSegData(ImagePairs):
    num_tops = 3
    auto_tops = True
    reads = ("image_data_param", *(f"transform_param.{name}" for name in TRANSFORMS), "data_param.prefetch")
    message_name = "image_data_param"
    log_places = (FILE, 46, 63, 68, 75)

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        transform = param.transform_param
        note_moved_fields(self, "image_data_param", ("scale", "mean_file", "crop_size", "mirror"))
        if transform.HasField("mean_file"):
            raise self.error("ImageSegDataLayer does not support mean file")
        sides = [transform.HasField(name) for name in ("crop_height", "crop_width")]
        if any(sides) and (not all(sides) or transform.HasField("crop_size")):
            raise self.error("Must either specify crop_size or both crop_height and crop_width.")
        self.crop = (
            (transform.crop_height, transform.crop_width) if all(sides) else (transform.crop_size,) * 2
        )
        if any(self.crop) and (problem := blob_problem((3, *self.crop))):
            raise self.error(f"crop_height, crop_width: {problem}")
        if any(self.crop) and not all(self.crop):
            raise self.error(f"crop_height and crop_width must both be above 0; got {self.crop}")
        self.factors = [np.float32(factor) for factor in transform.scale_factors]
        if not all(0 < factor < np.inf for factor in self.factors):
            raise self.error(f"scale_factors must be above 0; got {list(transform.scale_factors)}")
        self.means = np.array(transform.mean_value, np.float32)
        self.random_crop = self.phase == TRAIN and any(self.crop)
        has_stream = transform.mirror or (self.phase == TRAIN and transform.crop_size)
        if (self.random_crop or self.factors) and not has_stream:
            raise self.error(
                "scale_factors, and in TRAIN crop_height and crop_width, draw from a stream that there is "
                "only with mirror: true, or crop_size in TRAIN; set one of them"
            )

    def read_entries(self, source: str, root_folder: str) -> list[tuple[str, str]]:
        data = read_text(source, "image_data_param.source", "lines of a path and a label")
        entries = []
        by_pixel = self.message.label_type == SegLabel.PIXEL
        for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
            image, label = ([word.decode(errors="surrogateescape") for word in line.split()] + ["", ""])[:2]
            if not image or (by_pixel and not label):
                needed = "two paths" if by_pixel else "a path"
                raise DataError(f"image list '{source}', line {number}: expected {needed}, got {line!r}")
            entries.append((root_folder + image, root_folder + label if by_pixel else label))
        return entries

    def data_setup(self) -> None:
        self.set_up_order()
        image = self.read_image(self.order.current)
        if len(self.means) not in (0, 1, image.shape[2]):
            raise self.error(
                f"Specify either 1 mean_value or as many as channels: {image.shape[2]}; got {len(self.means)}"
            )
        self.means = np.broadcast_to(self.means if len(self.means) else np.float32(0), image.shape[2])
        height, width = self.crop if any(self.crop) else image.shape[:2]
        self.shapes = [
            (self.batch_size, image.shape[2], height, width),
            (self.batch_size, 1, height, width),
            (self.batch_size, 1, 1, 2),
        ]
        for line, word, shape in zip(
            (137, 141, 145), ("data", "label", "data_dim"), self.shapes, strict=True
        ):
            log_line(f"{FILE}:{line}", output_data_size(shape).replace("data", word, 1))

    def top_shapes(self, bottom_shapes: list[Shape]) -> list[Shape]:  # type: ignore[override]
        return self.shapes

    def load_batch(self) -> Batch:
        lines = self.order.next_lines(self.batch_size)
        read = self.data_resources.map_indices(lambda i: self._read(lines[i]), len(lines))
        data, labels = self.arrays.new(self.shapes[0]), np.empty(self.shapes[1], np.float32)
        dims = np.empty(self.shapes[2], np.float32)
        for i, (line, (image, label)) in enumerate(zip(lines, read, strict=True)):
            dims[i, 0, 0] = np.minimum(image.shape[:2], self.shapes[0][2:])
            data[i], labels[i, 0] = self._transformed(line, image, label)
        return torch.from_numpy(data), torch.from_numpy(labels), torch.from_numpy(dims)

    def _read(self, line: int) -> tuple[Picture, Picture]:
        """Image (H, W, C) and labels (H, W)."""
        image, entry = self.read_image(line), self.entries[line][1]
        if self.message.label_type != SegLabel.PIXEL:
            number = re.match(r"[+-]?\d{1,9}", entry) if self.message.label_type == SegLabel.IMAGE else None
            value = int(number[0]) if number else 0
            if self.message.label_type == SegLabel.NONE:
                value = self.message.ignore_label
            return image, np.full(image.shape[:2], min(max(value, 0), 255), np.uint8)
        size = (self.message.new_height, self.message.new_width)
        labels = read_image(entry, cv2.IMREAD_GRAYSCALE, size, cv2.INTER_LINEAR)[:, :, 0]
        if labels.shape != image.shape[:2]:
            raise DataError(
                f"{entry}: img_height == seg_height and img_width == seg_width; the labels have "
                f"{labels.shape[0]} x {labels.shape[1]}, the image {image.shape[0]} x {image.shape[1]}"
            )
        return image, labels

    def _transformed(self, line: int, image: Picture, labels: Picture) -> tuple[np.ndarray, Picture]:
        """Image (C, h, w) and labels (h, w), scaled, padded, cropped and mirrored alike."""
        stream, (height, width) = self.transformer.random, self.shapes[0][2:]
        flip = self.param.transform_param.mirror and self._draw(stream, 2)
        if self.factors:
            factor = self.factors[self._draw(stream, len(self.factors))]
            image, labels = self._scaled(line, image, labels, factor)
        if any(self.crop):
            image, labels = self._padded(line, image, labels)
            places = (image.shape[0] - height + 1, image.shape[1] - width + 1)
            if self.random_crop:
                down, right = (self._draw(stream, count) for count in places)
            else:
                down, right = ((count - 1) // 2 for count in places)
            window = np.s_[down : down + height, right : right + width]
            image, labels = image[window], labels[window]
        elif image.shape[:2] != (height, width):
            raise DataError(
                f"{self.entries[line][0]}: its size is {image.shape[0]} x {image.shape[1]}, that of the "
                f"first image was {height} x {width}; give crop_size, or new_height and new_width"
            )
        if flip:
            image, labels = image[:, ::-1], labels[:, ::-1]
        pixels = (image.astype(np.float32) - self.means) * np.float32(self.param.transform_param.scale)
        return pixels.transpose(2, 0, 1), labels

    @staticmethod
    def _draw(stream: CaffeRandom | None, count: int) -> int:
        assert stream is not None, "checked when the layer is made"
        return stream.modulo(count)

    def _scaled(
        self, line: int, image: Picture, labels: Picture, factor: np.float32
    ) -> tuple[Picture, Picture]:
        if factor == 1:
            return image, labels
        height, width = (int(np.float32(side) * factor) for side in image.shape[:2])
        if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
            raise DataError(
                f"{self.entries[line][0]}: a scale factor of {factor:g} makes {height} x {width} of its "
                f"{image.shape[0]} x {image.shape[1]} pixels"
            )
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        near = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
        return np.asarray(resized, np.uint8).reshape(height, width, -1), np.asarray(near, np.uint8)

    def _padded(self, line: int, image: Picture, labels: Picture) -> tuple[np.ndarray, Picture]:
        """At least of the size of the crop."""
        down, right = (max(0, side - had) for side, had in zip(self.crop, image.shape[:2], strict=True))
        if not down and not right:
            return image, labels
        if not len(self.param.transform_param.mean_value):
            raise DataError(
                f"{self.entries[line][0]}: its size, {image.shape[0]} x {image.shape[1]}, is smaller than "
                f"the crop, {self.crop[0]} x {self.crop[1]}; it is padded with mean_value, which is not given"
            )
        shape = (image.shape[0] + down, image.shape[1] + right)
        padded = np.broadcast_to(self.means, (*shape, image.shape[2])).copy()
        padded[: image.shape[0], : image.shape[1]] = image
        ignored = np.full(shape, min(max(self.message.ignore_label, 0), 255), np.uint8)
        ignored[: labels.shape[0], : labels.shape[1]] = labels
        return padded, ignored
