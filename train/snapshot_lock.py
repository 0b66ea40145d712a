"""A lock on a snapshot_prefix: two trainings never write under the same prefix at the same time."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from imae.files.errors import FileError


@contextmanager
def writing_alone(prefix: str, refusal: str = "") -> Iterator[None]:
    """Keep other trainings from writing snapshots under a prefix while the block runs.

    FileError if another training holds the prefix: each would overwrite the other's snapshots, and `keep`
    would remove them. The block holds a lock on the file `.PREFIX.lock`. The system releases it however the
    process ends. Where files cannot be locked, the block runs without a lock.

    refusal   the error's text, instead of the usual one
    """
    handle = _lock(prefix, refusal)
    try:
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                os.unlink(_lock_path(prefix))  # while locked: the next holder checks that the file exists
            os.close(handle)


def _lock(prefix: str, refusal: str) -> int | None:
    """The locked file, open; None where files cannot be locked."""
    try:
        import fcntl  # not on all systems
    except ModuleNotFoundError:
        return None
    path = _lock_path(prefix)
    while True:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            handle = os.open(path, flags, 0o666)
        except (OSError, ValueError):  # no such folder, not writable, a zero byte: the solver reports it
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                return handle
            os.close(handle)  # another training has just removed this file at its end
        except FileNotFoundError:
            os.close(handle)
        except BlockingIOError:
            os.close(handle)
            raise FileError(
                refusal
                or f"another training writes its snapshots under snapshot_prefix '{prefix}' now; wait for "
                "its end, or choose another snapshot_prefix"
            ) from None
        except OSError:
            os.close(handle)
            return None


def _lock_path(prefix: str) -> str:
    folder, base = os.path.split(prefix)
    name = base if len(base.encode()) <= 200 else f"{base[:50]}.{zlib.crc32(base.encode()):08x}"
    return os.path.join(folder, f".{name}.lock")
