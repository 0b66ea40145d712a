"""The features of the MARS tracklets: compute them with a model, write them to a file, read them again."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from tokenize import TokenError
from typing import BinaryIO

import numpy as np

from imae.converters.convert_folder import LARGEST_PICTURE
from imae.converters.images import decode_picture
from imae.converters.preprocessing import GRAY, RGB, Preprocessing
from imae.files.errors import DataError, ImaeError
from imae.files.file_tree import open_tree
from imae.files.read import AnyPath, open_to_read
from imae.layers.data.datum import array_from_datum
from imae.layers.data.lmdb_source import open_lmdb
from imae.paper.embedding import Array, Images, Model, features
from imae.paper.mars import BATCH_SIZE, find_images, order_images
from imae.paper.retrieval import Features, Tracklets, average_tracklets

# The exceptions that numpy raises for a file that is not one of its archives, or is damaged.
NPZ_ERRORS = (
    OSError, ValueError, KeyError, EOFError, AttributeError, TypeError, MemoryError, NotImplementedError,
    RuntimeError, SyntaxError, TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def tracklet_features(
    model: Model,
    images: Images,
    tracklets: Tracklets,
    preparation: Preprocessing,
    batch_size: int | None = None,
) -> Features:
    """The mean feature of each tracklet's images (T, D).

    preparation   of the images, the model's own or another one
    batch_size    images at a time; None: the model's fixed batch size, or else BATCH_SIZE

    ImaeError for a batch size that is not the model's; DataError for images that do not fit its input.
    """
    size = model.batch_size
    if batch_size is not None and (batch_size < 1 or size not in (None, batch_size)):
        raise ImaeError(f"--batch-size must be {size or '1 or more'}, got {batch_size}")
    return average_tracklets(
        features(model, images, preparation, size or batch_size or BATCH_SIZE), tracklets
    )


@contextmanager
def lmdb_images(
    path: AnyPath, protocol: AnyPath, tracklets: Tracklets, preparation: Preprocessing
) -> Iterator[Images]:
    """The test images in the protocol's order, from an LMDB whose keys end with their names."""
    where = f"lmdb '{path}'"
    with open_lmdb(path) as source:
        keys = [source.key(row).decode(errors="backslashreplace") for row in range(len(source))]
        key_of = find_images(keys)
        names = order_images(key_of, protocol, "test", tracklets, where)
        row_of = {key: row for row, key in enumerate(keys)}
        rows = [row_of[key_of[name]] for name in names]
        force_color, force_gray = preparation.transform.force_color, preparation.transform.force_gray

        def read_record(i: int) -> Array:
            name = f"{where}, image '{names[i]}'"
            return array_from_datum(source.datum(rows[i]), name, force_color, force_gray)

        yield Images(names, read_record)


@contextmanager
def folder_images(
    path: AnyPath, protocol: AnyPath, tracklets: Tracklets, preparation: Preprocessing
) -> Iterator[Images]:
    """The test images in the protocol's order, from the folder bbox_test or a .tar archive of it."""
    with open_tree(path) as tree:
        path_of = find_images(tree.names)
        names = order_images(path_of, protocol, "test", tracklets, f"'{path}'")

        def read_picture(i: int) -> Array:
            file = path_of[names[i]]
            order = preparation.net_channels or preparation.channels
            pixels = decode_picture(tree.read(file, LARGEST_PICTURE), file, gray=order == GRAY)
            return (pixels[:, :, ::-1] if order == RGB else pixels).transpose(2, 0, 1)

        yield Images(names, read_picture)


def write_features(file: BinaryIO, means: Features, tracklets: Tracklets) -> None:
    """Write the tracklets' features (T, D), and the rows of the protocol that they belong to."""
    np.savez(file, features=means, tracklets=np.stack(tracklets, 1))


def read_features(path: AnyPath, tracklets: Tracklets) -> Features:
    """Read what `write_features` wrote; DataError for an unreadable file or one of another protocol."""
    try:
        with open_to_read(path) as file, np.load(file, allow_pickle=False) as archive:
            means: Features = archive["features"]
            kept = archive["tracklets"]
    except NPZ_ERRORS as error:
        raise DataError(f"cannot read the features '{path}': {error}") from None
    if not np.array_equal(kept, np.stack(tracklets, 1)):
        raise DataError(f"the features '{path}' are of another protocol's tracklets; compute them again")
    if means.dtype != np.float32 or means.ndim != 2:
        raise DataError(
            f"the features '{path}' must be float32 of two axes, got {means.dtype} of shape {means.shape}"
        )
    return means
