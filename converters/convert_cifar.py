"""CIFAR-10 and CIFAR-100, as their authors distribute them, into LMDBs for training and test.

The binary and the Python version are read, from the folder or straight from the .tar.gz archive.

Binary: records of a label (CIFAR-100: coarse, then fine label), then the red, green and blue plane of 32x32.
Python: a pickled dict, see cifar_pickle.py.  (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html)
"""

import posixpath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imae.converters.images import Image, ImageSet, resize_all, write_train_test
from imae.files.cifar_pickle import read_pickled_batch
from imae.files.errors import DataError
from imae.files.file_tree import FileTree, open_tree
from imae.files.read import AnyPath

PIXELS = 3 * 32 * 32
KEY_DIGITS = 5
LARGEST_FILE = 256 << 20  # bytes; CIFAR-100's train, the largest, has 155 million
CLASSES = {"labels": 10, "coarse_labels": 20, "fine_labels": 100}


class Version(NamedTuple):
    """One of the four forms: its files, and the labels of an image in the order of the binary records."""

    name: str
    train: list[str]
    test: list[str]
    labels: list[str]
    pickled: bool


VERSIONS = [
    Version("cifar10", [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"], ["labels"], False),
    Version("cifar10", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], ["labels"], True),
    Version("cifar100", ["train.bin"], ["test.bin"], ["coarse_labels", "fine_labels"], False),
    Version("cifar100", ["train"], ["test"], ["coarse_labels", "fine_labels"], True),
]


def convert_cifar(
    source: AnyPath,
    output: AnyPath,
    *,
    label: str | None = None,
    bgr: bool = False,
    resize: int = 0,
    interpolation: str = "",
    pad: int = 0,
    shuffle: int | None = None,
) -> None:
    """Write cifar10_train_lmdb and cifar10_test_lmdb (or cifar100_...) into the folder `output`.

    label           CIFAR-100: "fine" (also None) or "coarse" labels
    bgr             blue first, as other images in Caffe; else red first, as in the files
    resize          new height and width of all images, before they are padded; 0: not resized
    interpolation   for resizing, one of INTERPOLATIONS; bilinear if it is empty
    pad             number of zeros on each side of the training images
    shuffle         seed of the order of the training images; None: not shuffled

    DataError for files that are not CIFAR's; FileError where the LMDBs cannot be written.
    """
    if interpolation and not resize:
        raise DataError("--interpolation is for --resize N, which is missing")
    name, train, test = read_cifar(source, label)
    if bgr:
        train, test = (ImageSet(images[:, ::-1], labels) for images, labels in (train, test))
    if resize:
        train, test = (
            ImageSet(resize_all(images, resize, interpolation), labels) for images, labels in (train, test)
        )
    write_train_test(output, name, train, test, KEY_DIGITS, pad, shuffle)


def read_cifar(path: AnyPath, label: str | None = None) -> tuple[str, ImageSet, ImageSet]:
    """("cifar10" or "cifar100", training images, test images), RGB.

    `label` chooses CIFAR-100's "fine" (also None) or "coarse" labels. DataError: files that are not CIFAR's.
    """
    with open_tree(path, depth=2) as tree:
        version, folder = _find_version(path, tree)
        if label and version.name == "cifar10":
            raise DataError(f"'{path}' is CIFAR-10, whose labels are of one kind; leave out --label {label}")
        kind = "labels" if version.name == "cifar10" else f"{label or 'fine'}_labels"
        train, test = (
            [_read_batch(version, kind, file, tree.read(folder + file, LARGEST_FILE)) for file in files]
            for files in (version.train, version.test)
        )
    return version.name, _concatenated(train), _concatenated(test)


def _concatenated(sets: list[ImageSet]) -> ImageSet:
    return ImageSet(np.concatenate([s.images for s in sets]), np.concatenate([s.labels for s in sets]))


def _find_version(path: AnyPath, tree: FileTree) -> tuple[Version, str]:
    """The version of the files, and the folder that they are in: "" or a name that ends in "/"."""
    folders: dict[str, set[str]] = {}
    for name in tree.names:
        folder, file = posixpath.split(name)
        folders.setdefault(folder and f"{folder}/", set()).add(file)
    matches = [
        (v, folder) for v in VERSIONS for folder, files in folders.items() if files & {*v.train, *v.test}
    ]
    if not matches:
        raise DataError(
            f"'{path}' holds no CIFAR: expected data_batch_1 .. 5 and test_batch, or train and test, "
            "all with .bin (binary version) or all without"
        )
    if len(matches) > 1:
        places = ", ".join(f"{folder}{version.train[0]}" for version, folder in matches)
        raise DataError(f"'{path}' holds CIFAR more than once ({places}); name the folder of one")
    ((version, folder),) = matches
    missing = [folder + file for file in (*version.train, *version.test) if file not in folders[folder]]
    if missing:
        raise DataError(f"'{path}' lacks {', '.join(missing)}")
    return version, folder


def _read_batch(version: Version, kind: str, file: str, data: bytes) -> ImageSet:
    """The images of one file and their labels of this kind."""
    read = _read_pickled if version.pickled else _read_binary
    images, labels = read(version, kind, file, data)
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES[kind]))
    if len(wrong):
        raise DataError(
            f"'{file}' is damaged: image {wrong[0]} has label {labels[wrong[0]]}; "
            f"{kind} are 0 to {CLASSES[kind] - 1}"
        )
    return ImageSet(images.reshape(-1, 3, 32, 32), labels)


def _read_binary(version: Version, kind: str, file: str, data: bytes) -> tuple[Image, NDArray[np.int64]]:
    first = len(version.labels)
    size = first + PIXELS
    if not data or len(data) % size:
        raise DataError(
            f"'{file}' is damaged: its {len(data)} bytes are no whole number of records of {size} bytes"
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, size)
    return rows[:, first:], rows[:, version.labels.index(kind)].astype(np.int64)


def _read_pickled(version: Version, kind: str, file: str, data: bytes) -> tuple[Image, NDArray[np.int64]]:
    batch = read_pickled_batch(data, file)
    images, labels = batch.get("data"), batch.get(kind)
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise DataError(f"'{file}' is damaged: its '{kind}' are no list of numbers")
    if not isinstance(images, np.ndarray) or images.shape != (len(labels), PIXELS):
        raise DataError(f"'{file}' is damaged: its 'data' are no {len(labels)} rows of {PIXELS} bytes")
    return images, np.array(labels, np.int64)
