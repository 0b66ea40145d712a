"""Reading files that have an end, and writing files so that nobody ever sees half of one.

A file or folder is written beside its target under a name of its own (`.NAME.XXXXXXXX.tmp`), synced to the
disk, then renamed into place. Whatever goes wrong, the old one is untouched and the new one is removed; only
a process that is killed leaves one behind.
"""

import errno
import io
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from imae.prototxt.errors import FileError, ImaeError

AnyPath = str | os.PathLike[str]


def write_atomically(path: AnyPath, data: bytes) -> None:
    """Write a file; FileError says why that is not possible."""
    with atomic_file(path) as file:
        file.write(data)


# Pipes that this process was started with: `imae train <(sed ...)`, `sed ... | imae train /dev/stdin`.
OWN_PIPE = re.compile(r"/dev/stdin|/(?:dev|proc/self)/fd/\d{1,9}", re.ASCII)
KINDS = {
    stat.S_IFCHR: "it is a device, not a file",
    stat.S_IFBLK: "it is a device, not a file",
    stat.S_IFIFO: "it is a pipe, not a file",
    stat.S_IFSOCK: "it is a socket, not a file",
}


# What came out of them, by device and inode. A pipe can be read once, but a file is opened as often as it is
# needed: NVIDIA's weights also for the net's text, a net by the solver's train and test nets.
_CONTENTS: dict[tuple[int, int], bytes] = {}


def read_bytes(path: AnyPath) -> bytes:
    """A file's content; OSError where it cannot be read or has no end: see `open_to_read`."""
    with open_to_read(path) as file:
        # What grows while it is read, or is made up by the system (/proc/self/pagemap), has no end, either.
        return file.read(file_size(file))


def open_to_read(path: AnyPath) -> io.BufferedReader:
    """Open a regular file, or a pipe that this process was started with; OSError for all else.

    A file from a stranger may name a device, which may never end, or a pipe, for which one waits for ever.
    What comes out of one's own pipe is kept in memory, so that it can be opened again; it has no `fileno`.
    """
    if "\0" in os.fsdecode(path):  # a string of a message can have one
        raise OSError(errno.EINVAL, "there is a zero byte in the name", os.fspath(path))
    status = os.stat(path)  # first: to open a device can do something
    _check_kind(path, status.st_mode)
    # Without waiting: between the two, somebody may put a pipe there.
    more = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | more))  # noqa: SIM115
    try:
        status = os.fstat(file.fileno())
        _check_kind(path, status.st_mode)
        if hasattr(os, "set_blocking"):
            os.set_blocking(file.fileno(), True)
        if stat.S_ISREG(status.st_mode):
            return file
        pipe = status.st_dev, status.st_ino
        if pipe not in _CONTENTS:
            _CONTENTS[pipe] = file.read()
    except BaseException:
        file.close()
        raise
    file.close()
    return io.BufferedReader(cast(io.RawIOBase, io.BytesIO(_CONTENTS[pipe])))


def file_size(file: io.BufferedReader) -> int:
    """The size in bytes of what `open_to_read` has just opened."""
    if is_on_disk(file):
        return os.fstat(file.fileno()).st_size
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def is_on_disk(file: io.BufferedReader) -> bool:
    """Whether `open_to_read` has opened a regular file, not a pipe."""
    return isinstance(file.raw, io.FileIO)


def is_own_pipe(path: AnyPath) -> bool:
    """Whether a path is that of a pipe that this process was started with."""
    try:
        return OWN_PIPE.fullmatch(os.fsdecode(path)) is not None and stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _check_kind(path: AnyPath, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    given = stat.S_ISFIFO(mode) and OWN_PIPE.fullmatch(os.fsdecode(path))
    if not stat.S_ISREG(mode) and not given:
        reason = KINDS.get(stat.S_IFMT(mode), "it is not a regular file")
        raise OSError(errno.EINVAL, reason, os.fspath(path))


@contextmanager
def atomic_file(path: AnyPath) -> Iterator[BinaryIO]:
    """A new binary file that takes the place of `path` when the block ends well.

    `file.name` is the path of the temporary file, for libraries that open files themselves. An OSError of the
    block is raised as a FileError unless it is about another file.
    """
    _check_name(path)
    target = Path(os.path.realpath(path))  # the file that a link points to
    temporary = _beside(target)
    with _file_errors(path, target, temporary):
        if target.exists() and not target.is_file():  # a folder, /dev/null
            raise FileError(f"cannot write '{path}': it exists and is not a regular file")
        file = open(temporary, "x+b")  # noqa: SIM115  # outside the try: what lay there already is not ours
        try:
            with file:
                _take_mode(target, file)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_names(target.parent)


@contextmanager
def atomic_folder(path: AnyPath) -> Iterator[Path]:
    """A new folder that becomes `path` when the block ends well; FileError if `path` exists already."""
    _check_name(path)
    target = Path(os.path.abspath(path))
    temporary = _beside(target)
    with _file_errors(path, target, temporary):
        _refuse_existing(path)
        temporary.mkdir()
        try:
            yield temporary
            for inside in [*temporary.rglob("*"), temporary]:
                _sync_names(inside) if inside.is_dir() else _sync(inside)
            _refuse_existing(path)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_names(target.parent)


def _check_name(path: AnyPath) -> None:
    if "\0" in os.fsdecode(path):
        raise FileError(f"cannot write '{path}': there is a zero byte in the name")


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name[:64]}.{secrets.token_hex(4)}.tmp")


def _refuse_existing(path: AnyPath) -> None:
    if os.path.lexists(path):
        raise FileError(f"cannot write '{path}': it exists already; remove it or choose another name")


def _take_mode(target: Path, file: BinaryIO) -> None:
    """Give a file that takes the place of another one its permissions; it may hold a secret."""
    if hasattr(os, "fchmod"):
        with suppress(OSError):  # there is no other one; or a file system without permissions
            os.fchmod(file.fileno(), stat.S_IMODE(os.stat(target).st_mode) & 0o777)


# What file systems say that cannot sync folders (some of networks, FUSE); and a folder that may not be read.
NO_SYNC = {getattr(errno, name, errno.EINVAL) for name in ("EINVAL", "EBADF", "ENOTSUP", "EACCES", "EPERM")}


def _sync_names(folder: Path) -> None:
    """Wait until a folder's list of names is on the disk, where that can be done.

    Where it cannot, the files themselves are on the disk, and the file system brings their names there.
    """
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


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
