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
from numpy.typing import NDArray

from imae.files.caffe_log import log_line
from imae.files.errors import DataError, SnapshotError
from imae.files.file_kinds import mistaken_for
from imae.files.limits import blob_problem
from imae.files.read import read_bytes
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.base_data import (
    Batch,
    PrefetchingLayer,
    State,
    check_index,
    check_permutation,
    checked_batch_size,
    output_data_size,
)
from imae.layers.data.datum import decode_image, read_file
from imae.layers.registry import register_layer
from imae.prototxt import LayerParameter

Picture = NDArray[np.uint8]
FILE = "dense_image_data_layer.cpp"


@register_layer("DenseImageData")
class DenseImageData(PrefetchingLayer):
    num_tops = 2
    reads = (
        *(f"transform_param.{name}" for name in ("scale", "mean_file", "mean_value", "mirror", "crop_size")),
        "data_param.prefetch",
    )

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        dense = param.dense_image_data_param
        for name in ("new", "crop"):
            values = [getattr(dense, f"{name}_{side}") for side in ("height", "width")]
            if (values[0] > 0) != (values[1] > 0):
                raise self.error(
                    f"Current implementation requires {name}_height and {name}_width to be set at the same "
                    f"time.; got {values[0]} and {values[1]}"
                )
            if values[0] and (problem := blob_problem((3, *values))):
                raise self.error(f"{name}_height, {name}_width: {problem}")
        if param.transform_param.mirror or param.transform_param.crop_size:
            raise self.error(
                "FIXME: Any stochastic transformation will break layer due to the need to transform input "
                "and label images in the same way; write mirror, crop_height and crop_width in "
                "dense_image_data_param"
            )
        if dense.HasField("mean_file"):
            self.note_leftover("dense_image_data_param.mean_file", "transform_param { mean_file: ... }")
        self.batch_size = checked_batch_size(param, dense.batch_size)
        self.factor: int = dense.label_divide_factor
        if self.factor < 1:
            raise self.error(f"label_divide_factor must be at least 1; got {self.factor}")
        if self.factor > 1 and dense.crop_height:
            raise self.error("label_divide_factor leaves no labels to crop like the image; leave one out")
        self.shuffler: CaffeRandom | None = None
        self.thread: CaffeRandom | None = None

    def seed_thread(self) -> None:
        thread = self.random.fork()
        if self.param.dense_image_data_param.mirror or self.param.dense_image_data_param.crop_height:
            self.thread = thread

    def data_setup(self) -> None:
        dense = self.param.dense_image_data_param
        log_line(f"{FILE}:41", f"Opening file {dense.source}")
        self.pairs = read_pairs(dense.source, dense.root_folder)
        self.order = np.arange(len(self.pairs))
        if dense.shuffle:
            log_line(f"{FILE}:51", "Shuffling data")
            self.shuffler = self.random.fork()
            self.order = self.shuffler.shuffle(len(self.pairs))
        log_line(f"{FILE}:56", f"A total of {len(self.pairs)} examples.")
        self.index = 0
        if dense.rand_skip:
            self.index = self.random.modulo(dense.rand_skip)
            log_line(f"{FILE}:63", f"Skipping first {self.index} data points.")
            if self.index >= len(self.pairs):
                raise self.error(
                    f"Not enough points to skip: {self.index} of {len(self.pairs)}; lower rand_skip"
                )
        line = int(self.order[self.index])
        image, labels = self._read(line)
        size, label_size = image.shape, labels.shape
        if dense.crop_height:
            self._offsets(line, image)
            size = label_size = (image.shape[0], dense.crop_height, dense.crop_width)
        size = self.transformer.output_size(size, self.pairs[line][0])
        self.shapes = [(self.batch_size, *size), (self.batch_size, 1, *label_size[1:])]
        log_line(f"{FILE}:109", output_data_size(self.shapes[0]))

    def load_batch(self) -> Batch:
        lines: list[int] = []
        for _ in range(self.batch_size):
            lines.append(int(self.order[self.index]))
            self.index += 1
            if self.index == len(self.order):
                self.index = 0
                # The current order of the list is shuffled, not the order of the file.
                if self.shuffler is not None:
                    self.order = self.order[self.shuffler.shuffle(len(self.order))]
        read = self.data_resources.map_indices(lambda i: self._read(lines[i]), len(lines))
        pairs = [self._drawn(line, *pair) for line, pair in zip(lines, read, strict=True)]
        images = self.transformer.transform_list(
            [image for image, _ in pairs], lambda i: self.pairs[lines[i]][0]
        )
        labels = np.stack([labels for _, labels in pairs]).astype(np.float32)
        return torch.from_numpy(images), torch.from_numpy(labels)

    def _read(self, line: int) -> tuple[Picture, Picture]:
        """Image (C, H, W) and labels (1, H, W), resized."""
        dense = self.param.dense_image_data_param
        flag = cv2.IMREAD_COLOR if dense.is_color else cv2.IMREAD_GRAYSCALE
        size = (dense.new_height, dense.new_width)
        image = _decoded(self.pairs[line][0], flag, size, cv2.INTER_LINEAR)
        small = (size[0] // self.factor, size[1] // self.factor)
        if size[0] and not min(small):
            raise self.error(f"label_divide_factor {self.factor} leaves no labels of {size[0]} x {size[1]}")
        labels = _decoded(self.pairs[line][1], cv2.IMREAD_GRAYSCALE, small, cv2.INTER_NEAREST)
        wanted = tuple(side // self.factor for side in image.shape[1:])
        if labels.shape[1:] != wanted:
            raise DataError(
                f"{self.pairs[line][1]}: Input and label image heights and widths must match; the labels "
                f"have {labels.shape[1]} x {labels.shape[2]}, {wanted[0]} x {wanted[1]} are needed"
            )
        return image, labels

    def _drawn(self, line: int, image: Picture, labels: Picture) -> tuple[Picture, Picture]:
        """The pair mirrored and cropped alike."""
        dense = self.param.dense_image_data_param
        if self.thread is None:
            return image, labels
        if dense.mirror and self.thread.modulo(2):
            image, labels = (np.ascontiguousarray(pixels[:, :, ::-1]) for pixels in (image, labels))
        if dense.crop_height:
            down, right = (self.thread.modulo(count) for count in self._offsets(line, image))
            window = np.s_[:, down : down + dense.crop_height, right : right + dense.crop_width]
            image, labels = image[window], labels[window]
        return image, labels

    def _offsets(self, line: int, image: Picture) -> tuple[int, int]:
        """How many places there are for the crop, downwards and to the right."""
        dense = self.param.dense_image_data_param
        down, right = image.shape[1] - dense.crop_height + 1, image.shape[2] - dense.crop_width + 1
        if min(down, right) < 1:
            raise DataError(
                f"{self.pairs[line][0]}: its size is {image.shape[1]} x {image.shape[2]}, smaller than "
                f"crop_height x crop_width, {dense.crop_height} x {dense.crop_width}; crop less"
            )
        return down, right

    def position(self) -> State:
        is_shuffled = self.shuffler is not None
        return {
            "index": self.index,
            "pairs": len(self.pairs),
            "order": self.order if is_shuffled else np.zeros(0, np.int64),
            "shuffler": self.shuffler.get_state() if self.shuffler is not None else b"",
            "thread": self.thread.get_state() if self.thread is not None else b"",
        }

    def seek(self, state: State) -> None:
        if state["pairs"] != len(self.pairs):
            raise SnapshotError(
                f"'{self.param.dense_image_data_param.source}' lists {len(self.pairs)} pairs; it listed "
                f"{state['pairs']} when the snapshot was made; use the same list"
            )
        check_index("index", state["index"], len(self.pairs))
        self.index = state["index"]
        if self.shuffler is not None:
            check_permutation("order", state["order"], len(self.pairs))
            self.order = state["order"]
            self.shuffler.set_state(state["shuffler"])
        if self.thread is not None:
            self.thread.set_state(state["thread"])


def _decoded(path: str, flag: int, size: tuple[int, int], interpolation: int) -> Picture:
    """The file's image, (C, H, W), resized to `size` (height, width) unless that is 0."""
    image = decode_image(read_file(path), flag, path)
    if size[0]:
        resized = cv2.resize(image, size[::-1], interpolation=interpolation)  # drops an axis of one channel
        image = np.asarray(resized, np.uint8).reshape(*size, -1)
    return image.transpose(2, 0, 1)


def read_pairs(source: str, root_folder: str) -> list[tuple[str, str]]:
    """Paths of images and of their labels."""
    try:
        data = read_bytes(source)
    except OSError as error:
        raise DataError(
            f"image list '{source}': {error.strerror}; mend dense_image_data_param.source"
        ) from None
    if mistaken := mistaken_for(data):
        raise DataError(f"image list '{source}': expected pairs of paths{mistaken}")
    paths = [root_folder + path.decode(errors="surrogateescape") for path in data.split()]
    if not paths:
        raise DataError(f"image list '{source}': File is empty")
    if len(paths) % 2:
        raise DataError(
            f"image list '{source}': expected pairs of paths, image and labels; it has {len(paths)} paths, "
            "an odd number (a path may have no blank)"
        )
    return list(zip(paths[::2], paths[1::2], strict=True))
