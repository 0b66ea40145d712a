"""The files below a folder, or in a .tar archive, which is read where it lies: nothing of it is extracted."""

import bz2
import gzip
import io
import lzma
import os
import posixpath
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from imae.prototxt.errors import DataError
from imae.prototxt.files import AnyPath

DECOMPRESSORS: dict[bytes, Callable[[IO[bytes]], io.BufferedIOBase]] = {  # by the archive's first bytes
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
BROKEN = (OSError, EOFError, lzma.LZMAError, zlib.error, tarfile.TarError)


class FileTree(NamedTuple):
    """`names` are relative to the folder or archive, with "/" between folders, in no order.

    `read(name, limit)` returns a file's bytes; DataError if it is longer than `limit` or cannot be read.
    """

    names: Iterator[str]
    read: Callable[[str, int], bytes]


@contextmanager
def open_tree(path: AnyPath, subfolder: str = "", depth: int | None = None) -> Iterator[FileTree]:
    """The files below `subfolder` of a folder or a .tar, .tar.gz, .tar.bz2 or .tar.xz archive.

    In a folder, `depth` limits the search: 1 for the files right in it, 2 for those in its folders as well.
    """
    if not os.path.exists(path):
        raise DataError(f"no such file or folder: '{path}'")
    if os.path.isdir(path):
        yield _folder(Path(path, subfolder), depth)
        return
    with ExitStack() as stack:
        try:
            file: IO[bytes] = stack.enter_context(open(path, "rb"))
            start = file.read(8)
            file.seek(0)
            for magic, decompress in DECOMPRESSORS.items():
                if start.startswith(magic):  # unpacked into a nameless file, so that jumping in it is quick
                    packed, file = file, stack.enter_context(tempfile.TemporaryFile())
                    shutil.copyfileobj(decompress(packed), file, 1 << 20)
                    file.seek(0)
            tar = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))
            members = {posixpath.normpath(member.name): member for member in tar if not member.isdir()}
            file.seek(tar.offset)
            if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a broken header for the end
                raise tarfile.ReadError(f"the header at byte {tar.offset} is broken")
        except BROKEN as error:
            raise DataError(f"cannot read '{path}' as a .tar archive (.gz, .bz2, .xz): {error}") from error
        yield _archive(path, tar, members, subfolder)


def _folder(root: Path, depth: int | None) -> FileTree:
    if not root.is_dir():
        raise DataError(f"no such folder: '{root}'")

    def names() -> Iterator[str]:
        for folder, subfolders, files in os.walk(root, onerror=_refuse, followlinks=True):
            relative = Path(folder).relative_to(root)
            if len(relative.parts) + 1 == depth:
                subfolders.clear()
            yield from ((relative / file).as_posix() for file in files)

    def read(name: str, limit: int) -> bytes:
        try:
            with open(root / name, "rb") as file:
                _check_size(root / name, os.fstat(file.fileno()).st_size, limit)
                return file.read()
        except OSError as error:
            raise DataError(f"cannot read '{root / name}': {error.strerror}") from error

    return FileTree(names(), read)


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot read '{error.filename}': {error.strerror}") from error


def _archive(
    path: AnyPath, tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], subfolder: str
) -> FileTree:
    prefix = posixpath.normpath(subfolder) + "/" if subfolder else ""
    members = {name.removeprefix(prefix): m for name, m in members.items() if name.startswith(prefix)}
    if not members:
        raise DataError(f"'{path}' has no files in '{subfolder}'" if subfolder else f"'{path}' has no files")

    def read(name: str, limit: int) -> bytes:
        member = members[name]
        if not member.isreg():
            raise DataError(
                f"'{name}' of '{path}' is a link or a device; archives must hold the files themselves"
            )
        _check_size(f"{path}: {name}", member.size, limit)
        file = tar.extractfile(member)
        try:
            data = file.read() if file else b""
        except BROKEN as error:
            raise DataError(f"cannot read '{name}' of '{path}': {error}") from error
        if len(data) != member.size:
            raise DataError(f"'{name}' of '{path}' is cut off: {len(data)} bytes of {member.size}")
        return data

    return FileTree(iter(members), read)


def _check_size(name: object, size: int, limit: int) -> None:
    if size > limit:
        raise DataError(f"'{name}' has {size} bytes; at most {limit} are read")
