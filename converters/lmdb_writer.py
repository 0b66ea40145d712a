"""Datums, and SSD's AnnotatedDatums, into an LMDB that Caffe reads.

An unfinished one is never visible: see imae.files.atomic.
"""

import errno
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import lmdb
from tqdm import tqdm

from imae.files.atomic import atomic_folder
from imae.files.errors import DataError, FileError
from imae.files.read import AnyPath
from imae.prototxt import Datum
from imae.prototxt.caffe_pb2 import AnnotatedDatum

logger = logging.getLogger(__name__)

Record = tuple[bytes, Datum | AnnotatedDatum]

BATCH = 1000  # records per transaction, as in Caffe's tools
MAP_SIZE = 16 << 20  # bytes at the start; doubled whenever it is full
LONGEST_KEY = 511  # bytes; compiled into LMDB


def write_lmdb(path: AnyPath, records: Iterable[Record], total: int | None = None) -> int:
    """Write a new LMDB and return the number of its records; `total` is for the progress bar.

    FileError if it cannot be written or `path` exists already, DataError if there are no records or a key
    comes twice; then no LMDB is written.
    """
    with atomic_folder(path) as folder:
        return fill_lmdb(folder, path, records, total)


def fill_lmdb(folder: Path, path: AnyPath, records: Iterable[Record], total: int | None = None) -> int:
    """`write_lmdb` into an empty folder that will be renamed to `path`."""
    count, remaining = 0, iter(records)
    environment = open_new_lmdb(folder, path)
    with environment, tqdm(desc=str(path), total=total, unit=" records", disable=None) as bar:
        while batch := list(islice(remaining, BATCH)):
            put_records(environment, batch, path)
            count += len(batch)
            bar.update(len(batch))
    if not count:
        raise DataError(f"nothing to write into '{path}': there are no records")
    logger.info("Processed %d files.", count)
    return count


def open_new_lmdb(folder: Path, path: AnyPath) -> lmdb.Environment:
    """A new LMDB in an empty folder that will be renamed to `path`; FileError where that fails."""
    # The whole folder is synced at the end, so transactions need not be. No other process opens it before, so
    # no lock is needed: LMDB maps the lock file into memory, where a full disk would end the process.
    with _lmdb_errors(path):
        environment = lmdb.open(os.fsencode(folder), map_size=MAP_SIZE, mode=0o664, sync=False, lock=False)
    (folder / "lock.mdb").touch(0o664)  # for readers that may not create it; the first one fills it
    logger.info("Opened lmdb %s", path)
    return environment


def put_records(environment: lmdb.Environment, batch: Sequence[Record], path: AnyPath) -> None:
    """Add records in one transaction; DataError for a key that comes twice, FileError for a full disk."""
    with _lmdb_errors(path):
        while True:
            try:
                with environment.begin(write=True) as transaction:
                    for key, datum in batch:
                        _check_key(key, path)
                        if not transaction.put(key, datum.SerializeToString(), overwrite=False):
                            raise DataError(f"cannot write '{path}': the key {key!r} comes twice")
                return
            except lmdb.MapFullError:
                environment.set_mapsize(2 * environment.info()["map_size"])


def _check_key(key: bytes, path: AnyPath) -> None:
    if not 0 < len(key) <= LONGEST_KEY:
        raise DataError(
            f"cannot write '{path}': the key {key[:40]!r}... has {len(key)} bytes; "
            f"LMDB takes 1 to {LONGEST_KEY}"
        )


@contextmanager
def _lmdb_errors(path: AnyPath) -> Iterator[None]:
    """Turn LMDB's errors, e.g. a full disk, into a FileError."""
    try:
        yield
    except lmdb.Error as error:
        reason = str(error).rpartition(": ")[2]
        if reason == os.strerror(errno.EIO):  # LMDB's error for a page that was written in part
            reason += "; is the disk full?"
        raise FileError(f"cannot write '{path}': {reason}") from error
