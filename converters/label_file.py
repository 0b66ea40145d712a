"""Label files: labels from .npz, .npy or text, and the clean labels kept beside an LMDB with noisy ones."""

import json
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imae.files.atomic import atomic_file
from imae.files.errors import DataError
from imae.files.file_kinds import FileKind, mistaken_file
from imae.files.read import AnyPath, file_size, open_to_read, read_bytes

FORMS = "FILE.npz:KEY, FILE.npy or FILE.txt"
Labels = NDArray[np.int64]

LARGEST = 1 << 28  # bytes of an array
HEAD = re.compile(
    rb"\{'descr': '(?P<descr>[<>|=](?:[biuf][1248]|S\d{1,6}))', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>[\d, ]{0,200})\),? *\} *\n?"
)


class LabelFile(NamedTuple):
    """labels (N,); keys, where the file has them (an array "key" of an .npz): the LMDB key of each label."""

    labels: Labels
    keys: list[bytes] | None


def read_labels(source: str) -> LabelFile:
    """Labels from FILE.npz:KEY (without KEY if there is one array), FILE.npy, or a text of numbers."""
    path, _, name = source.partition(".npz:")
    path = f"{path}.npz" if name else source
    with _one_line_errors(path, source, FORMS):
        if path.endswith(".npz"):
            with open_to_read(path) as file, zipfile.ZipFile(file) as archive:
                return _from_archive(path, name, archive)
        if path.endswith(".npy"):
            with open_to_read(path) as file:
                labels = _read_array(file, file_size(file))
        else:
            labels = np.array([int(word) for word in read_bytes(path).split()], np.int64)
        return LabelFile(_checked(source, labels), None)


def read_array(source: str) -> NDArray[Any]:
    """An array of truth values or numbers from FILE.npz:KEY (without KEY if it has one array) or FILE.npy."""
    path, _, name = source.partition(".npz:")
    path = f"{path}.npz" if name else source
    with _one_line_errors(path, source, "FILE.npz:KEY or FILE.npy", "the array"), open_to_read(path) as file:
        if not path.endswith(".npz"):
            return _read_array(file, file_size(file))
        with zipfile.ZipFile(file) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            chosen = name or (next(iter(members)) if len(members) == 1 else "")
            if chosen not in members:
                raise DataError(
                    f"'{path}' has the arrays {', '.join(members) or 'none'}; name one of them, as in "
                    f"{path}:{next(iter(members), 'KEY')}"
                )
            return _read_member(archive, members[chosen])


def read_label_arrays(path: str) -> dict[str, Labels]:
    """Every array of an .npz, by name; DataError unless each is a list of whole numbers."""
    with (
        _one_line_errors(path, path, "an .npz of whole numbers"),
        open_to_read(path) as file,
        zipfile.ZipFile(file) as archive,
    ):
        members = archive.infolist()
        if (size := sum(member.file_size for member in members)) > LARGEST:
            raise ValueError(f"arrays of {size} bytes; at most {LARGEST} are read")
        names = [member.filename.removesuffix(".npy") for member in members]
        return {
            name: _checked(f"{path}:{name}", _read_member(archive, member))
            for name, member in zip(names, members, strict=True)
        }


def read_matrix(path: str) -> NDArray[np.float64]:
    """A matrix of numbers from FILE.npy, or from text: a row a line, numbers between commas or spaces.

    Lines that begin with # are left out. DataError for anything else.
    """
    with _one_line_errors(path, path, "a matrix, as FILE.npy, FILE.csv or FILE.txt", "the matrix"):
        if path.endswith(".npy"):
            with open_to_read(path) as file:
                matrix = _read_array(file, file_size(file))
            if matrix.dtype.kind not in "iuf":
                raise ValueError(f"it holds {matrix.dtype}")
        else:
            lines = read_bytes(path).decode().splitlines()
            rows = [re.split(r"[\s,;]+", line.strip(" \t,;")) for line in lines if not _is_comment(line)]
            if len(set(map(len, rows))) > 1:
                raise ValueError(f"its rows have {min(map(len, rows))} to {max(map(len, rows))} numbers")
            matrix = np.array([[float(word) for word in row] for row in rows])
    if matrix.ndim != 2 or not matrix.size:
        raise DataError(f"'{path}' must hold a matrix, got an array with shape {matrix.shape}")
    return matrix.astype(np.float64)


