"""Writing files and folders so that nobody ever sees half of one.

A file or folder is written beside its target under a temporary name (`.NAME.XXXXXXXX.tmp`), synced to the
disk, then renamed into place. After any failure the old file is untouched and the new one is removed; only a
killed process leaves a temporary file.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from imae.files.errors import FileError, ImaeError
from imae.files.read import AnyPath


def write_atomically(path: AnyPath, data: bytes) -> None:
    """Write a file; FileError where that is not possible."""
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: AnyPath) -> Iterator[BinaryIO]:
    """A new binary file that replaces `path` if the block raises no exception.

    `file.name` is the path of the temporary file, for libraries that open files themselves. An OSError of the
    block is raised as a FileError unless it is about another file.
    """
    _check_name(path)
    target = Path(os.path.realpath(path))  # the file that a link points to
    temporary = _temporary_path(target)
    with _file_errors(path, target, temporary):
        if target.exists() and not target.is_file():  # a folder, /dev/null
            raise FileError(f"cannot write '{path}': it exists and is not a regular file")
        file = open(temporary, "x+b")  # noqa: SIM115  # outside the try: an existing file stays
        try:
            with file:
                _copy_mode(target, file)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_entries(target.parent)


@contextmanager
def atomic_folder(path: AnyPath) -> Iterator[Path]:
    """A new folder, renamed to `path` if the block raises no exception; FileError if `path` exists."""
    _check_name(path)
    target = Path(os.path.abspath(path))
    temporary = _temporary_path(target)
    with _file_errors(path, target, temporary):
        _refuse_existing(path)
        temporary.mkdir()
        try:
            yield temporary
            for inside in [*temporary.rglob("*"), temporary]:
                _sync_entries(inside) if inside.is_dir() else _sync(inside)
            _refuse_existing(path)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_entries(target.parent)


def _check_name(path: AnyPath) -> None:
    if "\0" in os.fsdecode(path):
        raise FileError(f"cannot write '{path}': there is a zero byte in the name")


def _temporary_path(target: Path) -> Path:
    return target.with_name(f".{target.name[:64]}.{secrets.token_hex(4)}.tmp")


def _refuse_existing(path: AnyPath) -> None:
    if os.path.lexists(path):
        raise FileError(f"cannot write '{path}': it exists already; remove it or choose another name")


def _copy_mode(target: Path, file: BinaryIO) -> None:
    """Copy the permissions of the file that is replaced to the new one: it may hold a secret."""
    if hasattr(os, "fchmod"):
        with suppress(OSError):  # no file is replaced, or the file system has no permissions
            os.fchmod(file.fileno(), stat.S_IMODE(os.stat(target).st_mode) & 0o777)


# Errors where a folder cannot be synced: by some file systems (networks, FUSE), or without read access.
NO_SYNC = {getattr(errno, name, errno.EINVAL) for name in ("EINVAL", "EBADF", "ENOTSUP", "EACCES", "EPERM")}


def _sync_entries(folder: Path) -> None:
    """Wait until a folder's entries are on the disk, where the file system can sync them.

    Where it cannot, the files themselves are on the disk, and the file system writes the entries later.
    """
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    if os.name != "posix":  # others cannot open a folder, nor sync a file opened for reading
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _file_errors(path: AnyPath, target: Path, temporary: Path) -> Iterator[None]:
    """Turn an OSError about `target` or `temporary` into a FileError."""
    try:
        yield
    except OSError as error:
        names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        paths = [Path(os.fsdecode(name)) for name in names]
        ours = all(path in (target, temporary) or temporary in path.parents for path in paths)
        if isinstance(error, ImaeError) or not ours:
            raise
        reason = error.strerror or str(error)
        if not target.parent.is_dir():
            reason = f"there is no folder '{target.parent}'"
        untouched = "; the old file is untouched" if os.path.exists(target) else ""
        raise FileError(f"cannot write '{path}': {reason}{untouched}") from error
