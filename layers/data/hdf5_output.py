"""HDF5Output: write two blobs to a file, as data sets "data" and "label" of four axes.

bottom[0]  (N, ...)  at most four axes
bottom[1]  (N, ...)  at most four axes

The file is made empty at set-up; a forward pass fills it, a second one is an error.

Caffe: hdf5_output_layer.cpp. Differs: the file is complete as soon as the forward pass is over (in Caffe,
when the net is destroyed), and is never visible half-written. It replaces an existing file only if that is an
HDF5 file, as a prototxt can come from anybody.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import h5py
from torch import Tensor

from imae.files.atomic import atomic_file
from imae.files.caffe_log import log_line
from imae.layers.layer import Layer, Shape
from imae.layers.registry import register_layer
from imae.layers.run import Run


@register_layer("HDF5Output")
class HDF5Output(Layer):
    num_bottoms = 2
    num_tops = 0
    deployed = False

    def use_run(self, run: Run) -> None:
        self.ranks = run.ranks_in(self.phase)

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        self.file_name = self.param.hdf5_output_param.file_name
        if not self.file_name:
            raise self.error("hdf5_output_param.file_name is not set")
        if self.ranks.size > 1:
            raise self.error(
                f"each of {self.ranks.size} ranks would write '{self.file_name}'; train in one process"
            )
        if os.path.isfile(self.file_name) and not h5py.is_hdf5(self.file_name):
            raise self.error(
                f"'{self.file_name}' exists and is no HDF5 file; remove it, or choose another file_name"
            )
        self.written = False
        self._write({})

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return []

    @property
    def capturable(self) -> bool:
        return False

    @property
    def repeatable(self) -> bool:
        return False

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        """Write the file; there are no tops."""
        data, label = (blob.detach().cpu() for blob in bottoms)
        if self.written:
            raise self.error(f"'{self.file_name}' holds a batch already; HDF5Output writes one forward pass")
        for blob in (data, label):
            if not 1 <= blob.dim() <= 4:
                raise self.error(f"blobs of 1 to 4 axes can be written; got shape {tuple(blob.shape)}")
        if len(data) != len(label):
            raise self.error(
                f"data blob and label blob must have the same batch size; got {len(data)} and {len(label)}"
            )
        log_line("hdf5_output_layer.cpp:33", f"Saving HDF5 file {self.file_name}")
        self._write({"data": data, "label": label})
        self.written = True
        log_line("hdf5_output_layer.cpp:38", f"Successfully saved {len(data)} rows")
        return ()

    def _write(self, blobs: dict[str, Tensor]) -> None:
        with atomic_file(self.file_name) as beside, h5py.File(beside.name, "w") as file:
            for name, blob in blobs.items():
                file[name] = blob.reshape(*blob.shape, *[1] * (4 - blob.dim())).numpy()
