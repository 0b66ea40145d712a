"""Classifier: a net together with the preprocessing of its images.

Caffe: python/caffe/classifier.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imae.files.errors import DataError
from imae.prototxt import TEST
from imae.pycaffe.caffe_io import Transformer, resize_image
from imae.pycaffe.caffe_io import oversample as ten_crops
from imae.pycaffe.net import Net

Array = NDArray[Any]


class PictureNet(Net):
    """A net in phase TEST whose first input (N, K, H, W) is a batch of images; `transformer` prepares them.

    mean           the mean to subtract: (K,) or (K, H', W')
    input_scale    a factor applied after the mean is subtracted
    raw_scale      a factor applied before the mean is subtracted: 255 if the net expects images from 0 to 255
    channel_swap   the order of the channels: (2, 1, 0) if the net expects BGR
    """

    def __init__(
        self,
        model_file: str | os.PathLike[str],
        pretrained_file: str | os.PathLike[str],
        mean: Array | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model_file, TEST, weights=pretrained_file)
        name = self.inputs[0]
        self.transformer = Transformer({name: self.blobs[name].shape})
        self.transformer.set_transpose(name, (2, 0, 1))
        if mean is not None:
            self.transformer.set_mean(name, mean)
        if input_scale is not None:
            self.transformer.set_input_scale(name, input_scale)
        if raw_scale is not None:
            self.transformer.set_raw_scale(name, raw_scale)
        if channel_swap is not None:
            self.transformer.set_channel_swap(name, channel_swap)

    def predict_pictures(self, pictures: Iterable[Array]) -> Array:
        """The first output for images (H, W, K) of any size, one row per image."""
        name = self.inputs[0]
        blobs = np.array([self.transformer.preprocess(name, picture) for picture in pictures])
        inputs: dict[str, Any] = {name: blobs}
        return self.forward_all(**inputs)[self.outputs[0]]


class Classifier(PictureNet):
    """A net that predicts class probabilities of images.

    image_dims   (height, width) that images are resized to before cropping; default: the input's size
    """

    def __init__(
        self,
        model_file: str | os.PathLike[str],
        pretrained_file: str | os.PathLike[str],
        image_dims: Sequence[int] | None = None,
        mean: Array | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
    ) -> None:
        super().__init__(model_file, pretrained_file, mean, input_scale, raw_scale, channel_swap)
        self.crop_dims = np.array(self.blobs[self.inputs[0]].shape[2:])
        self.image_dims = tuple(self.crop_dims if image_dims is None else image_dims)
        if any(self.crop_dims > self.image_dims):
            raise DataError(f"image_dims {self.image_dims} are less than the net's input, {self.crop_dims}")

    def predict(self, inputs: Iterable[Array], oversample: bool = True) -> Array:
        """Class probabilities (N, classes) of images (H, W, K).

        oversample   average over ten crops: corners, centre, and their mirror images; False: the centre only
        """
        pictures = [resize_image(picture, self.image_dims) for picture in inputs]
        height, width = self.crop_dims
        if not oversample:
            top, left = (int(spare) // 2 for spare in np.array(self.image_dims) - self.crop_dims)
            return self.predict_pictures(
                [picture[top : top + height, left : left + width] for picture in pictures]
            )
        predictions = self.predict_pictures(ten_crops(pictures, self.crop_dims))
        mean: Array = predictions.reshape(len(pictures), 10, -1).mean(1)
        return mean
