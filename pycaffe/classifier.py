"""Classifier: a net with the pre-processing of its pictures.

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
    """A net in phase TEST whose first input (N, K, H, W) takes pictures; `transformer` prepares them.

    mean           to subtract: (K,) or (K, H', W')
    input_scale    to multiply by after that
    raw_scale      to multiply by before that: 255 where the net knows pictures from 0 to 255
    channel_swap   the order of the channels: (2, 1, 0) where the net knows BGR
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
        """The first output for pictures (H, W, K) of any size, a row each."""
        name = self.inputs[0]
        blobs = np.array([self.transformer.preprocess(name, picture) for picture in pictures])
        given: dict[str, Any] = {name: blobs}
        return self.forward_all(**given)[self.outputs[0]]


class Classifier(PictureNet):
    """A net that gives class probabilities of pictures.

    image_dims   (height, width) that pictures are resized to before they are cropped; default: the input's
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
        """Class probabilities (N, classes) of pictures (H, W, K).

        oversample   the mean over ten crops: corners, centre, and their mirror images; else the centre alone
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