def _is_comment(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


@contextmanager
def _one_line_errors(path: str, source: str, expected: str, what: str = "the labels") -> Iterator[None]:
    """Turn all errors of a missing, damaged or foreign label file into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {what} '{path}': {error.strerror or error}") from error
    except DataError:
        raise
    except (ValueError, OverflowError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        expected_kinds = {".npz": FileKind.ZIP, ".npy": FileKind.NUMPY}
        reason = mistaken_file(path, expected_kinds.get(path[-4:])) or f": {error}"
        raise DataError(f"cannot read {what} '{source}': expected {expected}{reason}") from error


def _from_archive(path: str, name: str, archive: zipfile.ZipFile) -> LabelFile:
    members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    names = [name] if name else [other for other in members if other != "key"]
    if len(names) != 1 or names[0] not in members:
        raise DataError(
            f"'{path}' has the arrays {', '.join(members) or 'none'}; name one of them, as in "
            f"{path}:{names[0] if names else 'KEY'}"
        )
    labels = _checked(f"{path}:{names[0]}", _read_member(archive, members[names[0]]))
    if "key" not in members:
        return LabelFile(labels, None)
    keys = _read_member(archive, members["key"]).tolist()
    if not isinstance(keys, list) or len(keys) != len(labels) or not all(isinstance(k, bytes) for k in keys):
        raise DataError(
            f"'{path}': its array 'key' must hold the LMDB key of each of the {len(labels)} labels"
        )
    return LabelFile(labels, keys)


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is packed otherwise than numpy packs")
    with archive.open(member) as file:
        return _read_array(file, member.file_size)


def _read_array(file: IO[bytes], size: int) -> NDArray[Any]:
    """An array of whole numbers or bytes in numpy's format; ValueError for anything else.

    The head is a line such as {'descr': '<i8', 'fortran_order': False, 'shape': (60000,), }. numpy's own
    reader allocates memory for that shape before it checks that the file, of `size` bytes, can hold it.
    """
    if size > LARGEST:
        raise ValueError(f"an array of {size} bytes; at most {LARGEST} are read")
    start = file.read(8)
    width = {b"\x01": 2, b"\x02": 4, b"\x03": 4}.get(start[6:7])
    if start[:6] != b"\x93NUMPY" or width is None:
        raise ValueError("it is no array of numpy's")
    head = file.read(int.from_bytes(file.read(width), "little"))
    if b"'|O'" in head:
        raise ValueError("it holds Python objects, which are not unpickled")
    header = HEAD.fullmatch(head)
    if header is None:
        raise ValueError(f"its head is {head[:100]!r}, that of a list of whole numbers or keys is needed")
    shape = tuple(int(number) for number in header["shape"].split(b",") if number.strip())
    try:
        dtype = np.dtype(header["descr"].decode())
    except TypeError as error:  # f1, b2: sizes that no number has
        raise ValueError(str(error)) from None
    content = file.read()
    if len(content) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes for an array of {dtype} with shape {shape}")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if header["fortran"] == b"True" else "C")


def _checked(source: str, labels: NDArray[Any]) -> Labels:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise DataError(
            f"'{source}' must be a list of whole numbers, "
            f"got an array of {labels.dtype} with shape {labels.shape}"
        )
    return labels.astype(np.int64)


def check_range(labels: Labels, limit: int, owner: str) -> None:
    """DataError unless all numbers are 0 to limit - 1; it names their `owner`."""
    wrong = np.flatnonzero((labels < 0) | (labels >= limit))
    if len(wrong):
        raise DataError(
            f"{owner}: number {labels[wrong[0]]} at place {wrong[0]} is out of range; "
            f"it must be 0 to {limit - 1}"
        )


def clean_labels_path(lmdb: AnyPath) -> str:
    """Where the clean labels of a noisy LMDB are kept: beside it."""
    return f"{os.path.normpath(lmdb)}.clean_labels.npz"


def read_clean_labels(lmdb: AnyPath, keys: Sequence[bytes], labels: Labels) -> Labels | None:
    """The clean labels that are kept beside an LMDB with these keys and labels; None where there are none.

    DataError where they belong to another LMDB.
    """
    path = clean_labels_path(lmdb)
    if not os.path.exists(path):
        return None
    clean, noisy = read_labels(f"{path}:clean"), read_labels(f"{path}:noisy")
    if clean.keys != list(keys) or not np.array_equal(noisy.labels, labels):
        raise DataError(
            f"the clean labels '{path}' are not of the LMDB beside them: its keys or labels are others; "
            "remove the file, or make both again"
        )
    return clean.labels


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
