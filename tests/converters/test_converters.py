"""Data to LMDB and LMDB to mean: what Caffe's tools wrote, laws, and one clear line for whatever is wrong."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import os
import pickle
import re
import resource
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest
from listing import sorted_names as names

from imae.cli import command_compute_image_mean as compute_image_mean
from imae.cli import command_convert_cifar as convert_cifar
from imae.cli import command_convert_digits as convert_digits
from imae.cli import command_convert_folder as convert_folder
from imae.cli import command_convert_imageset as convert_imageset
from imae.cli import command_corrupt_labels as corrupt_labels
from imae.cli.main import COMMANDS, main
from imae.converters.convert_cifar import read_cifar
from imae.converters.convert_digits import read_digits
from imae.converters.convert_imageset import MOST_NAMED, read_list
from imae.converters.images import pad_image, shuffled_order
from imae.converters.lmdb_writer import Record, write_lmdb
from imae.files.cifar_pickle import read_pickled_batch
from imae.files.errors import DataError, FileError, ImaeError
from imae.layers.data.datum import array_from_datum
from imae.layers.data.lmdb_source import open_lmdb
from imae.prototxt import BlobProto, Datum

CASES = Path(__file__).parents[1] / "cases"
CONVERTERS = [
    compute_image_mean,
    convert_cifar,
    convert_digits,
    convert_folder,
    convert_imageset,
    corrupt_labels,
]


def run(module: ModuleType, *arguments: object) -> None:
    """Run a converter with a command line."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_args([str(argument) for argument in arguments]))


def read(path: Path) -> list[Record]:
    with open_lmdb(path) as source:
        return [(key, source.datum(i)) for i, key in enumerate(source.keys())]


def arrays(records: list[Record]) -> list[np.ndarray]:
    return [array_from_datum(datum) for _, datum in records]


def labels(records: list[Record]) -> list[int]:
    return [datum.label for _, datum in records]


