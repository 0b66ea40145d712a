"""Reading LevelDBs: what an LMDB of the same records gives, and one clear line for whatever is wrong."""

from __future__ import annotations

import gc
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from imae.cli.main import main
from imae.files.errors import DataError
from imae.layers.data.datum import datum_from_array
from imae.layers.data.leveldb_source import open_leveldb
from imae.layers.data.lmdb_source import open_lmdb
from imae.net.net import Net
from imae.prototxt.text import parse_net

COUNT = 23
KEYS = [b"%d" % i for i in range(COUNT)]  # byte order is 0, 1, 10, 11 ...


def records() -> dict[bytes, bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 5, 7), np.uint8)
    return {key: datum_from_array(pixels[i], i).SerializeToString() for i, key in enumerate(KEYS)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the same records as a LevelDB, `level`, and as an LMDB, `lmdb`."""
    plyvel = pytest.importorskip("plyvel", reason="there is no wheel of plyvel for this Python")
    monkeypatch.chdir(tmp_path)
    with lmdb.open("lmdb", map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        for key, value in records().items():
            transaction.put(key, value)
    # A small buffer: some of the records are in tables, some still in the log.
    with plyvel.DB("level", create_if_missing=True, write_buffer_size=1 << 16, block_size=256) as database:
        for key, value in records().items():
            database.put(key, value)
        database.compact_range()
        database.delete(b"0")
        database.put(b"0", records()[b"0"])
    return tmp_path


def test_it_reads_what_an_lmdb_reads(here: Path) -> None:
    with open_leveldb("level") as level, open_lmdb("lmdb") as other:
        assert len(level) == len(other) == COUNT
        assert level.keys() == other.keys() == sorted(KEYS)
        for start in (0, 9, COUNT - 1):
            assert list(level.records(start)) == list(other.records(start))
            assert level.value(start) == other.value(start)
            assert level.datum(start) == other.datum(start)
        assert level.record_name(b"10\xff") == "leveldb 'level', key '10\\xff'"


def net(backend: str) -> Net:
    source = {"LMDB": "lmdb", "LEVELDB": "level"}[backend]
    data = f'data_param {{ source: "{source}" batch_size: 5 backend: {backend} }}'
    return Net(parse_net(f'layer {{ name: "d" type: "Data" top: "data" top: "label" {data} }}'))


def test_the_data_layer_reads_it(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "imae"):
        level, other = net("LEVELDB"), net("LMDB")
    assert "Opened leveldb level" in [record.getMessage() for record in caplog.records]
    for _ in range(7):
        got, want = level.next_batch(), other.next_batch()
        assert got.keys() == want.keys() == {"data", "label"}
        for name, blob in want.items():
            assert got[name].equal(blob)


def test_several_layers_read_the_same_one(here: Path) -> None:
    one, two = open_leveldb("level"), open_leveldb(here / "level")
    one.close()
    assert two.value(3) == records()[two.keys()[3]]
    with pytest.raises(DataError, match="leveldb 'level': cannot be read: it is closed"):
        one.value(3)


def test_it_is_let_go_of(here: Path) -> None:
    import plyvel

    source = open_leveldb("level")
    with pytest.raises(plyvel.IOError, match="lock"):
        plyvel.DB(str(here / "level"))
    del source
    gc.collect()
    plyvel.DB(str(here / "level")).close()


def test_the_mean_of_it(here: Path) -> None:
    assert main(["compute_image_mean", "-backend=leveldb", "level", "a.binaryproto"]) == 0
    assert main(["compute_image_mean", "lmdb", "b.binaryproto"]) == 0
    assert Path("a.binaryproto").read_bytes() == Path("b.binaryproto").read_bytes()


def table(folder: str) -> Path:
    return sorted(Path(folder).glob("*.ldb"))[0]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Any, str]] = {
    "a flipped byte": (lambda: damage(table("bad")), "Corruption: block checksum mismatch"),
    "a missing table": (lambda: table("bad").unlink(), "Corruption: 1 missing files"),
    "a table cut short": (lambda: table("bad").write_bytes(b"x"), "IO error: "),
    "no list of files": (lambda: next(Path("bad").glob("MANIFEST*")).unlink(), "No such file or directory"),
    "a pipe": (lambda: os.mkfifo("bad/000999.log"), "000999.log in it is no regular file"),
    "no CURRENT": (
        lambda: Path("bad/CURRENT").unlink(),
        "there is no file CURRENT in it, so it is no LevelDB",
    ),
    "a broken CURRENT": (
        lambda: Path("bad/CURRENT").write_text("x"),
        "CURRENT file does not end with newline",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_one_is_refused(name: str, here: Path) -> None:
    shutil.copytree("level", "bad")
    break_it, words = DAMAGES[name]
    break_it()
    with pytest.raises(DataError, match=f"Failed to open leveldb bad: .*{re.escape(words)}") as caught:
        open_leveldb("bad")
    assert "\n" not in str(caught.value)


def test_damage_that_opening_does_not_see(here: Path) -> None:
    source = open_leveldb("level")
    damage(table("level"))
    with pytest.raises(DataError, match=r"leveldb 'level': cannot be read: .*; the database is damaged"):
        list(source.records())


def test_an_empty_one_is_refused(here: Path) -> None:
    import plyvel

    plyvel.DB("empty", create_if_missing=True).close()
    with pytest.raises(DataError, match="leveldb 'empty': the database has no records"):
        open_leveldb("empty")


def test_what_is_none_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb" / "data.mdb").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for name, problem in {
        "lmdb": "it is an LMDB: write data_param { backend: LMDB }",
        "folder": "there is no file CURRENT in it, so it is no LevelDB",
        "file": "there is no file CURRENT in it, so it is no LevelDB",
        "nothing": "No such file or directory; a relative path starts at the working folder",
    }.items():
        with pytest.raises(DataError, match=f"Failed to open leveldb .*{name}: {re.escape(problem)}"):
            open_leveldb(tmp_path / name)
    assert list((tmp_path / "folder").iterdir()) == []
    assert not (tmp_path / "nothing").exists()


def test_without_plyvel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "CURRENT").touch()
    monkeypatch.setitem(sys.modules, "plyvel", None)
    with pytest.raises(
        DataError, match=r"needs the package plyvel: pip install 'imae\[leveldb\]'; or make an LMDB"
    ):
        open_leveldb(tmp_path)
