"""Reading files that have an end: regular files, and the pipes that this process was started with."""

import errno
import io
import os
import re
import stat
from typing import cast

AnyPath = str | os.PathLike[str]

# Pipes that this process was started with: `imae train <(sed ...)`, `sed ... | imae train /dev/stdin`.
OWN_PIPE = re.compile(r"/dev/stdin|/(?:dev|proc/self)/fd/\d{1,9}", re.ASCII)
KINDS = {
    stat.S_IFCHR: "it is a device, not a file",
    stat.S_IFBLK: "it is a device, not a file",
    stat.S_IFIFO: "it is a pipe, not a file",
    stat.S_IFSOCK: "it is a socket, not a file",
}


# The contents of these pipes, by device and inode. A pipe can be read once, but a file may be opened several
# times: NVIDIA's weights also for the net's text, a net for the solver's train net and its test nets.
_CONTENTS: dict[tuple[int, int], bytes] = {}


def read_bytes(path: AnyPath) -> bytes:
    """A file's content; OSError where it cannot be read or has no end: see `open_to_read`."""
    with open_to_read(path) as file:
        # A file that grows meanwhile, or that the system generates (/proc/self/pagemap), has no end either.
        return file.read(file_size(file))


def open_to_read(path: AnyPath) -> io.BufferedReader:
    """Open a regular file, or a pipe that this process was started with; OSError for all else.

    An untrusted file may name a device, which may never end, or a pipe, which may block for ever. The content
    of an own pipe is kept in memory, so that it can be opened again; such a file has no `fileno`.
    """
    if "\0" in os.fsdecode(path):  # a string of a message can have one
        raise OSError(errno.EINVAL, "there is a zero byte in the name", os.fspath(path))
    status = os.stat(path)  # before opening: to open a device can have effects
    _check_kind(path, status.st_mode)
    # Non-blocking: since os.stat the file may have been replaced by a pipe.
    nonblock = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | nonblock))  # noqa: SIM115
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
    """The size in bytes of a file that `open_to_read` has just opened."""
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
    own_pipe = stat.S_ISFIFO(mode) and OWN_PIPE.fullmatch(os.fsdecode(path))
    if not stat.S_ISREG(mode) and not own_pipe:
        reason = KINDS.get(stat.S_IFMT(mode), "it is not a regular file")
        raise OSError(errno.EINVAL, reason, os.fspath(path))
