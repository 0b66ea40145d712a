"""Atomic files and folders: all or nothing, and one clear line when nothing."""

import errno
import os
from pathlib import Path

import pytest
from listing import sorted_names as names

from imae.files import atomic as files_module
from imae.files.atomic import atomic_file, atomic_folder, write_atomically
from imae.files.errors import FileError, ImaeError


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files_module.os, "fsync", refuse)


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for data in (b"one", b"", b"two" * 1000):
        write_atomically(path, data)
        assert path.read_bytes() == data
        assert names(tmp_path) == ["a"]


def test_it_is_not_there_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    with atomic_file(path) as file:
        file.write(b"half")
        (temporary,) = names(tmp_path)
        assert temporary.startswith(".net.caffemodel.")
        assert temporary.endswith(".tmp")
        assert file.name == str(tmp_path / temporary)
    assert names(tmp_path) == ["net.caffemodel"]


def test_another_library_may_write_it(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as file:
        Path(file.name).write_bytes(b"by name")
    assert (tmp_path / "a").read_bytes() == b"by name"


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    (tmp_path / "plain folder").mkdir()
    write_atomically(tmp_path / "a", b"")
    with atomic_folder(tmp_path / "b"):
        pass
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "b").stat().st_mode == (tmp_path / "plain folder").stat().st_mode


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/a")
    write_atomically(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "a").read_bytes() == b"x"


def test_long_names(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, ImaeError])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    write_atomically(tmp_path / "a", b"old")
    with pytest.raises(error), atomic_file(tmp_path / "a") as file:
        file.write(b"new")
        raise error
    with pytest.raises(error), atomic_folder(tmp_path / "b") as folder:
        (folder / "c").touch()
        raise error
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.usefixtures("full_disk")
def test_no_space(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(FileError) as error:
        write_atomically(path, b"new")
    assert str(error.value) == f"cannot write '{path}': No space left on device"
    path.write_bytes(b"old")
    with pytest.raises(FileError) as error:
        write_atomically(path, b"new")
    assert str(error.value) == f"cannot write '{path}': No space left on device; the old file is untouched"
    with pytest.raises(FileError, match=r"No space left on device$"), atomic_folder(tmp_path / "b") as folder:
        (folder / "c").touch()
    assert names(tmp_path) == ["a"]
    assert path.read_bytes() == b"old"


def test_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "no" / "a"
    with pytest.raises(FileError) as error:
        write_atomically(path, b"")
    assert str(error.value) == f"cannot write '{path}': there is no folder '{tmp_path / 'no'}'"
    with pytest.raises(FileError) as error, atomic_folder(path):
        pass
    assert str(error.value) == f"cannot write '{path}': there is no folder '{tmp_path / 'no'}'"


@pytest.mark.parametrize("path", [".", "/dev/null"])
def test_what_is_no_regular_file(path: str) -> None:
    with pytest.raises(FileError) as error:
        write_atomically(path, b"")
    assert str(error.value) == f"cannot write '{path}': it exists and is not a regular file"


def test_a_folder_is_written(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "db") as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "data.mdb").write_bytes(b"x")
        assert not (tmp_path / "db").exists()
    assert names(tmp_path) == ["db"]
    assert (tmp_path / "db" / "inside" / "data.mdb").read_bytes() == b"x"


@pytest.mark.parametrize("kind", ["file", "folder", "broken link"])
def test_an_existing_folder_is_refused_before_the_work(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "db"
    path.touch() if kind == "file" else path.mkdir() if kind == "folder" else path.symlink_to("nowhere")
    with pytest.raises(FileError) as error, atomic_folder(path):
        pytest.fail("got as far as the work")
    assert str(error.value) == f"cannot write '{path}': it exists already; remove it or choose another name"
    assert names(tmp_path) == ["db"]


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="it exists already"), atomic_folder(tmp_path / "db"):
        (tmp_path / "db").mkdir()
    assert names(tmp_path) == ["db"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_lies_at_the_temporary_name_already_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """It was not made by this call, so it is neither written into nor removed."""
    monkeypatch.setattr(files_module.secrets, "token_hex", lambda size: "0" * 2 * size)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x").write_bytes(b"theirs")
    at = tmp_path / ".a.00000000.tmp"
    if kind == "file":
        at.write_bytes(b"theirs")
    elif kind == "folder":
        (tmp_path / "theirs").rename(at)
    else:
        at.symlink_to("theirs")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(FileError, match=r"^cannot write '.*/a': File exists$"):
        write_atomically(tmp_path / "a", b"ours")
    with pytest.raises(FileError, match=r"^cannot write '.*/a': File exists$"), atomic_folder(tmp_path / "a"):
        pytest.fail("got as far as the work")
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_errors_about_other_files_are_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error, atomic_file(tmp_path / "a"):
        (tmp_path / "input").read_bytes()
    assert not isinstance(error.value, ImaeError)
    with pytest.raises(FileError) as file_error, atomic_folder(tmp_path / "b"):
        write_atomically(tmp_path / "no" / "c", b"")
    assert str(file_error.value).startswith(f"cannot write '{tmp_path}/no/c'")
    assert names(tmp_path) == []
