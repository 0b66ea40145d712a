"""Reading files that have an end: regular files, and the pipes that this process was started with."""

import errno
import io
import os
import re
import stat

AnyPath = str | os.PathLike[str]

# Pipes that this process was started with: `imae train <(sed ...)`, `sed ... | imae train /dev/stdin`.
OWN_PIPE = re.compile(r"/dev/stdin|/(?:dev|proc/self)/fd/\d{1,9}", re.ASCII)
KINDS = {
    stat.S_IFCHR: "it is a device, not a file",
    stat.S_IFBLK: "it is a device, not a file",
    stat.S_IFIFO: "it is a pipe, not a file",
    stat.S_IFSOCK: "it is a socket, not a file",
}


def read_bytes(path: AnyPath) -> bytes:
    """A file's content; OSError where it cannot be read or has no end: see `open_to_read`."""
    with open_to_read(path) as file:
        status = os.fstat(file.fileno())
        # What grows while it is read, or is made up by the system (/proc/self/pagemap), has no end, either.
        return file.read(status.st_size) if stat.S_ISREG(status.st_mode) else file.read()


def open_to_read(path: AnyPath) -> io.BufferedReader:
    """Open a regular file, or a pipe that this process was started with; OSError for all else.

    A file from a stranger may name a device, which may never end, or a pipe, for which one waits for ever.
    """
    if "\0" in os.fsdecode(path):  # a string of a message can have one
        raise OSError(errno.EINVAL, "there is a zero byte in the name", os.fspath(path))
    status = os.stat(path)  # first: to open a device can do something
    _check_kind(path, status.st_mode)
    # Without waiting: between the two, somebody may put a pipe there.
    more = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | more))  # noqa: SIM115
    try:
        _check_kind(path, os.fstat(file.fileno()).st_mode)
        if hasattr(os, "set_blocking"):
            os.set_blocking(file.fileno(), True)
    except BaseException:
        file.close()
        raise
    return file


def _check_kind(path: AnyPath, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    given = stat.S_ISFIFO(mode) and OWN_PIPE.fullmatch(os.fsdecode(path))
    if not stat.S_ISREG(mode) and not given:
        reason = KINDS.get(stat.S_IFMT(mode), "it is not a regular file")
        raise OSError(errno.EINVAL, reason, os.fspath(path))
