"""Detector: a net that classifies windows of images.

Caffe: python/caffe/detector.py; Girshick et al. 2014 for the windows with context.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imae.files.errors import DataError, ImaeError
from imae.files.read import AnyPath
from imae.pycaffe.caffe_io import load_image, resize_image
from imae.pycaffe.classifier import PictureNet

Array = NDArray[Any]


class Detector(PictureNet):
    """A net that classifies windows (ymin, xmin, ymax, xmax) of images.

    context_pad   pixels on each side of the net's input that show the surroundings of the window; pixels
                  outside the image have the mean
    """

    def __init__(
        self,
        model_file: AnyPath,
        pretrained_file: AnyPath,
        mean: Array | None = None,
        input_scale: float | None = None,
        raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None,
        context_pad: int | None = None,
    ) -> None:
        super().__init__(model_file, pretrained_file, mean, input_scale, raw_scale, channel_swap)
        self.configure_crop(context_pad)

    def detect_windows(
        self, images_windows: Iterable[tuple[AnyPath, Iterable[Sequence[int]]]]
    ) -> list[dict[str, Any]]:
        """Classify windows of image files: a dict with filename, window and prediction for each window."""
        places, crops = [], []
        for filename, windows in images_windows:
            image = load_image(filename)
            for window in windows:
                places.append({"window": window, "filename": filename})
                crops.append(self.crop(image, window))
        if not crops:
            return []
        predictions = self.predict_pictures(crops)
        return [
            {"window": place["window"], "prediction": prediction, "filename": place["filename"]}
            for place, prediction in zip(places, predictions, strict=True)
        ]

    def detect_selective_search(self, image_fnames: Iterable[AnyPath]) -> list[dict[str, Any]]:
        """Classify the windows that Selective Search proposes (a separate package, which needs MATLAB)."""
        try:
            search = importlib.import_module("selective_search_ijcv_with_python")
        except ModuleNotFoundError as error:
            raise ImaeError(
                "detect_selective_search needs the package selective_search_ijcv_with_python and MATLAB; "
                "give windows to detect_windows instead"
            ) from error
        names = [os.path.abspath(name) for name in image_fnames]
        windows = search.get_windows(names, cmd="selective_search_rcnn")
        return self.detect_windows(zip(names, windows, strict=True))

    def crop(self, im: Array, window: Sequence[int]) -> Array:
        """Crop the window from an image (H, W, K), with its context if `context_pad` is set."""
        top, left, bottom, right = (int(edge) for edge in window)
        if not (0 <= top < min(bottom, im.shape[0]) and 0 <= left < min(right, im.shape[1])):
            raise DataError(f"window {tuple(window)} does not lie in an image of shape {im.shape}")
        if not self.context_pad:
            return im[top:bottom, left:right]
        size = int(self.crop_dims[0])
        box, (pad_y, pad_x), scaled = _with_context(window, im.shape[:2], size, self.context_pad)
        crop: Array = np.ones(self.crop_dims, np.float32) * self.crop_mean
        context = resize_image(im[box[0] : box[2], box[1] : box[3]], scaled)
        crop[pad_y : pad_y + scaled[0], pad_x : pad_x + scaled[1]] = context
        return crop

    def configure_crop(self, context_pad: int | None) -> None:
        """Set `context_pad`, and the values of pixels outside the image."""
        name, transformer = self.inputs[0], self.transformer
        channels, height, width = self.blobs[name].shape[1:]
        if context_pad and (height != width or not 0 < 2 * context_pad < width):
            raise DataError(
                f"context_pad needs a square input of more than {2 * context_pad} pixels; "
                f"got {height} x {width}"
            )
        self.context_pad = context_pad
        self.crop_dims = np.array([height, width, channels])
        self.crop_mean: Array = np.zeros(self.crop_dims, np.float32)
        if name in transformer.mean:
            # The mean has the net's axes, channel order and scale; a crop still has those of an image.
            mean = np.broadcast_to(transformer.mean[name], (channels, height, width))
            if name in transformer.channel_swap:
                mean = mean[np.argsort(transformer.channel_swap[name])]
            self.crop_mean = mean.transpose(1, 2, 0) / transformer.raw_scale.get(name, 1)


def _with_context(
    window: Sequence[int], image_size: tuple[int, ...], size: int, context_pad: int
) -> tuple[list[int], tuple[int, int], tuple[int, int]]:
    """The window with its context, as (box in the image, start in the crop, size in the crop).

    The window is enlarged so that the original window fills the crop except for `context_pad` pixels on each
    side, then it is cut to the image. Caffe: Detector.crop.
    """
    edges = np.array(window, float)
    half = (edges[2:] - edges[:2] + 1) / 2
    enlarged = half * (size / (size - 2 * context_pad))
    centre = edges[:2] + half
    low, high = np.round(centre - enlarged), np.round(centre + enlarged)
    scale = size / (high - low + 1)
    pad = [round(value) for value in np.maximum(0, -low) * scale]
    low, high = np.clip(low, 0, image_size), np.clip(high, 0, image_size)
    scaled = [
        min(round(value), size - begin) for value, begin in zip((high - low + 1) * scale, pad, strict=True)
    ]
    box = [int(edge) for edge in (*low, *high)]
    return box, (pad[0], pad[1]), (scaled[0], scaled[1])
