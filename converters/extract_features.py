"""Blobs of a net, batch after batch, as records of LMDBs.

Each item of a batch is a Datum without a label; its float_data are the item's values, its key is its place in
ten digits.

Caffe: tools/extract_features.cpp. Differs: the LMDBs appear only at the end; a net whose input is not fed is
refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from imae.converters.lmdb_writer import BATCH, Record, open_new_lmdb, put_records
from imae.files.atomic import atomic_folder
from imae.files.caffe_log import log_line
from imae.files.errors import DataError
from imae.files.read import AnyPath
from imae.net.inference import plan_inference
from imae.net.net import Net
from imae.prototxt import Datum


def extract_features(
    net: Net, names: Sequence[str], paths: Sequence[AnyPath], batches: int, device: torch.device | None = None
) -> int:
    """Run `batches` batches and write blob names[i] to the new LMDB paths[i]; returns the number of records.

    DataError for a blob that the net lacks or that has more than 4 axes; then no LMDB is written.
    """
    device = device or torch.device("cpu")
    for name in names:
        if name not in net.blob_shapes:
            raise DataError(
                f"Unknown feature blob name {name} in the network {net.name}; known: "
                f"{', '.join(net.blob_shapes)}"
            )
    plan = plan_inference(net.to(device), names)
    counts = dict.fromkeys(names, 0)
    waiting: dict[str, list[Record]] = {name: [] for name in names}
    with ExitStack() as stack:
        environments = {}
        for name, path in zip(names, paths, strict=True):
            log_line("extract_features.cpp:125", f"Opening dataset {path}")
            environments[name] = stack.enter_context(
                open_new_lmdb(stack.enter_context(atomic_folder(path)), path)
            )
        log_line("extract_features.cpp:133", "Extracting Features", logging.ERROR)
        for _ in tqdm(range(batches), unit=" batches", disable=None):
            blobs = plan.run(contiguous=True)
            for name, path in zip(names, paths, strict=True):
                for datum in blob_datums(blobs[name].cpu().numpy(), name):
                    waiting[name].append((b"%010d" % counts[name], datum))
                    counts[name] += 1
                    if len(waiting[name]) == BATCH:
                        put_records(environments[name], waiting[name], path)
                        waiting[name] = []
                        log_line("extract_features.cpp:165", _progress(name, counts[name]), logging.ERROR)
        for name, path in zip(names, paths, strict=True):
            put_records(environments[name], waiting[name], path)
            log_line("extract_features.cpp:176", _progress(name, counts[name]), logging.ERROR)
    log_line("extract_features.cpp:181", "Successfully extracted the features!", logging.ERROR)
    return max(counts.values())


def blob_datums(blob: NDArray[np.float32], name: str) -> Iterator[Datum]:
    """A Datum for each item of a blob; missing axes have size 1."""
    if blob.ndim > 4:
        raise DataError(
            f"blob {name}: Cannot use legacy accessors on Blobs with > 4 axes.; a Datum has 3 beside the "
            f"batch's, got shape {blob.shape}"
        )
    items, channels, height, width = [*blob.shape, 1, 1, 1, 1][:4]
    for item in blob.reshape(items, -1):
        yield Datum(channels=channels, height=height, width=width, float_data=item)


def _progress(name: str, count: int) -> str:
    return f"Extracted features of {count} query images for feature blob {name}"