def refused(error: type[ImaeError], needles: str | list[str], module: ModuleType, *arguments: object) -> None:
    """Check that the command fails with one line that has these words in it."""
    with pytest.raises(error) as caught:
        run(module, *arguments)
    message = str(caught.value)
    assert "\n" not in message
    for needle in [needles] if isinstance(needles, str) else needles:
        assert needle in message


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def image(seed: int, height: int = 5, width: int = 7, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", pixels)
    assert done
    return data.tobytes()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond this: as good as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("module", CONVERTERS, ids=lambda module: module.__name__)
def test_every_converter_can_be_mounted(module: ModuleType) -> None:
    name = module.__name__.removeprefix("imae.cli.command_").replace("_", "-")
    assert COMMANDS[name]


# -- writing an LMDB ---------------------------------------------------------------------------------------


def some_records(count: int, size: int = 10) -> list[Record]:
    data = bytes(size)
    return [(b"%08d" % i, Datum(channels=1, height=1, width=size, data=data, label=i)) for i in range(count)]


def test_write_then_read_is_the_identity(tmp_path: Path) -> None:
    records = some_records(2345)
    assert write_lmdb(tmp_path / "db", iter(records)) == 2345
    assert read(tmp_path / "db") == records
    assert names(tmp_path) == ["db"]
    assert names(tmp_path / "db") == ["data.mdb", "lock.mdb"]


def test_keys_need_not_come_in_order(tmp_path: Path) -> None:
    records = some_records(12)
    write_lmdb(tmp_path / "db", reversed(records))
    assert read(tmp_path / "db") == records


def test_the_map_grows(tmp_path: Path) -> None:
    records = some_records(1100, 40_000)
    write_lmdb(tmp_path / "db", records)
    assert (tmp_path / "db" / "data.mdb").stat().st_size > 2 * (16 << 20)
    assert read(tmp_path / "db") == records


def test_caffe_can_open_it(tmp_path: Path) -> None:
    """As Caffe opens it: with its lock file, and with no size of the map given."""
    write_lmdb(tmp_path / "db", some_records(3))
    with (
        lmdb.open(str(tmp_path / "db"), readonly=True, map_size=0) as environment,
        environment.begin() as txn,
    ):
        assert txn.stat()["entries"] == 3


def test_an_existing_target_is_refused_untouched(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "db", some_records(3))
    with pytest.raises(FileError, match=r"db': it exists already; remove it or choose another name$"):
        write_lmdb(tmp_path / "db", some_records(4))
    assert read(tmp_path / "db") == some_records(3)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "there are no records"),
        (some_records(2) + some_records(1), "the key b'00000000' comes twice"),
        ([(b"", Datum())], "has 0 bytes; LMDB takes 1 to 511"),
        ([(b"k" * 512, Datum())], "has 512 bytes; LMDB takes 1 to 511"),
    ],
)
def test_records_that_make_no_lmdb(tmp_path: Path, records: list[Record], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_lmdb(tmp_path / "db", records)
    assert names(tmp_path) == []


def test_a_source_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def records() -> Iterator[Record]:
        yield from some_records(1500)
        raise DataError("the source is damaged")

    with pytest.raises(DataError, match=r"^the source is damaged$"):
        write_lmdb(tmp_path / "db", records())
    assert names(tmp_path) == []


def test_no_space_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        largest_file(1 << 20),
        pytest.raises(
            FileError, match=r"^cannot write '.*/db': [^:\n]*(large|space|is the disk full)[^:\n]*$"
        ),
    ):
        write_lmdb(tmp_path / "db", some_records(1000, 5000))
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=r"^cannot write '.*/file/db': "):
        write_lmdb(tmp_path / "file" / "db", some_records(1))
    with pytest.raises(FileError, match=r"there is no folder '.*/none'"):
        write_lmdb(tmp_path / "none" / "db", some_records(1))
    refused(FileError, "cannot make the folder", convert_digits, tmp_path / "file" / "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(FileError, match="Permission denied"):
        write_lmdb(tmp_path / "db", some_records(1))
    tmp_path.chmod(0o755)
    assert names(tmp_path) == []


def test_both_lmdbs_or_none(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "digits_test_lmdb", some_records(1))
    refused(FileError, "digits_test_lmdb': it exists already", convert_digits, tmp_path)
    assert names(tmp_path) == ["digits_test_lmdb"]


# -- images ------------------------------------------------------------------------------------------------


def test_padding_is_zeros_on_each_side() -> None:
    pixels = image(0).transpose(2, 0, 1)
    padded = pad_image(pixels, 3)
    assert padded.shape == (3, 11, 13)
    assert np.array_equal(padded[:, 3:-3, 3:-3], pixels)
    assert padded.sum() == pixels.sum()
    assert pad_image(pixels, 0) is pixels


def test_shuffling_is_caffes() -> None:
    """Fisher-Yates from the end over the raw words of mt19937, with boost's uniform_int."""
    words = iter(np.random.RandomState(1701).randint(0, 2**32, 1000, np.uint32).tolist())
    expected = list(range(37))
    for i in range(36, 0, -1):
        bucket = 4294967295 // (i + 1) + (4294967295 % (i + 1) == i)
        j = next(word // bucket for word in words if word // bucket <= i)
        expected[i], expected[j] = expected[j], expected[i]
    assert list(shuffled_order(37, 1701)) == expected
    assert list(shuffled_order(37, None)) == list(range(37))


# -- CIFAR -------------------------------------------------------------------------------------------------

Batches = dict[
    str, tuple[np.ndarray, list[list[int]]]
]  # by file: rows of 3072 bytes, a list for each kind of label
CIFAR10_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
PER_FILE = 3


def cifar_batches(classes: int) -> Batches:
    rng = np.random.default_rng(classes)
    kinds = [10] if classes == 10 else [20, 100]
    return {
        file: (
            rng.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8),
            [rng.integers(0, kind, PER_FILE).tolist() for kind in kinds],
        )
        for file in (CIFAR10_FILES if classes == 10 else ["train", "test"])
    }


def binary_files(batches: Batches) -> dict[str, bytes]:
    return {
        f"{file}.bin": np.hstack([*(np.array(kind, np.uint8)[:, None] for kind in kinds), rows]).tobytes()
        for file, (rows, kinds) in batches.items()
    }


def python_files(batches: Batches) -> dict[str, bytes]:
    """As Python 3 pickles them."""
    files = {}
    for file, (rows, kinds) in batches.items():
        fields = [b"labels"] if len(kinds) == 1 else [b"coarse_labels", b"fine_labels"]
        batch = {b"batch_label": b"a batch", **dict(zip(fields, kinds, strict=True)), b"data": rows}
        files[file] = pickle.dumps({**batch, b"filenames": [b"x.png"] * PER_FILE}, protocol=2)
    return files


def python2_files(batches: Batches) -> dict[str, bytes]:
    """As Python 2 pickled the files that are distributed, operation by operation."""

    def string(text: str) -> bytes:
        return b"U" + bytes([len(text)]) + text.encode()

    files = {}
    for file, (rows, kinds) in batches.items():
        fields = ["labels"] if len(kinds) == 1 else ["coarse_labels", "fine_labels"]
        items = string("batch_label") + b"q\x02" + string("training batch 1 of 5") + b"q\x03"
        for field, values in zip(fields, kinds, strict=True):
            items += string(field) + b"]q\x04(" + b"".join(b"K" + bytes([value]) for value in values) + b"e"
        items += (
            string("data")
            + b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85q\x07"
        )
        items += (
            string("b")
            + b"\x87Rq\x08(K\x01K"
            + bytes([len(rows)])
            + b"M\x00\x0c\x86q\x09cnumpy\ndtype\nq\x0a"
        )
        items += (
            string("u1")
            + b"K\x00K\x01\x87Rq\x0b(K\x03"
            + string("|")
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        items += b"\x89T" + struct.pack("<i", rows.size) + rows.tobytes() + b"tb"
        items += string("filenames") + b"]q\x0c(" + string("a.png") * len(rows) + b"e"
        files[file] = b"\x80\x02}q\x01(" + items + b"u."
    return files


FORMATS = {"binary": binary_files, "python": python_files, "python2": python2_files}


def put_folder(files: dict[str, bytes], path: Path) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def put_tar(files: dict[str, bytes], path: Path, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("source", ["folder", "folder below", "tar.gz"])
def test_cifar10(tmp_path: Path, form: str, source: str) -> None:
    batches = cifar_batches(10)
    files = FORMATS[form](batches)
    below = {f"cifar-10-batches/{name}": data for name, data in {**files, "readme.html": b""}.items()}
    path = {
        "folder": lambda: put_folder(files, tmp_path / "in"),
        "folder below": lambda: put_folder(below, tmp_path / "in"),
        "tar.gz": lambda: put_tar(below, tmp_path / "in.tar.gz"),
    }[source]()
    run(convert_cifar, path, tmp_path / "new" / "data")
    assert names(tmp_path / "new" / "data") == ["cifar10_test_lmdb", "cifar10_train_lmdb"]
    for part, part_files in (("train", CIFAR10_FILES[:5]), ("test", CIFAR10_FILES[5:])):
        records = read(tmp_path / "new" / "data" / f"cifar10_{part}_lmdb")
        assert [key for key, _ in records] == [b"%05d" % i for i in range(PER_FILE * len(part_files))]
        assert labels(records) == [label for file in part_files for label in batches[file][1][0]]
        rows = np.concatenate([batches[file][0] for file in part_files])
        for (_, datum), row in zip(records, rows, strict=True):
            expected = Datum(channels=3, height=32, width=32, data=row.tobytes(), label=datum.label)
            assert datum == expected  # as Caffe's convert_cifar_data: no field `encoded`


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("label", "kind"), [(None, 1), ("fine", 1), ("coarse", 0)])
def test_cifar100(tmp_path: Path, form: str, label: str | None, kind: int) -> None:
    batches = cifar_batches(100)
    path = put_folder(FORMATS[form](batches), tmp_path / "in")
    name, train, test = read_cifar(path, label)
    assert name == "cifar100"
    for images, (rows, kinds) in zip((train, test), batches.values(), strict=True):
        assert np.array_equal(images.images, rows.reshape(-1, 3, 32, 32))
        assert images.labels.tolist() == kinds[kind]


def test_cifar_padded_shuffled_and_bgr(tmp_path: Path) -> None:
    batches = cifar_batches(10)
    path = put_folder(binary_files(batches), tmp_path / "in")
    run(convert_cifar, path, tmp_path / "a", "--pad", 4, "--shuffle", 5, "--bgr")
    run(convert_cifar, path, tmp_path / "b")
    train, plain = read(tmp_path / "a/cifar10_train_lmdb"), read(tmp_path / "b/cifar10_train_lmdb")
    order = shuffled_order(len(plain), 5)
    assert list(order) != list(range(len(plain)))
    assert [key for key, _ in train] == [key for key, _ in plain]
    assert labels(train) == [labels(plain)[i] for i in order]
    for got, i in zip(arrays(train), order, strict=True):
        assert np.array_equal(got, pad_image(arrays(plain)[i][::-1], 4))
    test, plain = read(tmp_path / "a/cifar10_test_lmdb"), read(tmp_path / "b/cifar10_test_lmdb")
    assert np.array_equal(arrays(test), np.array(arrays(plain))[:, ::-1])


def broken_cifar(name: str) -> dict[str, bytes]:
    batches = cifar_batches(10)
    files = binary_files(batches)
    match name:
        case "nothing":
            return {"readme.html": b""}
        case "a file is missing":
            del files["data_batch_3.bin"]
        case "cut off":
            files["data_batch_2.bin"] = files["data_batch_2.bin"][:-1]
        case "empty":
            files["test_batch.bin"] = b""
        case "label":
            files["data_batch_1.bin"] = b"\x0a" + files["data_batch_1.bin"][1:]
        case "two versions":
            files |= python_files(batches)
        case "labels and images":
            files = python_files(
                {**batches, "test_batch": (batches["test_batch"][0][:2], batches["test_batch"][1])}
            )
        case "no labels":
            files = {
                **python_files(batches),
                "test_batch": pickle.dumps({b"data": batches["test_batch"][0]}, 2),
            }
        case "labels are no numbers":
            batch = {b"data": batches["test_batch"][0], b"labels": [b"1"] * PER_FILE}
            files = {**python_files(batches), "test_batch": pickle.dumps(batch, 2)}
    return files


@pytest.mark.parametrize("source", ["folder", "tar.gz"])
@pytest.mark.parametrize(
    ("name", "needles"),
    [
        ("nothing", "holds no CIFAR: expected data_batch_1 .. 5 and test_batch"),
        ("a file is missing", "lacks data_batch_3.bin"),
        ("cut off", "'data_batch_2.bin' is damaged: its 9218 bytes are no whole number of records of 3073"),
        ("empty", "'test_batch.bin' is damaged: its 0 bytes"),
        ("label", "'data_batch_1.bin' is damaged: image 0 has label 10; labels are 0 to 9"),
        (
            "two versions",
            "holds CIFAR more than once (data_batch_1.bin, data_batch_1); name the folder of one",
        ),
        ("labels and images", "'test_batch' is damaged: its 'data' are no 3 rows of 3072 bytes"),
        ("no labels", "'test_batch' is damaged: its 'labels' are no list of numbers"),
        ("labels are no numbers", "'test_batch' is damaged: its 'labels' are no list of numbers"),
    ],
)
def test_broken_cifar(tmp_path: Path, source: str, name: str, needles: str) -> None:
    files = broken_cifar(name)
    path = put_folder(files, tmp_path / "in") if source == "folder" else put_tar(files, tmp_path / "in")
    refused(DataError, needles, convert_cifar, path, tmp_path / "out")
    assert names(tmp_path) == ["in"]


def test_cifar10_has_labels_of_one_kind(tmp_path: Path) -> None:
    path = put_folder(binary_files(cifar_batches(10)), tmp_path / "in")
    refused(DataError, "leave out --label coarse", convert_cifar, path, tmp_path / "out", "--label", "coarse")


def test_sizes_are_checked_before_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imae.converters.convert_cifar.LARGEST_FILE", 9000)
    files = binary_files(cifar_batches(10))
    for path in (put_folder(files, tmp_path / "in"), put_tar(files, tmp_path / "in.tar.gz")):
        refused(
            DataError, "data_batch_1.bin' has 9219 bytes; at most 9000", convert_cifar, path, tmp_path / "out"
        )


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2", "w:"])
@pytest.mark.parametrize("damage", ["cut off", "flipped"])
def test_damaged_archives(tmp_path: Path, mode: str, damage: str) -> None:
    data = put_tar(binary_files(cifar_batches(10)), tmp_path / "good", mode).read_bytes()
    if damage == "cut off":
        data = data[: len(data) // 2]
    else:  # in a plain archive, the header of the second file
        place = 512 + 9728 + 100 if mode == "w:" else len(data) // 2
        data = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
    (tmp_path / "bad").write_bytes(data)
    refused(DataError, "cannot read '", convert_cifar, tmp_path / "bad", tmp_path / "out")
    assert names(tmp_path) == ["bad", "good"]


@pytest.mark.parametrize("data", [b"", b"hello", b"\x1f\x8bhello", bytes(512)])
def test_what_is_no_archive(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "in").write_bytes(data)
    with pytest.raises(DataError):
        run(convert_cifar, tmp_path / "in", tmp_path / "out")
    refused(DataError, "no such file or folder", convert_cifar, tmp_path / "none", tmp_path / "out")


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("shape", [lambda evil: evil, lambda evil: {b"data": evil}, lambda evil: [evil]])
def test_a_malicious_pickle_is_refused_and_does_nothing(
    tmp_path: Path, protocol: int, shape: Callable[[Evil], object]
) -> None:
    data = pickle.dumps(shape(Evil(tmp_path / "evil")), protocol)
    with pytest.raises(DataError, match=r"^'x' is no batch of CIFAR's Python version: "):
        read_pickled_batch(data, "x")
    assert names(tmp_path) == []
    pickle.loads(data)  # noqa: S301  it does work
    assert names(tmp_path) == ["evil"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x02cposix\nsystem\nU\x04true\x85R.", "it asks for 'posix system'"),
        (b"\x80\x02(S'true'\niposix\nsystem\n.", "it uses the pickle operation STRING"),
        (b"\x80\x02(U\x04trueiposix\nsystem\n.", "it uses the pickle operation INST"),
        (b"\x80\x02\x82\x01.", "it uses the pickle operation EXT1"),
        (b"\x80\x02U\x01aQ.", "it uses the pickle operation BINPERSID"),
        (b"\x80\x02c_codecs\nencode\nU\x01aU\x04zlib\x86R.", "it makes something else than arrays of bytes"),
        (b"\x80\x02cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R.", "it makes something else than arrays of bytes"),
        (b"\x80\x02U\x14numpy _reconstruct__K\x00\x85R.", "it makes something else than arrays of bytes"),
        (b"\x80\x02}U\x01aK\x01s", "pickle exhausted before seeing STOP"),
        (b"\x80\x02}K\x01K\x01s.", "it has something else than strings as names"),
        (b"\x80\x02U\x01aK\x01a.", "it appends to what is no list"),
        (b"\x80\x02\x86.", "it takes more than it has"),
        (b"\x80\x02t.", "it is garbled"),
        (b"\x80\x02h\x07.", "it is garbled"),
        (b"\x80\x02]K\x01b.", "it holds something else than arrays of bytes"),
        (b"\x80\x02K\x01.", "it holds no dict"),
        (b"\x80\x02}}.", "too many values to unpack"),
        (b"\x80\x02T\xff\xff\xff\x7fabc.", "expected 2147483647 bytes in a string4"),
        (b"\x80\x05}.", "its pickle protocol is 5, not 2"),
        (b"", "pickle exhausted before seeing STOP"),
    ],
)
def test_broken_pickles(data: bytes, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        read_pickled_batch(data, "x")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


# -- digits ------------------------------------------------------------------------------------------------


def test_digits_are_those_of_the_recorded_runs(tmp_path: Path) -> None:
    """SHA-1 of all keys and values of the LMDBs with which Caffe's run digits_lenet was recorded."""
    run(convert_digits, tmp_path)
    expected = {
        "train": (1500, "01cc3a3c19affbfe124675b156cc13a9e49b71bf"),
        "test": (297, "af843f2cc5b6443ad8bc4be670e051ac9491c751"),
    }
    for part, (count, digest) in expected.items():
        records = read(tmp_path / f"digits_{part}_lmdb")
        assert len(records) == count
        assert sha1(b"".join(key + datum.SerializeToString() for key, datum in records)) == digest


def test_digits_padded_and_shuffled(tmp_path: Path) -> None:
    run(convert_digits, tmp_path / "a", "--pad", 2, "--shuffle", 3)
    train, test = read(tmp_path / "a/digits_train_lmdb"), read(tmp_path / "a/digits_test_lmdb")
    images, _ = read_digits()
    order = shuffled_order(1500, 3)
    assert labels(train) == images.labels[order].tolist()
    assert arrays(train)[0].shape == (1, 12, 12)
    assert np.array_equal(arrays(train)[7][0, 2:-2, 2:-2], images.images[order[7], 0])
    assert arrays(test)[0].shape == (1, 8, 8)


# -- a folder of class folders -----------------------------------------------------------------------------

PICTURES = {
    f"{name}/{i}.png": image(10 * c + i, 4 + i)
    for c, name in enumerate(["cat", "ant", "bee"])
    for i in range(3)
}
FILES = {name: png(pixels) for name, pixels in PICTURES.items()}


def planes(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(2, 0, 1)


@pytest.mark.parametrize("mode", [None, "w:", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("subfolder", ["", "train", "./sets/train/"])
def test_folder(tmp_path: Path, mode: str | None, subfolder: str) -> None:
    files = {os.path.normpath(f"{subfolder}/{name}").lstrip("/"): data for name, data in FILES.items()}
    files = {f"./{name}": data for name, data in {**files, f"{subfolder}/notes.txt".lstrip("/"): b""}.items()}
    path = put_tar(files, tmp_path / "in", mode) if mode else put_folder(files, tmp_path / "in")
    run(convert_folder, path, tmp_path / "db", "--subfolder", subfolder)
    records = read(tmp_path / "db")
    expected = sorted(PICTURES)
    assert [key for key, _ in records] == [b"%08d_%s" % (i, name.encode()) for i, name in enumerate(expected)]
    assert labels(records) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for (_, datum), name in zip(records, expected, strict=True):
        assert datum.HasField("encoded") and not datum.encoded
        assert np.array_equal(array_from_datum(datum), planes(PICTURES[name]))


def folder_lmdb(tmp_path: Path, *arguments: object) -> list[Record]:
    put_folder(FILES, tmp_path / "in")
    run(convert_folder, tmp_path / "in", tmp_path / "db", *arguments)
    return read(tmp_path / "db")


def test_folder_resized_gray_and_padded(tmp_path: Path) -> None:
    records = folder_lmdb(tmp_path, "--gray", "--resize-height", 6, "--resize_width", 5, "--pad", 1)
    gray = cv2.imdecode(np.frombuffer(FILES["ant/0.png"], np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(arrays(records)[0], pad_image(cv2.resize(gray, (5, 6))[None], 1))
    assert {array.shape for array in arrays(records)} == {(1, 8, 7)}


def test_folder_encoded(tmp_path: Path) -> None:
    for (key, datum), name in zip(folder_lmdb(tmp_path, "--encoded"), sorted(FILES), strict=True):
        assert key.endswith(name.encode())
        assert datum == Datum(data=FILES[name], label=datum.label, encoded=True)


@pytest.mark.parametrize("as_file", [False, True])
def test_folder_with_classes_in_another_order(tmp_path: Path, as_file: bool) -> None:
    classes = "cat,ant,bee"
    if as_file:
        (tmp_path / "classes.txt").write_text("cat\nant\nbee\n")
        classes = str(tmp_path / "classes.txt")
    records = folder_lmdb(tmp_path, "--classes", classes)
    assert [key[9:] for key, _ in records][::3] == [b"cat/0.png", b"ant/0.png", b"bee/0.png"]
    assert labels(records) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_folder_shuffled(tmp_path: Path) -> None:
    records = folder_lmdb(tmp_path, "--shuffle", 9)
    chosen = [sorted(PICTURES)[i] for i in shuffled_order(9, 9)]
    assert [key for key, _ in records] == [b"%08d_%s" % (i, name.encode()) for i, name in enumerate(chosen)]
    assert labels(records) == [["ant", "bee", "cat"].index(name[:3]) for name in chosen]


def test_folder_in_a_class_sequence_with_other_labels(tmp_path: Path) -> None:
    sequence, noisy = np.array([2, 0, 1, 1, 0, 2, 2, 0, 1]), np.array([2, 1, 1, 0, 0, 2, 2, 1, 1])
    np.savez(tmp_path / "l.npz", clean=sequence.astype(np.uint8), noisy=noisy)
    files = ("--class-sequence", f"{tmp_path}/l.npz:clean", "--labels", f"{tmp_path}/l.npz:noisy")
    records = folder_lmdb(tmp_path, *files, "--shuffle", 4)
    order = list(shuffled_order(9, 4))
    inverse = np.argsort(order)
    in_sequence = [records[i] for i in inverse]
    assert [key[9:14].decode() for key, _ in in_sequence] == [
        "cat/0", "ant/0", "bee/0", "bee/1", "ant/1", "cat/1", "cat/2", "ant/2", "bee/2"
    ]  # fmt: skip
    assert labels(in_sequence) == noisy.tolist()
    with np.load(tmp_path / "db.clean_labels.npz", allow_pickle=False) as kept:
        assert kept["key"].tolist() == [key for key, _ in records]
        assert kept["clean"].tolist() == sequence[order].tolist()
        assert kept["noisy"].tolist() == labels(records)


def test_folder_whose_names_lack_the_order_within_a_class(tmp_path: Path) -> None:
    """Place k of a class's array is that of the picture that comes k-th, as labels of other sources count."""
    np.savez(tmp_path / "order.npz", ant=[2, 0, 1], bee=np.array([0, 1, 2], np.int16), cat=[1, 2, 0])
    np.save(tmp_path / "sequence.npy", np.array([2, 0, 1, 1, 0, 2, 2, 0, 1]))
    within = ("--within-class", f"{tmp_path}/order.npz")
    records = folder_lmdb(tmp_path, *within, "--class-sequence", f"{tmp_path}/sequence.npy")
    assert [key[9:14].decode() for key, _ in records] == [
        "cat/1", "ant/2", "bee/0", "bee/1", "ant/0", "cat/2", "cat/0", "ant/1", "bee/2"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arrays", "needle"),
    [
        ({"ant": [0, 1, 2], "bee": [0, 1, 2]}, "--within-class has no array 'cat'; it has ant, bee"),
        ({"ant": [0, 1, 2], "bee": [0, 1], "cat": [0, 1, 2]}, "the array 'bee' must hold the places 0 to 2"),
        (
            {"ant": [0, 1, 1], "bee": [0, 1, 2], "cat": [0, 1, 2]},
            "the array 'ant' must hold the places 0 to 2",
        ),
        ({"ant": [0.5]}, "order.npz:ant' must be a list of whole numbers"),
        (None, "cannot read"),
    ],
)
def test_broken_orders_within_a_class(
    tmp_path: Path, arrays: dict[str, list[float]] | None, needle: str
) -> None:
    path = tmp_path / "order.npz"
    if arrays is None:
        path.write_bytes(b"PK no archive")
    else:
        np.savez(path, **{name: np.array(places) for name, places in arrays.items()})
    put_folder(FILES, tmp_path / "in")
    refused(DataError, needle, convert_folder, tmp_path / "in", tmp_path / "db", "--within-class", path)
    assert names(tmp_path) == ["in", "order.npz"]


@pytest.mark.parametrize(
    ("files", "arguments", "needles"),
    [
        ({}, [], "there are no images (.png, .jpg, .jpeg, .bmp) among the 1 files"),
        ({"train/cat/0.png": b""}, [], ["'train/cat/0.png' does not lie in a class folder", "subfolder"]),
        ({"0.png": b""}, [], "'0.png' does not lie in a class folder"),
        (FILES, ["--subfolder", "train"], ["no such folder", "train"]),
        ({**FILES, "bee/9.png": b"no"}, [], "'bee/9.png': could not decode the 2 bytes as an image"),
        ({**FILES, "bee/9.png": b""}, [], "'bee/9.png': could not decode the 0 bytes"),
        (FILES, ["--classes", "ant,bee"], "these are not: cat"),
        (FILES, ["--classes", "ant,bee,cat,dog"], "these are not: dog"),
        (FILES, ["--classes", "ant,bee,cat,cat"], "these are not: cat"),
        (FILES, ["--encoded", "--pad", "1"], "--encoded stores the files as they are"),
        (FILES, ["--resize-height", "3"], "resizing needs both"),
        (FILES, ["--labels", "{tmp}/seven.txt"], "has 7 labels; there are 9 images"),
        (FILES, ["--labels", "{tmp}/large.txt"], "number 3 at place 8 is out of range; it must be 0 to 2"),
        (FILES, ["--labels", "{tmp}/none.npy"], ["cannot read the labels", "none.npy", "No such file"]),
        (FILES, ["--class-sequence", "{tmp}/seven.txt"], "has label 0 7 times; there are 3 such images"),
    ],
)
def test_broken_folders(
    tmp_path: Path, files: dict[str, bytes], arguments: list[str], needles: str | list[str]
) -> None:
    (tmp_path / "seven.txt").write_text("0\n" * 7)
    (tmp_path / "large.txt").write_text("0 " * 8 + "3")
    put_folder({"readme.txt": b"", **files}, tmp_path / "in")
    arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    refused(DataError, needles, convert_folder, tmp_path / "in", tmp_path / "db", *arguments)
    assert names(tmp_path) == ["in", "large.txt", "seven.txt"]


def test_a_subfolder_that_an_archive_lacks(tmp_path: Path) -> None:
    put_tar(FILES, tmp_path / "in.tar", "w:")
    refused(
        DataError, "no files in 'train'", convert_folder, tmp_path / "in.tar", "db3", "--subfolder", "train"
    )


# -- convert_imageset --------------------------------------------------------------------------------------

IMAGESET = CASES / "convert_imageset"
LISTING = json.loads((IMAGESET / "listing.json").read_text())
assert LISTING


@pytest.fixture
def imageset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(IMAGESET)


@pytest.mark.parametrize("name", [name for name, case in LISTING.items() if case["exit_code"] == 0])
@pytest.mark.usefixtures("imageset")
def test_imageset_as_caffe(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Every key, label, Datum and byte that Caffe's convert_imageset wrote."""
    caplog.set_level(logging.INFO)
    case = LISTING[name]
    *arguments, _ = case["command"][1:]
    run(convert_imageset, *arguments, tmp_path / "db")
    records = read(tmp_path / "db")
    got = [
        {
            "key": key.decode(),
            "label": datum.label,
            "channels": datum.channels,
            "height": datum.height,
            "width": datum.width,
            "encoded": datum.encoded,
            "data_bytes": len(datum.data),
            "data_sha1": sha1(datum.data),
            "float_data": list(datum.float_data),
            "value_sha1": sha1(datum.SerializeToString()),
        }
        for key, datum in records
    ]
    assert got == case["entries"]
    assert f"Processed {len(records)} files." in caplog.text
    assert ("Could not open or find file ./img/nope.png" in caplog.text) == (name == "missing_file")


@pytest.mark.usefixtures("imageset")
def test_imageset_refuses_what_caffe_refuses(tmp_path: Path) -> None:
    failed = {name for name, case in LISTING.items() if case["exit_code"]}
    assert failed == {"check_size_fails", "exists_already"}
    *arguments, _ = LISTING["check_size_fails"]["command"][1:]
    refused(DataError, "Incorrect data field size 300; the first image has 576",
            convert_imageset, *arguments, tmp_path / "db")  # fmt: skip
    (tmp_path / "db").mkdir()
    *arguments, _ = LISTING["exists_already"]["command"][1:]
    refused(FileError, "it exists already", convert_imageset, *arguments, tmp_path / "db")
    assert names(tmp_path) == ["db"]


@pytest.mark.usefixtures("imageset")
def test_imageset_shuffled_and_padded(tmp_path: Path) -> None:
    run(convert_imageset, "--shuffle", 11, "--pad", 2, "./", "list.txt", tmp_path / "db")
    records = read(tmp_path / "db")
    order = list(shuffled_order(6, 11))
    assert labels(records) == order
    assert [key for key, _ in records] == [
        b"%08d_img/p%02d.png" % (i, label) for i, label in enumerate(order)
    ]
    for array, label in zip(arrays(records), order, strict=True):
        assert np.array_equal(array, pad_image(planes(cv2.imread(f"img/p{label:02}.png")), 2))


def test_imageset_encodes_anew_only_where_it_must(tmp_path: Path) -> None:
    pixels = image(3)
    unpacked = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()
    put_folder({"a.JPEG": cv2.imencode(".jpg", pixels)[1].tobytes(), "b.png": unpacked}, tmp_path)
    (tmp_path / "list").write_text("a.JPEG 0\nb.png 1\n")
    for number, (options, same) in enumerate([
        (["--encoded"], [True, True]),
        (["--encode_type", "jpg"], [True, False]),
        (["--encode-type=PNG"], [False, True]),
        (["--encoded", "--resize_width=9"], [False, False]),
    ]):  # fmt: skip
        run(convert_imageset, *options, f"{tmp_path}/", tmp_path / "list", tmp_path / f"db{number}")
        records = read(tmp_path / f"db{number}")
        assert [datum.data == (tmp_path / name).read_bytes() for (_, datum), name in
                zip(records, ["a.JPEG", "b.png"], strict=True)] == same  # fmt: skip
        assert arrays(records)[0].shape == (3, 5, 7)


def test_imageset_list_is_read_as_caffe_reads_it(tmp_path: Path) -> None:
    lines = ["a b.png 3", "c.png  -2x", "d.png x", "e.png", "7", "f.png 12abc\r", " 5", ""]
    (tmp_path / "list").write_text("\n".join(lines) + "\n\xe9.png 2147483647", encoding="latin-1")
    assert read_list(str(tmp_path / "list")) == [
        ("a b.png", 3), ("c.png ", -2), ("d.png", 0), ("e.png", 0), ("7", 7), ("f.png", 12), ("", 5), ("", 0),
        ("\udce9.png", 2147483647),
    ]  # fmt: skip


def test_imageset_names_the_first_of_many_pictures_that_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong ROOTFOLDER must not make a log of millions of lines, nor take the time to write it."""
    (tmp_path / "a.png").write_bytes(png(image(1)))
    shown = MOST_NAMED
    for missing, more in ((shown, ""), (shown + 5000, "Could not open or find 5000 more files of the list")):
        (tmp_path / "list").write_text("nope.png 1\n" * missing + "a.png 1\n")
        caplog.clear()
        run(convert_imageset, f"{tmp_path}/", tmp_path / "list", tmp_path / f"db{missing}")
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert lines[:2] == [
            f"Could not open or find file {tmp_path}/nope.png",
            f"It is left out: Could not load {tmp_path}/nope.png: No such file or directory; "
            "mend the list, or root_folder",
        ]
        assert len(lines) == 2 * shown + bool(more) and more in lines[-1]
        assert [key for key, _ in read(tmp_path / f"db{missing}")] == [b"%08d_a.png" % missing]


def test_a_root_folder_without_its_slash_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the first images are all there with the slash, and none without; nothing else is logged of it."""
    monkeypatch.chdir(tmp_path)
    Path("img").mkdir()
    for index in range(12):
        Path(f"img/{index}.png").write_bytes(png(image(1)))
    Path("list").write_text("".join(f"{index}.png 1\n" for index in range(12)))
    for command in (
        ["convert-imageset", "img", "list", "db"],
        ["convert-annoset", "--anno_type=classification", "img", "list", "db"],
    ):
        assert main(command) == 2
        assert capsys.readouterr().err == (
            "imae: 'img0.png' is not there, 'img/0.png' is: add the slash, img/ (names are joined to "
            "ROOTFOLDER as they are)\n"
        )
        assert not Path("db").exists()
    Path("img7.png").write_bytes(png(image(1)))  # the prefix is meant
    assert main(["convert-imageset", "img", "list", "db"]) == 0


@pytest.mark.parametrize("flag", [["--shuffle"], ["-shuffle=true"], ["-shuffle"]])
def test_shuffle_as_caffes_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flag: list[str]
) -> None:
    """Some seed, which the log names; the same seed makes the same order."""
    monkeypatch.chdir(tmp_path)
    for index in range(9):
        Path(f"{index}.png").write_bytes(png(image(1)))
    Path("list").write_text("".join(f"{index}.png 1\n" for index in range(9)))
    assert main(["convert_imageset", *flag, "./", "list", "db"]) == 0
    seed = re.search(r"--shuffle has no seed; this order's seed is (\d+)\n", capsys.readouterr().err)
    assert seed is not None
    assert main(["convert_imageset", "--shuffle", seed[1], "./", "list", "again"]) == 0
    assert read(Path("db")) == read(Path("again"))
    assert main(["convert_imageset", "./", "list", "plain", "-shuffle=false"]) == 0
    assert [key for key, _ in read(Path("plain"))] == [b"%08d_%d.png" % (i, i) for i in range(9)]
    assert main(["convert_imageset", "--shuffle=x", "./", "list", "wrong"]) == 2
    assert capsys.readouterr().err.endswith("argument --shuffle: invalid seed value: 'x'\n")


def test_imageset_keys_are_the_bytes_of_the_list(tmp_path: Path) -> None:
    name = b"\xe9.png"
    with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
        file.write(png(image(1)))
    (tmp_path / "list").write_bytes(name + b" 1\n")
    run(convert_imageset, f"{tmp_path}/", tmp_path / "list", tmp_path / "db")
    assert [key for key, _ in read(tmp_path / "db")] == [b"00000000_" + name]


@pytest.mark.parametrize(
    ("text", "options", "needles"),
    [
        (None, [], ["cannot read the list", "No such file"]),
        ("", [], "there are no records"),
        ("nope.png 1\nlist 2\n", [], "there are no records"),
        ("a.png 2147483648\n", [], ["list:1: ", "does not fit into 32 bits"]),
        ("a.png 0\n", ["--encode_type", "xyz"], "cannot be encoded as 'xyz'"),
        ("a.png 0\n", ["--encoded", "--pad", "1"], "are for raw pixels"),
        ("a.png 0\n", ["--encoded", "--check_size"], "are for raw pixels"),
    ],
)
def test_broken_imagesets(
    tmp_path: Path, text: str | None, options: list[str], needles: str | list[str]
) -> None:
    (tmp_path / "a.png").write_bytes(png(image(1)))
    if text is not None:
        (tmp_path / "list").write_text(text)
    refused(
        DataError, needles, convert_imageset, *options, f"{tmp_path}/", tmp_path / "list", tmp_path / "db"
    )
    assert "db" not in names(tmp_path)


@pytest.mark.parametrize("option", ["--pad=-1", "--pad=10001", "--pad=x", "--resize_width=-1", "--shuffle"])
def test_options_that_make_no_sense(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(convert_imageset, "./", "list", "db", option)
    assert f"argument {option.partition('=')[0]}" in capsys.readouterr().err.replace("--resize-width/", "")


# -- compute_image_mean ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["raw", "encoded"])
def test_mean_is_caffes_bit_by_bit(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = CASES / "compute_image_mean"
    with np.load(folder / f"{name}.npz", allow_pickle=False) as case:
        keys, ends = case["keys"].tolist(), np.cumsum(case["lengths"]).tolist()
        values = [case["values"][a:b].tobytes() for a, b in zip([0, *ends], ends, strict=False)]
        write_lmdb(
            tmp_path / "db",
            [(k, Datum.FromString(v)) for k, v in zip(keys, values, strict=True)],
        )
    caplog.clear()
    run(compute_image_mean, tmp_path / "db", tmp_path / "mean.binaryproto")
    assert (tmp_path / "mean.binaryproto").read_bytes() == (folder / f"{name}.binaryproto").read_bytes()
    logged = (folder / f"{name}.log").read_text().splitlines()
    expected = [
        line.partition("] ")[2] for line in logged if "] Opened" not in line and "] Write" not in line
    ]
    assert [text for text in caplog.messages if text in expected] == expected


def test_mean_of_float_data(tmp_path: Path) -> None:
    records = [(b"%d" % i, Datum(channels=1, height=1, width=2, float_data=[i, 0.5])) for i in range(4)]
    write_lmdb(tmp_path / "db", records)
    run(compute_image_mean, tmp_path / "db", tmp_path / "mean")
    blob = BlobProto.FromString((tmp_path / "mean").read_bytes())
    assert (blob.num, blob.channels, blob.height, blob.width, list(blob.data)) == (1, 1, 1, 2, [1.5, 0.5])


def test_broken_means(tmp_path: Path) -> None:
    refused(DataError, "No such file or directory", compute_image_mean, tmp_path / "none")
    records = [(b"a", Datum(channels=1, height=2, width=3, data=bytes(6))),
               (b"b", Datum(channels=1, height=3, width=2, data=bytes(6)))]  # fmt: skip
    write_lmdb(tmp_path / "db", records)
    refused(DataError, "key 'b': an image of (1, 3, 2); the first one's shape is (1, 2, 3)",
            compute_image_mean, tmp_path / "db", tmp_path / "mean")  # fmt: skip
    assert names(tmp_path) == ["db"]


# -- the terminal ------------------------------------------------------------------------------------------


def test_no_progress_bar_in_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(convert_digits, tmp_path)
    run(compute_image_mean, tmp_path / "digits_train_lmdb")
    assert "records" not in "".join(capfd.readouterr())


def test_a_progress_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    run(convert_digits, tmp_path)
    assert "1500/1500" in terminal.getvalue()
