"""DenseImageData: pairs of an image and an image of its labels, from the files named in a list.

    source: a text file of paths, separated by white space: image, labels, image, labels, ...

top[0]  (batch_size, C, H, W); C is 3, or 1 where is_color is false; BGR 0-255, from which transform_param
        subtracts mean_value or mean_file, and which it scales
top[1]  (batch_size, 1, H, W), the labels: the grey values of the other image, as they are

Every path is prefixed with root_folder. new_height and new_width resize: the image by OpenCV's bilinear
interpolation, the labels by its nearest neighbour; with label_divide_factor (ENet) the labels get this
fraction of the size, cut to an integer. Then, for each pair alike: `mirror` swaps left and right at random,
and crop_height, crop_width crop at a random place; both in TEST, too. `shuffle` shuffles the list at set-up
and again after every pass through it; rand_skip skips a random number of pairs, less than rand_skip, once.
The first pair of a batch gives the batch its size. Where several ranks train together, every rank reads the
whole list.

The random words of a pair come from the thread's own stream: mirror (word mod 2), row and column (word mod
the number of places).

SegNet (alexgkendall/caffe-segnet), ENet (TimoSaemann/caffe-enet): dense_image_data_layer.cpp. SegNet's older
Caffe draws them from a stream that it shares with all layers, at any moment. Differs: transform_param's own
mirror and crop_size are an error, as in SegNet's (ENet's would crop image and labels at different places); so
are a list with a path that has no partner, labels of another size than their image (ENet's), and
label_divide_factor together with a crop.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch

from imae.files.caffe_log import log_line
from imae.files.errors import DataError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.base_data import Batch, output_data_size
from imae.layers.data.datum import read_image
from imae.layers.data.saved_state import State
from imae.layers.forks.image_pairs import ImagePairs, Picture, read_text
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter

FILE = "dense_image_data_layer.cpp"


@register_layer("DenseImageData")
class DenseImageData(ImagePairs):
    num_tops = 2
    reads = (
        *(f"transform_param.{name}" for name in ("scale", "mean_file", "mean_value", "mirror", "crop_size")),
        "data_param.prefetch",
    )
    message_name = "dense_image_data_param"
    log_places = (FILE, 41, 51, 56, 63)
    word = "examples"

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        dense = param.dense_image_data_param
        self.check_both("crop_height", "crop_width", dense)
        if param.transform_param.mirror or param.transform_param.crop_size:
            raise self.error(
                "transform_param's mirror and crop_size would change the image and not its labels; remove "
                "them, and write mirror, crop_height and crop_width in dense_image_data_param (SegNet: "
                "'Any stochastic transformation will break layer')"
            )
        if dense.HasField("mean_file"):
            self.note_leftover("dense_image_data_param.mean_file", "transform_param { mean_file: ... }")
        self.factor: int = dense.label_divide_factor
        if self.factor < 1:
            raise self.error(f"label_divide_factor must be at least 1; got {self.factor}")
        if self.factor > 1 and dense.crop_height:
            raise self.error("label_divide_factor leaves no labels to crop like the image; leave one out")
        self.thread: CaffeRandom | None = None

    def seed_thread(self) -> None:
        thread = self.random.fork()
        if self.message.mirror or self.message.crop_height:
            self.thread = thread

    def read_entries(self, source: str, root_folder: str) -> list[tuple[str, str]]:
        data = read_text(source, "dense_image_data_param.source", "pairs of paths")
        paths = [root_folder + path.decode(errors="surrogateescape") for path in data.split()]
        if len(paths) % 2:
            raise DataError(
                f"image list '{source}': expected pairs of paths, image and labels; it has {len(paths)} "
                "paths, an odd number (a path may have no blank)"
            )
        return list(zip(paths[::2], paths[1::2], strict=True))

    def data_setup(self) -> None:
        self.set_up_order()
        line = self.order.current
        image, labels = self._read(line)
        size, label_size = image.shape, labels.shape
        if self.message.crop_height:
            self._offsets(line, image)
            size = label_size = (image.shape[0], self.message.crop_height, self.message.crop_width)
        size = self.transformer.output_size(size, self.entries[line][0])
        self.shapes = [(self.batch_size, *size), (self.batch_size, 1, *label_size[1:])]
        log_line(f"{FILE}:109", output_data_size(self.shapes[0]))

    def load_batch(self) -> Batch:
        lines = self.order.next_lines(self.batch_size)
        read = self.data_resources.map_indices(lambda i: self._read(lines[i]), len(lines))
        pairs = [self._drawn(line, *pair) for line, pair in zip(lines, read, strict=True)]
        images = self.transformer.transform_list(
            [image for image, _ in pairs], lambda i: self.entries[lines[i]][0]
        )
        labels = np.stack([labels for _, labels in pairs]).astype(np.float32)
        return torch.from_numpy(images), torch.from_numpy(labels)

    def _read(self, line: int) -> tuple[Picture, Picture]:
        """Image (C, H, W) and labels (1, H, W), resized."""
        image = self.read_image(line)
        size = (self.message.new_height, self.message.new_width)
        small = (size[0] // self.factor, size[1] // self.factor)
        if size[0] and not min(small):
            raise self.error(f"label_divide_factor {self.factor} leaves no labels of {size[0]} x {size[1]}")
        labels = read_image(self.entries[line][1], cv2.IMREAD_GRAYSCALE, small, cv2.INTER_NEAREST)
        needed = (image.shape[0] // self.factor, image.shape[1] // self.factor)
        if labels.shape[:2] != needed:
            raise DataError(
                f"{self.entries[line][1]}: Input and label image heights and widths must match; the labels "
                f"have {labels.shape[0]} x {labels.shape[1]}, {needed[0]} x {needed[1]} are needed"
            )
        return image.transpose(2, 0, 1), labels.transpose(2, 0, 1)

    def _drawn(self, line: int, image: Picture, labels: Picture) -> tuple[Picture, Picture]:
        """The pair mirrored and cropped alike."""
        if self.thread is None:
            return image, labels
        if self.message.mirror and self.thread.modulo(2):
            image, labels = (np.ascontiguousarray(pixels[:, :, ::-1]) for pixels in (image, labels))
        if self.message.crop_height:
            down, right = (self.thread.modulo(count) for count in self._offsets(line, image))
            window = np.s_[:, down : down + self.message.crop_height, right : right + self.message.crop_width]
            image, labels = image[window], labels[window]
        return image, labels

    def _offsets(self, line: int, image: Picture) -> tuple[int, int]:
        """How many places there are for the crop, downwards and to the right."""
        height, width = self.message.crop_height, self.message.crop_width
        down, right = image.shape[1] - height + 1, image.shape[2] - width + 1
        if min(down, right) < 1:
            raise DataError(
                f"{self.entries[line][0]}: its size is {image.shape[1]} x {image.shape[2]}, smaller than "
                f"crop_height x crop_width, {height} x {width}; crop less"
            )
        return down, right

    def position(self) -> State:
        return {
            **super().position(),
            "thread": self.thread.get_state() if self.thread is not None else b"",
        }

    def seek(self, state: State) -> None:
        super().seek(state)
        if self.thread is not None:
            self.thread.set_state(state["thread"])
