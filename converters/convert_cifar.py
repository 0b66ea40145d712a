"""CIFAR-10 and CIFAR-100, as their authors distribute them, into LMDBs for training and test.

    imae convert-cifar cifar-10-binary.tar.gz data     # data/cifar10_train_lmdb, data/cifar10_test_lmdb

Reads the binary and the Python version, from the folder or straight from the .tar.gz archive. Keys have 5
digits, as in Caffe's convert_cifar_data. As there, the channels stay in the file's order, red first, although
all other pictures in Caffe have blue first: --bgr swaps them. --resize 36 --interpolation bicubic --bgr makes
what the authors of IMAE cropped their images from (see exclude_last_crop in imae.layers.data.transformer).

Binary: records of a label (CIFAR-100: coarse, then fine label), then the red, green and blue plane of 32x32.
Python: a pickled dict, see cifar_pickle.py.  (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html)
"""

import argparse
import posixpath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imae.converters.images import (
    Image,
    ImageSet,
    add_image_options,
    add_interpolation_option,
    pixel_count,
    resize_all,
    write_train_test,
)
from imae.files.cifar_pickle import read_pickled_batch
from imae.files.errors import DataError
from imae.files.file_tree import FileTree, open_tree
from imae.files.read import AnyPath

COMMAND = "convert-cifar"
HELP = "CIFAR-10 or CIFAR-100 (binary or Python version, folder or .tar.gz) to LMDBs"

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
    return version.name, _joined(train), _joined(test)


def _joined(sets: list[ImageSet]) -> ImageSet:
    return ImageSet(np.concatenate([s.images for s in sets]), np.concatenate([s.labels for s in sets]))


def _find_version(path: AnyPath, tree: FileTree) -> tuple[Version, str]:
    """The version that is there, and the folder it lies in: "" or a name that ends in "/"."""
    folders: dict[str, set[str]] = {}
    for name in tree.names:
        folder, file = posixpath.split(name)
        folders.setdefault(folder and f"{folder}/", set()).add(file)
    found = [
        (v, folder) for v in VERSIONS for folder, files in folders.items() if files & {*v.train, *v.test}
    ]
    if not found:
        raise DataError(
            f"'{path}' holds no CIFAR: expected data_batch_1 .. 5 and test_batch, or train and test, "
            "all with .bin (binary version) or all without"
        )
    if len(found) > 1:
        places = ", ".join(f"{folder}{version.train[0]}" for version, folder in found)
        raise DataError(f"'{path}' holds CIFAR more than once ({places}); name the folder of one")
    ((version, folder),) = found
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="the folder or the .tar.gz archive as downloaded")
    parser.add_argument(
        "output", help="folder for cifar10_train_lmdb and cifar10_test_lmdb (or cifar100_...)"
    )
    parser.add_argument("--label", choices=("fine", "coarse"), help="CIFAR-100: which labels (default: fine)")
    parser.add_argument(
        "--bgr", action="store_true", help="blue first, as other pictures in Caffe; default: red"
    )
    parser.add_argument(
        "--resize", type=pixel_count, default=0, metavar="N", help="make all images N x N, before --pad"
    )
    add_interpolation_option(parser)
    add_image_options(parser)


def run(args: argparse.Namespace) -> None:
    if args.interpolation and not args.resize:
        raise DataError("--interpolation is for --resize N, which is missing")
    name, train, test = read_cifar(args.source, args.label)
    if args.bgr:
        train, test = (ImageSet(images[:, ::-1], labels) for images, labels in (train, test))
    if args.resize:
        train, test = (
            ImageSet(resize_all(images, args.resize, args.interpolation), labels)
            for images, labels in (train, test)
        )
    write_train_test(args.output, name, train, test, KEY_DIGITS, args.pad, args.shuffle)
