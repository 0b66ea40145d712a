"""Caffe's compute_image_mean: the mean image of a database as a .binaryproto, and the means of its channels.

The mean is a BlobProto with num 1, channels, height and width. It is summed in single precision in the order
of the records, so it equals Caffe's bit for bit.

Caffe: tools/compute_image_mean.cpp. Differs: images of equal count and different shapes are refused, too.
"""

import logging
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from imae.files.atomic import write_atomically
from imae.files.errors import DataError
from imae.files.read import AnyPath
from imae.layers.data.datum import array_from_datum
from imae.layers.data.leveldb_source import LeveldbSource, open_leveldb
from imae.layers.data.lmdb_source import LmdbSource, open_lmdb
from imae.prototxt import BlobProto

logger = logging.getLogger(__name__)

Mean = NDArray[np.float32]


def compute_mean(source: LmdbSource | LeveldbSource) -> Mean:
    """Mean (C, H, W) of all records; DataError unless all have one shape."""
    names = list(map(source.record_name, source.keys()))
    first = source.datum(0)
    if first.encoded:
        logger.info("Decoding Datum")
    logger.info("Starting iteration")
    total = np.zeros(array_from_datum(first, names[0]).shape, np.float32)
    for i, name in enumerate(tqdm(names, unit=" records", disable=None)):
        pixels = array_from_datum(source.datum(i), name)
        if pixels.shape != total.shape:
            raise DataError(f"{name}: an image of {pixels.shape}; the first one's shape is {total.shape}")
        with np.errstate(over="ignore", invalid="ignore"):  # float_data may hold anything
            total += pixels
    if not np.isfinite(total).all():
        logger.warning("The mean is not finite: the records hold NaN, infinite or very large values")
    return total / np.float32(len(source))


def channel_means(mean: Mean) -> list[np.float32]:
    """The mean of each channel, summed in single precision, one value after the other."""
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.cumsum(mean.reshape(len(mean), -1), axis=1, dtype=np.float32)[:, -1]
    return list(sums / np.float32(mean[0].size))


def mean_blob(mean: Mean) -> BlobProto:
    """The mean as Caffe stores it."""
    channels, height, width = mean.shape
    return BlobProto(num=1, channels=channels, height=height, width=width, data=mean.ravel())


def compute_image_mean(
    source: AnyPath, output: AnyPath | None = None, backend: Literal["lmdb", "leveldb"] = "lmdb"
) -> Mean:
    """Mean (C, H, W) of a database; also written to the .binaryproto `output` if that is given.

    Logs what Caffe's tool logs, including the means of the channels.
    """
    if backend not in ("lmdb", "leveldb"):
        raise DataError(f"backend must be lmdb or leveldb, got '{backend}'")
    with open_lmdb(source) if backend == "lmdb" else open_leveldb(source) as records:
        logger.info("Opened %s %s", backend, source)
        mean = compute_mean(records)
        logger.info("Processed %d files.", len(records))
    if output:
        logger.info("Write to %s", output)
        write_atomically(output, mean_blob(mean).SerializeToString())
    logger.info("Number of channels: %d", len(mean))
    for channel, value in enumerate(channel_means(mean)):
        logger.info("mean_value channel [%d]: %s", channel, format(float(value), "g"))
    return mean
