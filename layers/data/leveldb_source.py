"""Reading a Caffe LevelDB: records in byte order of their keys. Needs the package plyvel (`imae[leveldb]`).

No record is ever written. But LevelDB itself, as in Caffe, writes a new log and a new list of files whenever
it opens a database: so the folder must be writable, and only one program at a time can open it. LevelDB does
not store the number of records, so all keys are read when the database is opened.

Caffe: db_leveldb.cpp. Differs: several layers of a process may read the same database.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from imae.files.errors import DataError
from imae.files.read import AnyPath
from imae.layers.data.datum import parse_datum
from imae.prototxt import Datum


def open_leveldb(path: AnyPath) -> LeveldbSource:
    """Open a database's folder; DataError if it is missing, unreadable, no LevelDB, or without records."""
    folder = Path(path)
    if (folder / "data.mdb").is_file():
        problem = "it is an LMDB: write data_param { backend: LMDB }"
    elif not folder.exists():
        problem = "No such file or directory; a relative path starts at the working folder"
    elif not (folder / "CURRENT").is_file():  # LevelDB would leave files in it
        problem = "there is no file CURRENT in it, so it is no LevelDB"
    elif strange := [path.name for path in folder.iterdir() if not path.is_file() and not path.is_dir()]:
        problem = f"{strange[0]} in it is no regular file"  # LevelDB would wait for a pipe
    else:
        source = LeveldbSource(os.fspath(path), _open(folder))
        if not len(source):
            raise DataError(f"leveldb '{source.path}': the database has no records")
        return source
    raise DataError(f"Failed to open leveldb {folder}: {problem}")


class _Database:
    """A plyvel.DB and its keys. It is closed when it is no longer referenced."""

    def __init__(self, folder: Path, plyvel: ModuleType) -> None:
        self.identity = object()
        self.error = plyvel.Error
        # LevelDB locks by the path as it is given, so make it absolute.
        self.reader = plyvel.DB(str(folder.absolute()), create_if_missing=False, paranoid_checks=True)
        try:
            self.keys: list[bytes] = list(self.reader.iterator(include_value=False, verify_checksums=True))
        except plyvel.Error:
            self.reader.close()  # otherwise it would stay locked
            raise


# By device and inode of the folder: LevelDB cannot open a database twice, but several layers may read it.
_databases: WeakValueDictionary[tuple[int, int], _Database] = WeakValueDictionary()


def _open(folder: Path) -> _Database:
    try:
        import plyvel
    except ModuleNotFoundError:
        raise DataError(
            f"Failed to open leveldb {folder}: reading a LevelDB needs the package plyvel: "
            "pip install 'imae[leveldb]'; or make an LMDB of the data and write data_param { backend: LMDB }"
        ) from None
    status = folder.stat()
    database = _databases.get((status.st_dev, status.st_ino))
    if database is None:
        try:
            database = _Database(folder, plyvel)
        except plyvel.Error as error:
            raise DataError(f"Failed to open leveldb {folder}: {_reason(error)}") from None
        _databases[status.st_dev, status.st_ino] = database
    return database


class LeveldbSource:
    """An open database, with the methods of LmdbSource.

    path       as it was given
    identity   equal for all sources of the same database
    len        number of records
    """

    def __init__(self, path: str, database: _Database) -> None:
        """Use `open_leveldb`."""
        self.path = path
        self._database: _Database | None = database
        self._keys = database.keys
        self.identity: Hashable = database.identity

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> bytes:
        """The key of record `index`."""
        return self._keys[index]

    def keys(self) -> list[bytes]:
        """All keys in order."""
        return self._keys

    def record_name(self, key: bytes) -> str:
        """The name of this key's record in errors."""
        return f"leveldb '{self.path}', key '{key.decode(errors='backslashreplace')}'"

    def value(self, index: int) -> bytes:
        """The bytes of record `index`."""
        return next(self.records(index))[1]

    def values(self, rows: NDArray[np.int64]) -> list[bytes]:
        """The bytes of these records, in this order; consecutive records need one search."""
        values: list[bytes] = []
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else ():
            values += [value for _, value in islice(self.records(int(run[0])), len(run))]
        return values

    def datum(self, index: int) -> Datum:
        """Record `index`, parsed; DataError where it is no Datum."""
        return parse_datum(self.value(index), self.record_name(self._keys[index]))

    def records(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """(key, bytes) of the records from `start` to the last, in order."""
        database = self._database
        if database is None:
            raise DataError(f"leveldb '{self.path}': cannot be read: it is closed")
        try:
            yield from database.reader.iterator(start=self._keys[start], verify_checksums=True)
        except database.error as error:
            raise DataError(
                f"leveldb '{self.path}': cannot be read: {_reason(error)}; the database is damaged"
            ) from None

    def close(self) -> None:
        """Close the database; it cannot be read after that."""
        self._database = None

    def __enter__(self) -> LeveldbSource:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _reason(error: Any) -> str:
    """LevelDB's message in one line; plyvel gives it as bytes."""
    (message,) = error.args or ("",)
    text = message.decode(errors="replace") if isinstance(message, bytes) else str(message)
    return " ".join(text.split())
