"""The files below a folder, or in a .tar archive, which is read in place: nothing of it is extracted.

An archive's names are only labels: no path that they name is opened, written or followed. As in tar, a
leading "/" is dropped, and the last of several members with one name counts. A name that leads out of the
archive by ".." is refused, and so is reading a link or a device in it.

A compressed archive is unpacked in chunks into an unnamed temporary file, to at most UNPACKED_PER_BYTE bytes
for each of its own. Images hardly compress, so only an archive made to fill the disk holds more.
"""

import bz2
import gzip
import io
import lzma
import os
import posixpath
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from imae.files.errors import DataError
from imae.files.file_kinds import ARCHIVES, mistaken_file
from imae.files.limits import SMALL_FILE, most_unpacked
from imae.files.read import AnyPath, file_size, open_to_read

DECOMPRESSORS: dict[bytes, Callable[[IO[bytes]], io.BufferedIOBase]] = {  # by the archive's first bytes
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
BROKEN = (
    *(OSError, EOFError, ValueError, MemoryError, RecursionError),  # ValueError: malformed numbers
    *(lzma.LZMAError, zlib.error, tarfile.TarError),
)
UNPACKED_PER_BYTE = 100
CHUNK = 1 << 20
MOST_GLOBAL_HEADERS = 100  # tarfile copies them for each member; real archives have one or two


class FileTree(NamedTuple):
    """`names` are relative to the folder or archive, with "/" between folders, in no order.

    `read(name, limit)` returns a file's bytes; DataError if it is longer than `limit` or cannot be read.
    """

    names: Iterator[str]
    read: Callable[[str, int], bytes]


@contextmanager
def open_tree(path: AnyPath, subfolder: str = "", depth: int | None = None) -> Iterator[FileTree]:
    """The files below `subfolder` of a folder or a .tar, .tar.gz, .tar.bz2 or .tar.xz archive.

    In a folder, `depth` limits the search: 1 for the files directly in it, 2 for those in its folders, too.
    """
    if not os.path.exists(path):
        raise DataError(f"no such file or folder: '{path}'")
    if os.path.isdir(path):
        yield _folder(Path(path, subfolder), depth)
        return
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(open_to_read(path))
            size, start = file_size(opened), opened.read(8)
            opened.seek(0)
            file: IO[bytes] = opened
            for magic, decompress in DECOMPRESSORS.items():
                if start.startswith(magic):
                    packed, file = file, stack.enter_context(tempfile.TemporaryFile())
                    most = most_unpacked(size, UNPACKED_PER_BYTE)
                    _unpack(path, decompress(packed), file, most)
            tar = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))
            members = _members(path, tar)
            file.seek(tar.offset)
            if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a broken header for the end
                raise tarfile.ReadError(f"the header at byte {tar.offset} is broken")
        except DataError:
            raise
        except BROKEN as error:
            reason = f": {error if str(error) else 'there is not enough memory'}"
            raise DataError(
                f"cannot read '{path}' as a .tar archive (.gz, .bz2, .xz)"
                f"{mistaken_file(path, *ARCHIVES) or reason}"
            ) from error
        yield _archive(path, tar, members, subfolder)


def _unpack(path: AnyPath, content: io.BufferedIOBase, file: IO[bytes], most: int) -> None:
    """Write the unpacked content of an archive, at most `most` bytes, into a file."""
    while chunk := content.read(CHUNK):
        if file.tell() + len(chunk) > most:
            raise DataError(
                f"'{path}' unpacks to more than {most} bytes, {UNPACKED_PER_BYTE} for each of its own, of at "
                f"least {SMALL_FILE}; if that is not to fill the disk, unpack it and give the .tar or folder"
            )
        file.write(chunk)
    file.seek(0)


def _members(path: AnyPath, tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """The members of an archive except folders, by name."""
    members = {}
    while member := tar.next():
        if len(tar.pax_headers) > MOST_GLOBAL_HEADERS:
            raise tarfile.ReadError(f"it has {len(tar.pax_headers)} global headers")
        member.pax_headers = {}  # they are applied already, and copied for each member
        if not member.isdir():
            members[_inner_name(path, member.name)] = member
    return members


def _inner_name(path: AnyPath, name: str) -> str:
    inner = posixpath.normpath(name.lstrip("/"))
    if inner.split("/")[0] == "..":
        raise DataError(f"the name '{name}' leads out of the archive '{path}'; it is not to be trusted")
    return inner


def _folder(root: Path, depth: int | None) -> FileTree:
    if not root.is_dir():
        raise DataError(f"no such folder: '{root}'")

    def names() -> Iterator[str]:
        seen: dict[tuple[int, int], str] = {}
        for folder, subfolders, files in os.walk(root, onerror=_refuse, followlinks=True):
            status = os.stat(folder)
            other = seen.setdefault((status.st_dev, status.st_ino), folder)
            if other != folder:  # links can lead in circles
                raise DataError(f"'{folder}' and '{other}' are one folder; remove the link to it")
            relative = Path(folder).relative_to(root)
            if len(relative.parts) + 1 == depth:
                subfolders.clear()
            yield from ((relative / file).as_posix() for file in files)

    def read(name: str, limit: int) -> bytes:
        try:
            status = os.stat(root / name)
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait, reading a device may never end
                raise DataError(f"'{root / name}' is no regular file")
            _check_size(root / name, status.st_size, limit)
            with open(root / name, "rb") as file:
                return file.read(limit)
        except OSError as error:
            raise DataError(f"cannot read '{root / name}': {error.strerror}") from error

    return FileTree(names(), read)


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot read '{error.filename}': {error.strerror}") from error


def _archive(
    path: AnyPath, tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], subfolder: str
) -> FileTree:
    prefix = _inner_name(path, subfolder) + "/" if subfolder else ""
    members = {name.removeprefix(prefix): m for name, m in members.items() if name.startswith(prefix)}
    if not members:
        raise DataError(f"'{path}' has no files in '{subfolder}'" if subfolder else f"'{path}' has no files")

    def read(name: str, limit: int) -> bytes:
        member = members[name]
        if not member.isreg():
            raise DataError(
                f"'{name}' of '{path}' is a link or a device; archives must hold the files themselves"
            )
        if member.issparse():  # its holes can be of any size
            raise DataError(
                f"'{name}' of '{path}' is a sparse file, which may unpack to any size; make the archive "
                "without --sparse, or unpack it and give the folder"
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
