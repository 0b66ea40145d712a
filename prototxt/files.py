"""Reading files that have an end, and writing files so that nobody ever sees half of one.

A file or folder is written beside its target under a name of its own (`.NAME.XXXXXXXX.tmp`), synced to the
disk, then renamed into place. Whatever goes wrong, the old one is untouched and the new one is removed; only
a process that is killed leaves one behind.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from imae.prototxt.errors import FileError, ImaeError

AnyPath = str | os.PathLike[str]


def write_atomically(path: AnyPath, data: bytes) -> None:
    """Write a file; FileError says why that is not possible."""
    with atomic_file(path) as file:
        file.write(data)


def read_bytes(path: AnyPath) -> bytes:
    """A file's content; OSError, also for a device: a prototxt may name one that has no end."""
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise OSError(errno.EINVAL, "it is a device, not a file", os.fspath(path))
        return file.read()


@contextmanager
def atomic_file(path: AnyPath) -> Iterator[BinaryIO]:
    """A new binary file that takes the place of `path` when the block ends well.

    `file.name` is the path of the temporary file, for libraries that open files themselves. An OSError of the
    block is raised as a FileError unless it is about another file.
    """
    target = Path(os.path.realpath(path))  # the file that a link points to
    temporary = _beside(target)
    with _file_errors(path, target, temporary):
        if target.exists() and not target.is_file():  # a folder, /dev/null
            raise FileError(f"cannot write '{path}': it exists and is not a regular file")
        file = open(temporary, "x+b")  # noqa: SIM115  # outside the try: what lay there already is not ours
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(target.parent)


@contextmanager
def atomic_folder(path: AnyPath) -> Iterator[Path]:
    """A new folder that becomes `path` when the block ends well; FileError if `path` exists already."""
    target = Path(os.path.abspath(path))
    temporary = _beside(target)
    with _file_errors(path, target, temporary):
        _refuse_existing(path)
        temporary.mkdir()
        try:
            yield temporary
            for inside in [*temporary.rglob("*"), temporary]:
                _sync(inside)
            _refuse_existing(path)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync(target.parent)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name[:64]}.{secrets.token_hex(4)}.tmp")


def _refuse_existing(path: AnyPath) -> None:
    if os.path.lexists(path):
        raise FileError(f"cannot write '{path}': it exists already; remove it or choose another name")


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if os.name != "posix":  # elsewhere folders cannot be opened, nor files be synced without writing
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
