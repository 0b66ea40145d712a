"""Reading a Caffe LMDB: records in byte order of their keys.

Caffe: db_lmdb.cpp. Differs: no lock file is made or asked for, so that a database in a read-only folder
opens; hence nobody may write to a database while it is read. A database that was cut short is refused at
once: LMDB maps the file into memory, and touching a missing page would kill the process.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any
from weakref import WeakValueDictionary

import lmdb

from imae.layers.data.datum import parse_datum
from imae.prototxt import Datum
from imae.prototxt.errors import DataError
from imae.prototxt.files import AnyPath

# By device and inode. LMDB cannot open a file twice in a process, yet several layers may read the same one.
_environments: WeakValueDictionary[tuple[int, int], Any] = WeakValueDictionary()


def open_lmdb(path: AnyPath) -> LmdbSource:
    """Open a database: its folder, or its file where it was made without one.

    DataError for a path that is missing or unreadable, and for what is no LMDB, cut short or without records.
    """
    name = os.fspath(path)
    try:
        in_folder = os.path.isdir(name)
        if in_folder and "data.mdb" not in os.listdir(name):
            hint = (
                "it looks like a LevelDB" if os.path.exists(os.path.join(name, "CURRENT")) else "not an LMDB"
            )
            raise DataError(f"lmdb '{name}': the folder has no data.mdb; {hint}")
        with open(os.path.join(name, "data.mdb") if in_folder else name, "rb") as file:
            status = os.fstat(file.fileno())
    except FileNotFoundError:
        raise DataError(
            f"lmdb '{name}': No such file or directory; a relative path starts at the working folder"
        ) from None
    except OSError as error:
        raise DataError(f"lmdb '{name}': cannot be read: {error.strerror}") from None
    if status.st_size == 0:
        raise DataError(f"lmdb '{name}': the file is empty; make the database again")
    environment = _environments.get((status.st_dev, status.st_ino))
    try:
        if environment is None:
            environment = lmdb.open(name, subdir=in_folder, readonly=True, lock=False, create=False)
            _environments[status.st_dev, status.st_ino] = environment
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        records = environment.stat()["entries"]
    except lmdb.InvalidError:
        raise DataError(f"lmdb '{name}': not an LMDB, or its first pages are damaged") from None
    except lmdb.Error as error:
        raise DataError(f"lmdb '{name}': cannot be opened: {error}") from None
    if status.st_size < needed:
        raise DataError(
            f"lmdb '{name}': the file is cut short: {status.st_size} of {needed} bytes; copy or make it again"
        )
    if records == 0:
        raise DataError(f"lmdb '{name}': the database has no records")
    return LmdbSource(name, environment)


class LmdbSource:
    """An open database, as it was when it was opened.

    path   as it was given
    len    number of records
    """

    def __init__(self, path: str, environment: Any) -> None:
        """`environment` is an lmdb.Environment; use `open_lmdb`."""
        self.path = path
        self._length: int = environment.stat()["entries"]
        self._transaction = environment.begin()
        self._keys: list[bytes] | None = None

    def __len__(self) -> int:
        return self._length

    def keys(self) -> list[bytes]:
        """All keys in order; read once and kept."""
        if self._keys is None:
            try:
                self._keys = list(self._transaction.cursor().iternext(values=False))
            except lmdb.Error as error:
                raise self._damaged(error) from None
        return self._keys

    def record_name(self, key: bytes) -> str:
        """What errors call the record of this key."""
        return f"lmdb '{self.path}', key '{key.decode(errors='backslashreplace')}'"

    def value(self, index: int) -> bytes:
        """The bytes of record `index`."""
        try:
            value: bytes = self._transaction.get(self.keys()[index])
        except lmdb.Error as error:
            raise self._damaged(error) from None
        return value

    def datum(self, index: int) -> Datum:
        """Record `index`, parsed; DataError where it is no Datum."""
        return parse_datum(self.value(index), self.record_name(self.keys()[index]))

    def records(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """(key, bytes) of the records from `start` to the last, one after the other."""
        cursor = self._transaction.cursor()
        try:
            deque(islice(cursor.iternext(values=False), start + 1), maxlen=0)  # the cursor is at `start` then
            yield from cursor.iternext()
        except lmdb.Error as error:
            raise self._damaged(error) from None

    def close(self) -> None:
        """Let go of the database; nothing can be read after that."""
        self._transaction.abort()

    def __enter__(self) -> LmdbSource:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _damaged(self, error: lmdb.Error) -> DataError:
        return DataError(f"lmdb '{self.path}': cannot be read: {error}; the database is damaged, or closed")
