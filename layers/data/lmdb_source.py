"""Reading a Caffe LMDB: records in byte order of their keys.

The file is read here, without the LMDB library. The library maps the file into memory and trusts every offset
in it, so a damaged file kills the process. Here every offset is checked; the offsets of the
records are checked when the database is opened.

A database is a file of pages of one size. Pages 0 and 1 describe it; the one of the later transaction is
valid. From the root page on, branch pages point to further pages, and leaf pages hold keys and values, both
in the order of the keys. A value that is too large for a leaf has its own pages.

Caffe: db_lmdb.cpp. LMDB: mdb.c of version 0.9. Differs: no lock file is made or checked, so a database in a
read-only folder opens; in return, nobody may write to a database while it is read.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Hashable, Iterator
from typing import IO, NamedTuple, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from imae.files.errors import DataError
from imae.files.file_kinds import FileKind, mistaken_for
from imae.files.read import AnyPath, is_own_pipe, open_to_read
from imae.layers.data.datum import parse_datum
from imae.prototxt import Datum

MAGIC, VERSION = 0xBEEFC0DE, 1
BRANCH, LEAF, META_PAGE = 1, 2, 8  # flags of a page
BIG = 1  # flag of a node: its value has its own pages
NO_PAGE = 2**64 - 1
HEADER = 16  # bytes of a page before its content
# Values at most GAP bytes apart are read at once, up to SPAN bytes.
GAP, SPAN = 1 << 14, 1 << 22

TREE = np.dtype([
    ("pad", "<u4"), ("flags", "<u2"), ("depth", "<u2"), ("branches", "<u8"), ("leaves", "<u8"),
    ("overflows", "<u8"), ("entries", "<u8"), ("root", "<u8"),
])  # fmt: skip
# The pad of the tree of free pages is the page size.
META = np.dtype([
    ("number", "<u8"), ("pad", "<u2"), ("flags", "<u2"), ("pages", "<u4"),
    ("magic", "<u4"), ("version", "<u4"), ("address", "<u8"), ("map_size", "<u8"),
    ("free", TREE), ("main", TREE), ("last_page", "<u8"), ("transaction", "<u8"),
])  # fmt: skip
Places = NDArray[np.int64]


class Index(NamedTuple):
    """Where the keys and the values of the records begin in the file, and how many bytes they have."""

    keys: Places
    key_sizes: Places
    values: Places
    value_sizes: Places


def open_lmdb(path: AnyPath) -> LmdbSource:
    """Open a database: its folder, or its file if it was made without a folder.

    DataError for a path that is missing or unreadable, and for a file that is no LMDB, cut short, damaged or
    without records.
    """
    name = os.fspath(path)
    try:
        in_folder = os.path.isdir(name)
        has_file = not in_folder or "data.mdb" in os.listdir(name)
        file_name = os.path.join(name, "data.mdb") if in_folder else name
        if is_own_pipe(file_name):
            raise ValueError("it is a pipe; records are read from all over a file")
        file = cast(IO[bytes], open_to_read(file_name).detach()) if has_file else None  # LmdbSource closes it
    except FileNotFoundError:
        raise DataError(
            f"lmdb '{name}': No such file or directory; a relative path starts at the working folder"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"lmdb '{name}': cannot be read: {reason}") from None
    if file is None:
        hint = "it looks like a LevelDB" if os.path.exists(os.path.join(name, "CURRENT")) else "not an LMDB"
        raise DataError(f"lmdb '{name}': the folder has no data.mdb; {hint}")
    return LmdbSource(name, file)


class LmdbSource:
    """An open database, as it was when it was opened.

    path       as it was given
    identity   equal for all sources of the same database
    len        number of records
    """

    def __init__(self, path: str, file: IO[bytes]) -> None:
        """Use `open_lmdb`. `file` is unbuffered; this object owns it from now on."""
        self.path, self._file = path, file
        self._close = weakref.finalize(self, file.close)
        status = os.fstat(file.fileno())
        self.size = status.st_size
        self.identity: Hashable = status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
        self._lock = threading.Lock()
        self._index = self._find_records()

    def __len__(self) -> int:
        return len(self._index.keys)

    def key(self, index: int) -> bytes:
        """The key of record `index`."""
        return self._read(int(self._index.keys[index]), int(self._index.key_sizes[index]))

    def keys(self) -> list[bytes]:
        """All keys in order."""
        return [self.key(index) for index in range(len(self))]

    def record_name(self, key: bytes) -> str:
        """The name of this key's record in errors."""
        return f"lmdb '{self.path}', key '{key.decode(errors='backslashreplace')}'"

    def value(self, index: int) -> bytes:
        """The bytes of record `index`."""
        return self._read(int(self._index.values[index]), int(self._index.value_sizes[index]))

    def values(self, rows: NDArray[np.int64]) -> list[bytes]:
        """The bytes of these records, in this order; the file is read from front to back."""
        values = [b""] * len(rows)
        if not values:
            return values
        starts, sizes = self._index.values[rows], self._index.value_sizes[rows]
        order = np.argsort(starts, kind="stable")
        begins, ends = starts[order], (starts + sizes)[order]
        is_apart = begins[1:] - np.maximum.accumulate(ends)[:-1] > GAP
        firsts = np.flatnonzero(np.r_[True, is_apart | (begins[1:] // SPAN != begins[:-1] // SPAN)])
        places = begins[firsts].tolist()
        counts = (np.maximum.reduceat(ends, firsts) - begins[firsts]).tolist()
        if len(places) > 1 and hasattr(os, "posix_fadvise") and not self._file.closed:
            for begin, count in zip(places, counts, strict=True):  # request all from the disk at once
                os.posix_fadvise(self._file.fileno(), begin, count, os.POSIX_FADV_WILLNEED)
        pieces = list(zip(order.tolist(), begins.tolist(), sizes[order].tolist(), strict=True))
        stops = [*firsts[1:].tolist(), len(pieces)]
        for begin, count, first, stop in zip(places, counts, firsts.tolist(), stops, strict=True):
            data = self._read(begin, count)
            for place, start, size in pieces[first:stop]:
                values[place] = data[start - begin : start - begin + size]
        return values

    def datum(self, index: int) -> Datum:
        """Record `index`, parsed; DataError where it is no Datum."""
        return parse_datum(self.value(index), self.record_name(self.key(index)))

    def records(self, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """(key, bytes) of the records from `start` to the last, in order."""
        for index in range(start, len(self)):
            yield self.key(index), self.value(index)

    def close(self) -> None:
        """Close the database; it cannot be read after that."""
        self._close()

    def __enter__(self) -> LmdbSource:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self, start: int, count: int) -> bytes:
        if self._file.closed:
            raise DataError(f"lmdb '{self.path}': is closed")
        try:
            if hasattr(os, "pread"):
                data = os.pread(self._file.fileno(), count, start)
            else:
                with self._lock:
                    self._file.seek(start)
                    data = self._file.read(count)
        except OSError as error:
            raise DataError(f"lmdb '{self.path}': cannot be read: {error.strerror}") from None
        if len(data) != count:
            self._damaged(f"bytes {start} to {start + count} are not there any more")
        return data

    # -- where the records are -----------------------------------------------------------------------------

    def _find_records(self) -> Index:
        """Walk through the tree once."""
        meta = self._newest_meta()
        tree, page_size = meta["main"], int(meta["free"]["pad"])
        if tree["root"] == NO_PAGE or tree["entries"] == 0:
            raise DataError(f"lmdb '{self.path}': the database has no records")
        if tree["flags"] & 4:
            self._damaged("it has several values for a key, which Caffe's have not")
        self._page_size, self._last_page = page_size, int(meta["last_page"])
        pages = self._leaf_pages(int(tree["root"]), int(tree["depth"]))
        leaves = [self._leaf(number, page) for number, page in pages]
        index = Index(*(np.concatenate(parts) for parts in zip(*leaves, strict=True)))
        if len(index.keys) != tree["entries"]:
            self._damaged(f"{len(index.keys)} records are there, {tree['entries']} should be")
        return index

    def _not_an_lmdb(self) -> DataError:
        mistaken = mistaken_for(self._read(0, min(self.size, SPAN)), FileKind.LMDB)
        return DataError(f"lmdb '{self.path}': not an LMDB{mistaken or ', or its first pages are damaged'}")

    def _newest_meta(self) -> np.void:
        """The valid description; its entry for the tree of free pages holds the page size."""
        if self.size == 0:
            raise DataError(f"lmdb '{self.path}': the file is empty; make the database again")
        metas: list[np.void] = []
        for _ in range(2):
            start = int(metas[0]["free"]["pad"]) if metas else 0
            if self.size < start + META.itemsize:
                raise self._not_an_lmdb()
            (meta,) = np.frombuffer(self._read(start, META.itemsize), META)
            if meta["magic"] != MAGIC or not meta["flags"] & META_PAGE:
                raise self._not_an_lmdb()
            if meta["version"] != VERSION:
                raise DataError(
                    f"lmdb '{self.path}': its format is version {meta['version']}, only {VERSION} can be read"
                )
            metas.append(meta)
        newest = metas[0] if metas[0]["transaction"] >= metas[1]["transaction"] else metas[1]
        page_size = int(newest["free"]["pad"])
        if not 512 <= page_size <= 65536 or page_size & (page_size - 1):
            raise self._not_an_lmdb()
        return newest

    def _leaf_pages(self, root: int, depth: int) -> Iterator[tuple[int, bytes]]:
        """Numbers and contents of the leaf pages in order."""
        seen: set[int] = set()
        waiting = [(root, 1)]
        while waiting:
            number, level = waiting.pop()
            if number in seen:
                self._damaged(f"page {number} is used twice")
            seen.add(number)
            page = self._page(number)
            own_number, flags = np.frombuffer(page, "<u8", 1)[0], np.frombuffer(page, "<u2", 1, 10)[0]
            if own_number != number or flags != (LEAF if level == depth else BRANCH):
                self._damaged(f"page {number} is no {'leaf' if level == depth else 'branch'} of the tree")
            if level == depth:
                yield number, page
            else:
                _, heads = self._nodes(number, page)
                children = heads[:, 0] | heads[:, 1] << 16 | heads[:, 2] << 32
                waiting += [(child, level + 1) for child in reversed(children.tolist())]

    def _page(self, number: int) -> bytes:
        self._check_pages(number, number)
        return self._read(number * self._page_size, self._page_size)

    def _nodes(self, number: int, page: bytes) -> tuple[Places, Places]:
        """The offsets of the nodes in a page, and their headers of four 16-bit numbers."""
        content = int(np.frombuffer(page, "<u2", 1, 12)[0])  # where the list of offsets ends
        if not HEADER < content <= len(page) or content % 2:
            self._damaged(f"page {number} has no list of nodes")
        offsets = np.frombuffer(page, "<u2", (content - HEADER) // 2, HEADER).astype(np.int64)
        if offsets.min() < content or offsets.max() + 8 > len(page):
            self._damaged(f"a node of page {number} lies outside of it")
        heads = _gather(page, offsets, 8).view("<u2").astype(np.int64)
        return offsets, heads

    def _leaf(self, number: int, page: bytes) -> Index:
        """The records of a leaf page: (value's size in two halves, flags, key's size), the key, the value."""
        offsets, heads = self._nodes(number, page)
        keys, key_sizes = offsets + 8, heads[:, 3]
        values, sizes = keys + key_sizes, heads[:, 0] | heads[:, 1] << 16
        big = heads[:, 2] == BIG
        if heads[~big, 2].any():
            self._damaged(f"page {number} holds a database inside the database, which Caffe's have not")
        if (values + np.where(big, 8, sizes)).max() > len(page):
            self._damaged(f"a node of page {number} lies outside of it")
        start = number * self._page_size
        values = values + start
        if big.any():
            first = _gather(page, values[big] - start, 8).view("<u8")[:, 0]
            self._check_pages(int(first.min()), int(first.max()))
            more = (HEADER + sizes[big] - 1) // self._page_size
            self._check_pages(2, int((first.astype(np.int64) + more).max()))
            values[big] = first.astype(np.int64) * self._page_size + HEADER
        return Index(keys + start, key_sizes, values, sizes)

    def _check_pages(self, first: int, last: int) -> None:
        """Refuse pages that the file does not have."""
        needed = (self._last_page + 1) * self._page_size
        if first >= 2 and last < self.size // self._page_size:
            return
        if self.size < needed:
            raise DataError(
                f"lmdb '{self.path}': the file is cut short: {self.size} of {needed} bytes; "
                "copy or make it again"
            )
        self._damaged(f"it leads to page {last if first >= 2 else first}, which holds no records")

    def _damaged(self, fault: str) -> NoReturn:
        raise DataError(f"lmdb '{self.path}': cannot be read: {fault}; the database is damaged")


def _gather(page: bytes, starts: Places, count: int) -> NDArray[np.uint8]:
    """`count` bytes from each of these offsets on: (N, count)."""
    gathered: NDArray[np.uint8] = np.frombuffer(page, np.uint8)[starts[:, None] + np.arange(count)]
    return gathered
