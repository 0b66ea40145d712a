"""Labels in files of their own: read from .npz, .npy or text, and the clean labels kept beside noisy ones."""

import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imae.prototxt.errors import DataError
from imae.prototxt.files import AnyPath, atomic_file

FORMS = "FILE.npz:KEY, FILE.npy or FILE.txt"
Labels = NDArray[np.int64]


class LabelFile(NamedTuple):
    """labels (N,); keys, where the file has them (an array "key" of an .npz): the LMDB key of each label."""

    labels: Labels
    keys: list[bytes] | None


def read_labels(source: str) -> LabelFile:
    """Labels from FILE.npz:KEY (without KEY if there is one array), FILE.npy, or a text of numbers."""
    path, _, name = source.partition(".npz:")
    path = f"{path}.npz" if name else source
    try:
        with open(path, "rb") as file:
            if not path.endswith((".npz", ".npy")):
                numbers = [int(word) for word in file.read().split()]
                return LabelFile(_checked(source, np.array(numbers, np.int64)), None)
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                return _from_arrays(path, name, loaded)
            return LabelFile(_checked(source, loaded), None)
    except OSError as error:
        raise DataError(f"cannot read the labels '{path}': {error.strerror or error}") from error
    except DataError:
        raise
    except (ValueError, EOFError, MemoryError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read the labels '{source}': {error}; expected {FORMS}") from error


def _from_arrays(path: str, name: str, arrays: Any) -> LabelFile:
    names = [name] if name else [other for other in arrays.files if other != "key"]
    if len(names) != 1 or names[0] not in arrays.files:
        raise DataError(
            f"'{path}' has the arrays {', '.join(arrays.files)}; name one of them, as in {path}:{names[0]}"
        )
    labels = _checked(f"{path}:{names[0]}", arrays[names[0]])
    if "key" not in arrays.files:
        return LabelFile(labels, None)
    keys = arrays["key"].tolist()
    if len(keys) != len(labels) or not all(isinstance(key, bytes) for key in keys):
        raise DataError(
            f"'{path}': its array 'key' must hold the LMDB key of each of the {len(labels)} labels"
        )
    return LabelFile(labels, keys)


def _checked(source: str, labels: NDArray[Any]) -> Labels:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise DataError(
            f"'{source}' must be a list of whole numbers, "
            f"got an array of {labels.dtype} with shape {labels.shape}"
        )
    return labels.astype(np.int64)


def check_range(labels: Labels, limit: int, what: str) -> None:
    """DataError unless all numbers are 0 to limit - 1; `what` says whose they are."""
    wrong = np.flatnonzero((labels < 0) | (labels >= limit))
    if len(wrong):
        raise DataError(
            f"{what}: number {labels[wrong[0]]} at place {wrong[0]} is out of range; "
            f"it must be 0 to {limit - 1}"
        )


def clean_labels_path(lmdb: AnyPath) -> str:
    """Where the clean labels of a noisy LMDB are kept: beside it."""
    return f"{os.path.normpath(lmdb)}.clean_labels.npz"


@contextmanager
def clean_labels_file(
    lmdb: AnyPath, keys: Sequence[bytes], clean: Labels, noisy: Labels, settings: dict[str, Any]
) -> Iterator[None]:
    """Write `clean_labels_path(lmdb)` if the block, which writes the LMDB itself, ends well.

    Arrays, in the order of the LMDB: key (bytes), clean, noisy (int32). settings (JSON text): their origin.
    """
    if any(key.endswith(b"\0") for key in keys):
        raise DataError(
            f"'{lmdb}' would have keys that end in a zero byte; the file of clean labels cannot hold them"
        )
    with atomic_file(clean_labels_path(lmdb)) as file:
        np.savez_compressed(
            file,
            key=np.array(keys, np.bytes_),
            clean=clean.astype(np.int32),
            noisy=noisy.astype(np.int32),
            settings=np.array(json.dumps(settings)),
        )
        yield
