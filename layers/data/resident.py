"""Resident records: they are kept on the device, and batches are cut out of them there.

The host draws the contents of a batch (which records, which are mirrored, where the windows begin) from
Caffe's random stream, as always, and sends these few numbers. The device does crop, mirror, mean and scale
for the whole batch. The result equals DataTransformer's bit for bit.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imae.layers.data.transformer import DataTransformer


class ResidentRecords:
    """The images (K, C, H, W) uint8 and the labels (K) of a database, on `device`.

    transformer   gives the draws, crop, mean and scale
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        transformer: DataTransformer,
        device: torch.device,
    ) -> None:
        # Channels last: a row of a window is then contiguous, and it is the format of batches on a GPU.
        self.images = torch.from_numpy(images).to(device).permute(0, 2, 3, 1).contiguous()
        self.labels = torch.from_numpy(labels.astype(np.float32)).to(device)
        self.transformer = transformer
        height, width, _ = self.images.shape[1:]
        crop = transformer.crop_size
        self._rows = torch.arange(crop or height, device=device)
        self._columns = torch.arange(crop or width, device=device)
        self._mean: Tensor | None = None
        if transformer.mean is not None:
            self._mean = torch.from_numpy(transformer.mean).to(device).permute(1, 2, 0).contiguous()
        elif transformer.mean_values.any():
            self._mean = torch.from_numpy(transformer.mean_values).to(device)

    def draw(self, rows: NDArray[np.int64]) -> Tensor:
        """(4, N) int64, on the host: record, mirrored or not, first row and first column of each image."""
        size = self.images.shape[1:3]
        heights, widths = (np.full(len(rows), side) for side in size)
        flip, top, left = self.transformer.draw(heights, widths)
        return torch.from_numpy(np.stack([rows, flip.astype(np.int64), top, left]))

    def assemble(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The batch (N, C, h, w), whose memory is channels last, and its labels (N), from such a draw."""
        record, flip, top, left = (part[:, None, None] for part in drawn)
        rows = top + self._rows[None, :, None]
        columns = left + torch.where(flip != 0, self._columns.flip(0), self._columns)
        values = self.images[record, rows, columns].to(torch.float32)
        if self._mean is not None:
            values = values - (self._mean if self._mean.dim() == 1 else self._mean[rows, columns])
        if self.transformer.scale != 1:
            values = values * float(self.transformer.scale)
        return values.permute(0, 3, 1, 2), self.labels[drawn[0]]
