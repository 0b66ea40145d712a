"""The data layers: recorded batches, random streams against a slow reading of the rules, and refusals."""

from __future__ import annotations

import gc
import logging
import mmap
import os
import re
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import h5py
import lmdb
import numpy as np
import pytest
import reference
from numpy.typing import NDArray
from torch import Tensor

import imae.pycaffe as caffe
from imae.files.errors import DataError, ImaeError, LayerError, SnapshotError
from imae.layers.blob import blob_from_array
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.c_rand import GlibcRand
from imae.layers.data.data_resources import DataResources
from imae.layers.data.datum import array_from_datum, datum_from_array
from imae.layers.data.lmdb_source import open_lmdb
from imae.layers.data.memory_data import MemoryData
from imae.layers.data.window_data import Window, place_with_context
from imae.layers.layer import DataLayer, Layer
from imae.layers.registry import layer_class
from imae.layers.run import Run
from imae.prototxt import TEST, TRAIN, Datum, LayerParameter
from imae.prototxt.text import parse_text

CASES = Path(__file__).parents[1] / "cases" / "data"


# -- tools ---------------------------------------------------------------------------------------------------


pytestmark = pytest.mark.usefixtures("here")


def write_lmdb(path: str | Path, records: dict[bytes, bytes], subdir: bool = True) -> None:
    environment = lmdb.open(os.fspath(path), map_size=1 << 24, subdir=subdir, sync=False)
    with environment, environment.begin(write=True) as transaction:
        for key, value in records.items():
            transaction.put(key, value)


def raw(image: NDArray[Any], label: int = 0) -> bytes:
    return datum_from_array(image, label).SerializeToString()


def encoded(image: NDArray[np.uint8], label: int = 0, extension: str = ".png") -> bytes:
    """A Datum with the picture (C, H, W) as a file."""
    ok, data = cv2.imencode(extension, image.transpose(1, 2, 0))
    assert ok
    return Datum(data=data.tobytes(), label=label, encoded=True).SerializeToString()


def random_images(n: int, size: tuple[int, int, int] = (3, 11, 13), seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, *size), np.uint8)


def image_lmdb(n: int, path: str = "db", size: tuple[int, int, int] = (3, 11, 13)) -> NDArray[np.uint8]:
    """A database of n images with the labels 0..n-1; returns the images."""
    images = random_images(n, size)
    write_lmdb(path, {b"%08d" % i: raw(image, i) for i, image in enumerate(images)})
    return images


def build(text: str, phase: int = TRAIN, seed: int = 1, budget: int | None = None) -> Any:
    """The layer of a prototxt's inside, set up; `budget` is that for decoded records."""
    param = parse_text(text, LayerParameter, "<test>")
    param.phase = phase  # type: ignore[assignment]  # an int, checked by protobuf
    param.name = param.name or "data"
    layer = layer_class(param.type)(param)
    resources = DataResources(budget)
    layer.shapes_at_setup = layer.build([], Run(CaffeRandom(seed), data_resources=resources))  # type: ignore[assignment]
    return layer


def data_text(batch_size: int, transform: str = "", data: str = "backend: LMDB", source: str = "db") -> str:
    return (
        f'type: "Data" top: "data" top: "label" transform_param {{ {transform} }} '
        f'data_param {{ source: "{source}" batch_size: {batch_size} {data} }}'
    )


@contextmanager
def refused(kind: type[ImaeError], message: str) -> Iterator[None]:
    """The block raises an error of this kind and message; `...` in it stands for anything."""
    with pytest.raises(kind) as error:
        yield
    pattern = ".*".join(map(re.escape, message.split("...")))
    assert re.fullmatch(pattern, str(error.value)), f"{error.value} is not {message}"


def batches(layer: DataLayer, n: int) -> list[tuple[NDArray[Any], ...]]:
    return [tuple(top.numpy().copy() for top in layer.next_batch()) for _ in range(n)]


def assert_same(got: list[tuple[NDArray[Any], ...]], want: list[tuple[NDArray[Any], ...]]) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


# -- recorded by Caffe ---------------------------------------------------------------------------------------


def set_up_case(path: Path, folder: Path) -> reference.Case:
    """Copy a case's files to `folder` and make its databases; links lead to what several cases share."""
    links: dict[str, str] = reference.load(path).meta.get("links", {})
    sources = {file.name: file for file in path.parent.iterdir()}
    sources |= {name: path.parent / link for name, link in links.items()}
    for name, source in sources.items():
        records = source if name.endswith(".records.npz") else source.with_name(source.name + ".records.npz")
        if records.exists():
            with np.load(records, allow_pickle=False) as file:
                ends = np.cumsum(file["sizes"]).tolist()
                values = file["values"].tobytes()
                starts = [0, *ends[:-1]]
                write_lmdb(
                    folder / name.removesuffix(".records.npz"),
                    {
                        key: values[start:end]
                        for key, start, end in zip(file["keys"].tolist(), starts, ends, strict=True)
                    },
                )
        elif source.is_dir():
            shutil.copytree(source, folder / name)
        else:
            shutil.copy(source, folder / name)
    return reference.load(folder / path.name)


def recorded() -> list[Path]:
    paths = [p for p in reference.find("data/*/*.npz") if not p.name.endswith(".records.npz")]
    assert paths
    return paths


@pytest.mark.parametrize("path", recorded(), ids=lambda path: path.stem)
def test_layer_makes_what_caffe_made(path: Path, here: Path) -> None:
    case = set_up_case(path, here)
    if "mem:data" in case.arrays:
        check_memory_case(case)
    else:
        assert reference.replay(case) > 0
    for file, names in case.meta.get("h5_out", {}).items():
        with h5py.File(file) as written:
            for name in names:
                case.check("h5", 0, f"{file}:{name}", written[name][()])


def check_memory_case(case: reference.Case) -> None:
    net = caffe.Net(case.prototxt, caffe.TEST)
    assert net.blobs["label"].shape == (2,)
    net.set_input_arrays(case.arrays["mem:data"], case.arrays["mem:labels"])
    for step in range(case.meta["steps"]):
        net.forward()
        for name in ("data", "label"):
            case.check("out", step, name, net.blobs[name].data)


# -- the database --------------------------------------------------------------------------------------------


def test_records_come_in_byte_order_of_their_keys() -> None:
    write_lmdb("db", {str(i).encode(): raw(random_images(1)[0], i) for i in range(12)})
    with open_lmdb("db") as source:
        assert len(source) == 12
        assert source.keys() == sorted(str(i).encode() for i in range(12))
        assert [source.datum(i).label for i in range(4)] == [0, 1, 10, 11]
        assert [key for key, _ in source.records(9)] == [b"7", b"8", b"9"]
        assert next(source.records(3))[1] == source.value(3)


def test_database_in_one_file_and_read_only_folder(here: Path) -> None:
    images = image_lmdb(3)
    write_lmdb("one.mdb", {b"%d" % i: raw(image) for i, image in enumerate(images)}, subdir=False)
    (here / "db" / "lock.mdb").unlink()
    (here / "db").chmod(0o555)
    for path in ("db", "one.mdb"):
        with open_lmdb(path) as source:
            np.testing.assert_array_equal(array_from_datum(source.datum(2)), images[2])
    assert os.listdir("db") == ["data.mdb"]  # nothing was made there
    (here / "db").chmod(0o755)


def test_a_database_is_open_for_several_at_once_and_again_after_it_was_replaced(here: Path) -> None:
    image_lmdb(3)
    first, second = open_lmdb("db"), open_lmdb(here / "db")
    first.close()
    assert len(second.value(2)) == len(second.value(0))
    shutil.rmtree("db")
    image_lmdb(5)
    assert (len(second), len(open_lmdb("db"))) == (3, 5)


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_database_without_permission(as_nobody: None, here: Path) -> None:
    if os.geteuid() != 65534:
        image_lmdb(1)
        (here / "db" / "data.mdb").chmod(0)
    with refused(DataError, f"lmdb '{here}/db': cannot be read: Permission denied"):
        open_lmdb(here / "db")


def write(path: str, content: bytes = b"") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)


WRONG_DATABASES: dict[str, tuple[Callable[[], object], str]] = {
    "missing": (
        lambda: None,
        "No such file or directory; a relative path starts at the working folder",
    ),
    "empty folder": (
        lambda: os.mkdir("db"),
        "the folder has no data.mdb; not an LMDB",
    ),
    "LevelDB": (
        lambda: write("db/CURRENT", b"MANIFEST-000002"),
        "the folder has no data.mdb; it looks like a LevelDB",
    ),
    "text file": (
        lambda: write("db", b"hello " * 3000),
        "not an LMDB, or its first pages are damaged",
    ),
    "other data.mdb": (
        lambda: write("db/data.mdb", bytes(99)),
        "not an LMDB, or its first pages are damaged",
    ),
    "nothing in the file": (
        lambda: write("db/data.mdb"),
        "the file is empty; make the database again",
    ),
    "folder in place of the file": (
        lambda: os.makedirs("db/data.mdb"),
        "cannot be read: Is a directory",
    ),
    "no records": (
        lambda: write_lmdb("db", {}),
        "the database has no records",
    ),
}


@pytest.mark.parametrize("what", WRONG_DATABASES)
def test_wrong_database(what: str) -> None:
    make, message = WRONG_DATABASES[what]
    make()
    with refused(DataError, f"lmdb 'db': {message}"):
        build(data_text(2))


def test_database_cut_short() -> None:
    image_lmdb(40)
    size = os.path.getsize("db/data.mdb")
    for keep in (size - 1, size // 2, 2 * mmap.PAGESIZE):
        os.truncate("db/data.mdb", keep)
        message = f"lmdb 'db': the file is cut short: {keep} of {size} bytes; copy or make it again"
        with refused(DataError, message):
            build(data_text(2))


def test_damaged_pages_are_an_error() -> None:
    image_lmdb(40)
    size = os.path.getsize("db/data.mdb")
    os.truncate("db/data.mdb", 2 * mmap.PAGESIZE)
    os.truncate("db/data.mdb", size)  # zeros from the third page on
    with refused(DataError, "lmdb 'db': cannot be read: ...; the database is damaged"):
        build(data_text(2))


# -- Datum ---------------------------------------------------------------------------------------------------


def test_datum_of_array_and_back() -> None:
    image = random_images(1, (2, 3, 5))[0]
    datum = datum_from_array(image, -7)
    assert (datum.channels, datum.height, datum.width, datum.label) == (2, 3, 5, -7)
    np.testing.assert_array_equal(array_from_datum(datum), image)
    values = np.linspace(-2, 3, 30, dtype=np.float32).reshape(2, 3, 5)
    again = array_from_datum(Datum.FromString(raw(values)))
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, values)
    message = "a Datum holds uint8 or floating-point values on three axes; got int64 of shape (3,)"
    with refused(DataError, message):
        datum_from_array(np.arange(3), 0)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_encoded_datum_has_the_channels_of_the_picture_unless_forced(channels: int) -> None:
    image = random_images(1, (channels, 7, 5))[0]
    datum = Datum.FromString(encoded(image))
    np.testing.assert_array_equal(array_from_datum(datum), image)
    assert array_from_datum(datum, force_color=True).shape == (3, 7, 5)
    assert array_from_datum(datum, force_gray=True).shape == (1, 7, 5)
    with refused(DataError, "datum: cannot set both force_color and force_gray; leave one out"):
        array_from_datum(datum, force_color=True, force_gray=True)


def deep_png() -> bytes:
    return cv2.imencode(".png", np.zeros((3, 3), np.uint16))[1].tobytes()


WRONG_DATUMS: dict[str, tuple[Callable[[], bytes], str]] = {
    "not a Datum": (lambda: b"\xff" * 20, "20 bytes that are not a Datum; the record is damaged"),
    "too few bytes": (
        lambda: Datum(channels=3, height=2, width=5, data=bytes(29)).SerializeToString(),
        "a Datum of 3 x 2 x 5 that holds 29 values; the record is damaged",
    ),
    "huge": (
        lambda: Datum(channels=2**31 - 1, height=2**31 - 1, width=9, data=b"1").SerializeToString(),
        "a Datum of 2147483647 x 2147483647 x 9 that holds 1 values; the record is damaged",
    ),
    "negative": (
        lambda: Datum(channels=-1, height=-2, width=1, data=b"12").SerializeToString(),
        "a Datum of -1 x -2 x 1 that holds 2 values; the record is damaged",
    ),
    "empty": (lambda: b"", "a Datum of 0 x 0 x 0 that holds 0 values; the record is damaged"),
    "no picture": (
        lambda: Datum(data=b"nonsense", encoded=True).SerializeToString(),
        "could not decode the 8 bytes as an image; the file is damaged",
    ),
    "encoded nothing": (
        lambda: Datum(encoded=True).SerializeToString(),
        "could not decode the 0 bytes as an image; the file is damaged",
    ),
    "16 bits": (
        lambda: Datum(data=deep_png(), encoded=True).SerializeToString(),
        "Image data type must be unsigned byte; got uint16",
    ),
}


@pytest.mark.parametrize("what", WRONG_DATUMS)
@pytest.mark.parametrize("where", ["first", "later"])
def test_wrong_datum(what: str, where: str) -> None:
    make, message = WRONG_DATUMS[what]
    good = {b"%d" % i: raw(random_images(1)[0]) for i in range(4)}
    write_lmdb("db", {**good, (b"0" if where == "first" else b"3"): make()})
    with refused(DataError, f"lmdb 'db', key '{0 if where == 'first' else 3}': {message}"):
        batches(build(data_text(2)), 2)


# -- Data ----------------------------------------------------------------------------------------------------


def test_records_go_round_also_within_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    images = image_lmdb(5)
    with caplog.at_level(logging.INFO):
        layer = build(data_text(7))
        layer.prefetch = 0
        got = batches(layer, 2)
    order = [[0, 1, 2, 3, 4, 0, 1], [2, 3, 4, 0, 1, 2, 3]]
    for (data, label), want in zip(got, order, strict=True):
        assert label.tolist() == want
        np.testing.assert_array_equal(data, images[want].astype(np.float32))
    caffes = [record for record in caplog.records if hasattr(record, "caffe")]
    assert [(vars(record)["caffe"], record.getMessage()) for record in caffes] == [
        ("db_lmdb.cpp:35", "Opened lmdb db"),
        ("data_layer.cpp:45", "output data size: 7,3,11,13"),
        ("data_layer.cpp:73", "Restarting data prefetching from start."),
        ("data_layer.cpp:73", "Restarting data prefetching from start."),
    ]


def test_two_layers_of_one_database_go_their_own_ways() -> None:
    images = image_lmdb(5)
    one, other = build(data_text(2)), build(data_text(3).replace('top: "label"', ""))
    assert (one.shapes_at_setup, other.shapes_at_setup) == ([(2, 3, 11, 13), (2,)], [(3, 3, 11, 13)])
    for step in range(4):
        _, label = one.next_batch()
        assert label.tolist() == [2 * step % 5, (2 * step + 1) % 5]
        (alone,) = other.next_batch()
        np.testing.assert_array_equal(
            alone, images[[(3 * step + i) % 5 for i in range(3)]].astype(np.float32)
        )


def slow_transform(
    image: NDArray[Any],
    random: CaffeRandom,
    phase: int,
    crop: int,
    mirror: bool,
    mean: NDArray[Any],
    scale: float,
) -> NDArray[np.float32]:
    """One image, pixel by pixel, as the rules say it; `mean` has the image's size."""
    channels, height, width = image.shape
    flip = mirror and random.word() % 2 == 1
    rows, columns, top, left = (
        (crop, crop, (height - crop) // 2, (width - crop) // 2) if crop else (height, width, 0, 0)
    )
    if crop and phase == TRAIN:
        top = random.word() % (height - crop + 1)
        left = random.word() % (width - crop + 1)
    result = np.zeros((channels, rows, columns), np.float32)
    for c in range(channels):
        for y in range(rows):
            for x in range(columns):
                place = (c, top + y, left + x)
                value = (np.float32(image[place]) - np.float32(mean[place])) * np.float32(scale)
                result[c, y, columns - 1 - x if flip else x] = value
    return result


def seeds(transform_is_random: bool, seed: int) -> CaffeRandom:
    """The stream in use: the second of two seeds."""
    run = CaffeRandom(seed)
    if transform_is_random:
        run.word()
    return run.fork()


@pytest.mark.parametrize("keep", ["kept", "streamed"])
@pytest.mark.parametrize("form", ["raw", "float", "encoded"])
@pytest.mark.parametrize("phase", [TRAIN, TEST])
@pytest.mark.parametrize(
    ("crop", "mirror", "mean"),
    [(0, False, "none"), (0, True, "values"), (7, False, "value"), (7, True, "file"), (11, True, "none")],
)
def test_transformation_against_a_slow_one(
    keep: str, form: str, phase: int, crop: int, mirror: bool, mean: str
) -> None:
    images: NDArray[Any] = random_images(5, (3, 11, 13))
    if form == "float":
        images = images / np.float32(7)
    make = encoded if form == "encoded" else raw
    write_lmdb("db", {b"%d" % i: make(image, i) for i, image in enumerate(images)})
    mean_image = np.random.default_rng(1).random((3, 11, 13), np.float32) * 200
    Path("mean").write_bytes(blob_from_array(mean_image[None]).SerializeToString())
    text, subtracted = {
        "none": ("", np.zeros((3, 11, 13))),
        "value": ("mean_value: 99.5", np.full((3, 11, 13), 99.5)),
        "values": (
            "mean_value: 1 mean_value: 2.5 mean_value: 3",
            np.broadcast_to(np.array([1, 2.5, 3])[:, None, None], (3, 11, 13)),
        ),
        "file": ('mean_file: "mean"', mean_image),
    }[mean]
    transform = f"{text} crop_size: {crop} mirror: {str(mirror).lower()} scale: 0.37"
    layer = build(data_text(4, transform), phase, seed=9, budget=0 if keep == "streamed" else None)
    stream = seeds(mirror or (crop > 0 and phase == TRAIN), 9)
    for step, (data, label) in enumerate(batches(layer, 3)):
        rows = [(4 * step + i) % 5 for i in range(4)]
        assert label.tolist() == rows
        want = [slow_transform(images[row], stream, phase, crop, mirror, subtracted, 0.37) for row in rows]
        np.testing.assert_array_equal(data, np.stack(want))


def test_set_up_draws_three_words_where_something_is_random_and_one_where_nothing_is() -> None:
    image_lmdb(2)
    for transform, phase, words in (
        ("", TRAIN, 1), ("crop_size: 5", TEST, 1), ("crop_size: 5", TRAIN, 3), ("mirror: true", TEST, 3)
    ):  # fmt: skip
        layer = build(data_text(2, transform), phase, seed=4)
        run = CaffeRandom(4)
        run.words(words)
        assert layer.random.word() == run.word()


def test_images_of_several_sizes_are_cropped_to_one() -> None:
    images = [random_images(1, (3, 9 + i % 3, 12 - i))[0] for i in range(5)]
    write_lmdb("db", {b"%d" % i: raw(image) for i, image in enumerate(images)})
    layer, stream = build(data_text(3, "crop_size: 8 mirror: true"), seed=2), seeds(True, 2)
    nothing = np.zeros((3, 20, 20))
    for step, (data, _) in enumerate(batches(layer, 4)):
        rows = [(3 * step + i) % 5 for i in range(3)]
        want = [slow_transform(images[row], stream, TRAIN, 8, True, nothing, 1) for row in rows]
        np.testing.assert_array_equal(data, np.stack(want))


def test_batches_of_one_image_change_their_shape() -> None:
    sizes = [(3, 4, 5), (3, 6, 2), (3, 1, 1)]
    write_lmdb("db", {b"%d" % i: raw(random_images(1, size)[0]) for i, size in enumerate(sizes)})
    assert [data.shape for data, _ in batches(build(data_text(1)), 4)] == [
        (1, *size) for size in [*sizes, sizes[0]]
    ]


@pytest.mark.parametrize(
    ("second", "transform", "message"),
    [
        ((1, 6, 8), "", "height <= datum_height (8 vs. 6)"),
        ((1, 8, 6), "", "width <= datum_width (8 vs. 6)"),
        ((1, 9, 8), "", "datum_height == height (9 vs. 8)"),
        ((1, 8, 9), "", "datum_width == width (9 vs. 8)"),
        ((3, 8, 8), "", "channels == datum_channels (1 vs. 3)"),
        ((1, 9, 6), "crop_size: 7", "width <= datum_width (7 vs. 6)"),
    ],
)
def test_image_of_another_size(second: tuple[int, int, int], transform: str, message: str) -> None:
    write_lmdb("db", {b"a": raw(random_images(1, (1, 8, 8))[0]), b"b": raw(random_images(1, second)[0])})
    size = " x ".join(map(str, second))
    with refused(
        DataError,
        f"lmdb 'db', key 'b': {message}; its size is {size}, that of the first in the batch is 1 x 8 x 8; "
        "make all images of one size, or use batch_size 1",
    ):
        build(data_text(2, transform)).next_batch()


def test_encoded_image_of_another_size_is_called_img() -> None:
    write_lmdb(
        "db", {b"a": encoded(random_images(1, (3, 8, 8))[0]), b"b": encoded(random_images(1, (3, 6, 8))[0])}
    )
    with refused(DataError, "lmdb 'db', key 'b': height <= img_height (8 vs. 6); ..."):
        build(data_text(2)).next_batch()


def test_force_color_is_for_encoded_datums(caplog: pytest.LogCaptureFixture) -> None:
    image_lmdb(3)
    build(data_text(2, "force_color: true"))
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == [
        "force_color and force_gray only for encoded datum",
    ]


# The layer with a place in its message and one in transform_param, what goes there, what is said.
PASSES_OVER = [
    ('''type: "Data" top: "data" top: "label" transform_param {{ {1} }}
        data_param {{ source: "db" batch_size: 2 backend: LMDB {0} }}''',
     "mirror: true scale: 0.5 force_encoded_color: true rand_skip: 5", "",
     ["data_param.scale (write transform_param { scale: ... })",
      "data_param.mirror (write transform_param { mirror: ... })",
      "data_param.force_encoded_color (write transform_param { force_color: ... })",
      "data_param.rand_skip"]),
    ('''type: "ImageData" top: "data" top: "label" transform_param {{ {1} }}
        image_data_param {{ source: "list.txt" {0} }}''',
     'scale: 2 crop_size: 4 mean_file: "no_such_file"', "force_gray: true",
     ["image_data_param.scale (write transform_param { scale: ... })",
      "image_data_param.mean_file (write transform_param { mean_file: ... })",
      "image_data_param.crop_size (write transform_param { crop_size: ... })",
      "transform_param.force_gray (write image_data_param { is_color: ... })"]),
    ('''type: "WindowData" top: "data" top: "label" transform_param {{ crop_size: 6 {1} }}
        window_data_param {{ source: "windows.txt" batch_size: 5 {0} }}''',
     "crop_size: 3 mirror: true", "scale: 2 force_color: true",
     ["window_data_param.crop_size (write transform_param { crop_size: ... })",
      "window_data_param.mirror (write transform_param { mirror: ... })",
      "transform_param.scale (write window_data_param { scale: ... })",
      "transform_param.force_color"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "fields", "transform", "leftovers"), PASSES_OVER)
def test_what_caffe_passes_over_does_nothing(
    text: str, fields: str, transform: str, leftovers: list[str]
) -> None:
    image_lmdb(2)
    write_windows()
    plain, layer = build(text.format("", "")), build(text.format(fields, transform))
    assert (plain.leftovers, layer.leftovers) == ([], leftovers)
    for got, want in zip(layer.next_batch(), plain.next_batch(), strict=True):
        np.testing.assert_array_equal(got, want)


# -- ahead of the net, and on again after a stop -------------------------------------------------------------


def write_pictures(n: int, size: tuple[int, int, int] = (3, 9, 8)) -> NDArray[np.uint8]:
    """p0.png ... and list.txt, the labels 10, 11, ..."""
    images = random_images(n, size)
    for i, image in enumerate(images):
        cv2.imwrite(f"p{i}.png", image.transpose(1, 2, 0))
    write("list.txt", b"".join(b"p%d.png %d\n" % (i, i + 10) for i in range(n)))
    return images


def write_windows() -> None:
    write_pictures(2)
    lines = ["# 0 p0.png 3 9 8 3", "2 0.9 0 0 3 3", "1 0.6 1 2 7 6", "0 0.1 0 4 6 8",
             "# 1 p1.png 3 9 8 2", "1 0.5 2 2 5 5", "3 0.2 1 1 2 7"]  # fmt: skip
    write("windows.txt", "\n".join(lines).encode())


def window_text(transform: str = "crop_size: 6", window: str = "") -> str:
    return (
        f'type: "WindowData" top: "data" top: "label" transform_param {{ {transform} }} '
        f'window_data_param {{ source: "windows.txt" batch_size: 5 {window} }}'
    )


def image_text(image: str, transform: str = "") -> str:
    return (
        f'type: "ImageData" top: "data" top: "label" transform_param {{ {transform} }} '
        f'image_data_param {{ source: "list.txt" {image} }}'
    )


def write_hdf5() -> None:
    for name, rows in (("a.h5", 4), ("b.h5", 3)):
        with h5py.File(name, "w") as file:
            file["data"] = np.arange(rows * 2).reshape(rows, 2) + (100 if name == "b.h5" else 0)
            file["label"] = np.arange(rows)
    write("list.txt", b"a.h5\nb.h5\n")


def hdf5_text(more: str = "") -> str:
    return (
        'type: "HDF5Data" top: "data" top: "label" '
        f'hdf5_data_param {{ source: "list.txt" batch_size: 3 {more} }}'
    )


RESUMABLE: dict[str, tuple[Callable[[], object], str]] = {
    "Data": (lambda: image_lmdb(7), data_text(3, "crop_size: 5 mirror: true")),
    "ImageData": (
        lambda: write_pictures(7),
        image_text("batch_size: 3 shuffle: true", "mirror: true crop_size: 5"),
    ),
    "WindowData": (write_windows, window_text("crop_size: 6 mirror: true")),
    "HDF5Data": (write_hdf5, hdf5_text("shuffle: true")),
}


@pytest.mark.parametrize("kind", RESUMABLE)
def test_a_saved_state_goes_on_as_if_nothing_had_been(kind: str) -> None:
    make, text = RESUMABLE[kind]
    make()
    straight = batches(build(text, seed=3), 9)
    first = build(text, seed=3)
    assert_same(batches(first, 4), straight[:4])
    state = first.get_state()
    resumed = build(text, seed=77)
    resumed.next_batch()
    resumed.set_state(state)
    assert_same(batches(resumed, 5), straight[4:])
    batches(first, 2)
    first.set_state(state)
    assert_same(batches(first, 5), straight[4:])


@pytest.mark.parametrize("kind", ["Data", "ImageData", "WindowData"])
def test_how_far_ahead_batches_are_made_changes_nothing(kind: str) -> None:
    make, text = RESUMABLE[kind]
    make()
    runs, states = [], []
    for ahead in (0, 1, 4):
        layer = build(text, seed=3)
        layer.prefetch = ahead
        runs.append(batches(layer, 6))
        states.append(layer.get_state())
        if ahead:
            layer.prefetch = 0  # what waits is handed out first
            runs[-1] += batches(layer, 6)
        else:
            runs[-1] += batches(layer, 6)
        layer.close()
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])
    for state in states:
        assert {k: np.asarray(v).tolist() for k, v in state.items()} == {
            k: np.asarray(v).tolist() for k, v in states[0].items()
        }


def test_the_state_of_another_layer_or_database_is_refused() -> None:
    image_lmdb(4)
    image_lmdb(5, "five")
    layer = build(data_text(2))
    with refused(
        SnapshotError,
        "layer 'data' (Data): the saved state holds x, expected index, records, transformer; "
        "the snapshot is of another net",
    ):
        layer.set_state({"x": 1})
    with refused(
        SnapshotError,
        "database 'db' has 4 records; it had 5 when the snapshot was made; use the same database",
    ):
        layer.set_state(build(data_text(2, source="five")).get_state())


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch alone")]


def test_the_thread_starts_with_the_first_batch_and_ends_with_the_layer() -> None:
    image_lmdb(4)
    layer = build('name: "alone" ' + data_text(2))
    assert prefetch_threads() == []
    layer.next_batch()
    (thread,) = prefetch_threads()
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
    assert gone() is None
    layer = build('name: "alone" ' + data_text(2))
    layer.next_batch()
    layer.close()
    assert prefetch_threads() == []


@pytest.mark.parametrize("ahead", [0, 4])
@pytest.mark.parametrize("order", ["SEQUENTIAL", "SHUFFLED"])
def test_an_error_comes_with_its_batch_again_and_again(order: str, ahead: int) -> None:
    records = {b"%d" % i: raw(random_images(1)[0], i) for i in range(6)}
    write_lmdb("db", {**records, b"4": b"\xff" * 9})
    layer = build(data_text(1) + f"data_order_param {{ order: {order} }}")
    layer.prefetch = ahead
    rows = CaffeRandom(1).fork().shuffle(6).tolist() if order == "SHUFFLED" else range(6)
    before = rows.index(4)
    assert [label.tolist() for _, label in batches(layer, before)] == [[row] for row in rows[:before]]
    state = layer.get_state()
    for _ in range(2):
        with refused(DataError, "lmdb 'db', key '4': 9 bytes that are not a Datum; the record is damaged"):
            layer.next_batch()
    assert layer.get_state() == state


# -- ImageData -----------------------------------------------------------------------------------------------


def test_image_list_is_read_as_caffe_reads_it(here: Path) -> None:
    images = write_pictures(3)
    (here / "sub").mkdir()
    shutil.move("p0.png", "sub/a b.png")
    shutil.move("p1.png", "sub/c.png")
    shutil.move("p2.png", "sub/alone.png")
    write("list.txt", b"/a b.png 12ab\n/c.png -3\r\n/alone.png")
    layer = build(image_text(f'batch_size: 3 root_folder: "{here}/sub"'))
    ((data, label),) = batches(layer, 1)
    assert label.tolist() == [12, -3, 0]
    np.testing.assert_array_equal(data, images.astype(np.float32))


def test_gray_and_resized_pictures() -> None:
    images = write_pictures(2)
    ((gray, _),) = batches(build(image_text("batch_size: 2 is_color: false new_height: 5 new_width: 4")), 1)
    for i in range(2):
        picture = cv2.imread(f"p{i}.png", cv2.IMREAD_GRAYSCALE)
        assert picture is not None
        want = cv2.resize(picture, (4, 5))
        np.testing.assert_array_equal(gray[i, 0], want.astype(np.float32))
    cv2.imwrite("p0.png", images[0, 0])
    ((colour, _),) = batches(build(image_text("batch_size: 1")), 1)
    np.testing.assert_array_equal(colour[0], np.broadcast_to(images[0, 0], (3, 9, 8)))


def test_shuffle_starts_from_the_order_of_before_and_the_skip_comes_once() -> None:
    write_pictures(5)
    run = CaffeRandom(6)
    shuffler = run.fork()
    skip = run.modulo(4)
    order, want = list(range(5)), []
    for _ in range(4):
        shuffled = shuffler.shuffle(5)
        order = [order[i] for i in shuffled]
        want += order
    layer = build(image_text("batch_size: 4 shuffle: true rand_skip: 4"), seed=6)
    got = [int(label) - 10 for _, labels in batches(layer, 4) for label in labels]
    assert got == want[skip : skip + 16]


def test_picture_of_another_size() -> None:
    write_pictures(2)
    cv2.imwrite("p1.png", np.zeros((5, 8, 3), np.uint8))
    with refused(DataError, "p1.png: height <= img_height (9 vs. 5); its size is 3 x 5 x 8, that of ..."):
        build(image_text("batch_size: 2")).next_batch()


# -- WindowData ----------------------------------------------------------------------------------------------


def test_context_and_square_windows() -> None:
    cv2.imwrite("p0.png", np.full((8, 8, 3), 200, np.uint8))
    write("windows.txt", b"# 0 p0.png 3 8 8 2  1 0.9 0 0 3 3  0 0 0 0 3 3")
    # Twice the window is rows and columns -2..6, of which 0..6 are there: 2 / 9 and 7 / 9 of 8 pixels.
    layer = build(window_text("crop_size: 8", "context_pad: 2 fg_fraction: 0.5 scale: 0.5"))
    ((data, label),) = batches(layer, 1)
    want = np.zeros((3, 8, 8))
    want[:, 2:, 2:] = 100
    np.testing.assert_array_equal(data, np.broadcast_to(want, (5, 3, 8, 8)))
    assert label.tolist() == [0, 0, 0, 1, 1]
    layer = build(window_text("crop_size: 8 mirror: true", "context_pad: 2 scale: 0.5"), seed=2)
    run = CaffeRandom(2)
    run.word()
    draws = run.fork()
    ((data, _),) = batches(layer, 1)
    flips = [bool(draws.words(2)[1] % 2) for _ in range(5)]
    assert sorted(set(flips)) == [False, True]
    mirrored = np.zeros((3, 8, 8))
    mirrored[:, 2:, :6] = 100  # what is left out on the right, nothing, comes first
    np.testing.assert_array_equal(data, np.stack([mirrored if flip else want for flip in flips]))
    write("windows.txt", b"# 0 p0.png 3 8 8 2  1 0.9 2 2 3 7  0 0 2 2 3 7")
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, 0::2] = 90
    cv2.imwrite("p0.png", picture)
    ((square, _),) = batches(build(window_text("crop_size: 6", 'crop_mode: "square"')), 1)
    # 2 x 6 becomes 6 x 6 around (3, 5): columns 0..6 and rows 2..8, the last of which is outside.
    want = np.zeros((6, 6, 3), np.float32)
    want[:5] = cv2.resize(picture[2:8, 0:7], (6, 5))
    np.testing.assert_array_equal(square[0], want.transpose(2, 0, 1))


def test_a_window_border_of_half_a_pixel_is_rounded_as_in_the_recording() -> None:
    """2.5 - 1.5 * (8 / 6) is 0.5 with two roundings, and a little less with one, as x1 has."""
    window = Window(image=0, label=1, overlap=1.0, x1=1, y1=1, x2=3, y2=3)
    place = place_with_context(window, height=20, width=20, crop=8, context_pad=1, square=False)
    assert (place.x1, place.y1, place.x2, place.y2) == (0, 1, 5, 5)


def test_window_means() -> None:
    write_windows()
    mean = np.random.default_rng(0).random((1, 3, 10, 10), np.float32)
    write("mean", blob_from_array(mean).SerializeToString())
    ((plain, _),) = batches(build(window_text()), 1)
    ((cached, _),) = batches(build(window_text("crop_size: 6", "cache_images: true")), 1)
    np.testing.assert_array_equal(cached, plain)
    ((less, _),) = batches(build(window_text('crop_size: 6 mean_file: "mean"', "scale: 2")), 1)
    np.testing.assert_array_equal(less, (plain - mean[:, :, 2:8, 2:8]) * np.float32(2))


GOOD_WINDOWS = "# 0 p0.png 3 9 8 2  1 0.9 0 0 3 3  0 0 0 0 3 3"
FILE = "window file 'windows.txt'"
WRONG_WINDOWS = {
    " \n": f"{FILE}: Window file is empty",
    "0 p0.png": f"{FILE}, image 0: expected #, got 0",
    "# 1 p0.png": f"{FILE}: expected index 0, got 1; count from 0",
    "# 0 p0.png 3 x": f"{FILE}, image 0: expected height, got x",
    "# 0 p0.png 1": f"{FILE}, image 0: channels must be 3, got 1",
    GOOD_WINDOWS[:-2]: f"{FILE}, image 0: expected y2, got the end of the file",
    GOOD_WINDOWS.replace("1 0.9", "0 0.9"): f"{FILE}: label > 0 (0 vs. 0) of a foreground window",
    GOOD_WINDOWS.replace(
        "0 0 3 3", "0 0 8 3"
    ): "p0.png: the window of columns 0 to 8, rows 0 to 3 lies outside the image, which is 8 wide and 9 high",
    GOOD_WINDOWS.replace("p0", "no"): "Could not load no.png: No such file or directory; mend the list, or "
    "root_folder",
}


@pytest.mark.parametrize("content", WRONG_WINDOWS)
def test_wrong_windows(content: str) -> None:
    write_pictures(1)
    write("windows.txt", content.encode())
    with refused(DataError, WRONG_WINDOWS[content]):
        build(window_text()).next_batch()


# -- HDF5 ----------------------------------------------------------------------------------------------------


def test_rand_of_the_c_library() -> None:
    rand = GlibcRand(1)
    assert [rand.draw() for _ in range(5)] == [1804289383, 846930886, 1681692777, 1714636915, 1957747793]


def test_hdf5_shuffle_draws_as_caffe() -> None:
    write_hdf5()
    rand = GlibcRand(1)

    def shuffle(items: list[int]) -> list[int]:
        for i in range(1, len(items)):
            j = rand.draw() % (i + 1)
            items[i], items[j] = items[j], items[i]
        return items

    rows = {0: 4, 1: 3}
    files, want = shuffle([0, 1]), []
    order = shuffle(list(range(rows[files[0]])))
    for number in range(6):
        want += [files[number % 2] * 100 + 2 * row for row in order]
        if number % 2 == 1:
            shuffle(files)
        order = shuffle(list(range(rows[files[(number + 1) % 2]])))  # when the file is read,
        shuffle(order)  # and again
    got = [row[0] for data, _ in batches(build(hdf5_text("shuffle: true")), 7) for row in data.tolist()]
    assert got == want[:21]


ROWS = np.zeros((2, 3), np.float32)
WRONG_HDF5: list[tuple[dict[str, Any], str]] = [
    ({"data": ROWS}, "Failed to find HDF5 dataset label in 'a.h5'; it has data"),
    ({"data": ROWS, "label": b"ab"}, "HDF5 file 'a.h5', label: Unsupported datatype class: H5T_STRING"),
    (
        {"data": ROWS, "label": 3.0},
        "HDF5 file 'a.h5', label: Input must have at least 1 axis.; it is a single number",
    ),
    (
        {"data": ROWS, "label": ROWS[:1]},
        "HDF5 file 'a.h5': expected the same number of rows, at least 1, of each; got data 2, label 1",
    ),
    (
        {"data": ROWS[:0], "label": ROWS[:0]},
        "HDF5 file 'a.h5': expected the same number of rows, at least 1, of each; got data 0, label 0",
    ),
    (
        {"data": ROWS, "label": ROWS},
        "HDF5 file 'b.h5': rows of shape [(2,), ()]; those of the first file have [(3,), (3,)]",
    ),
]


@pytest.mark.parametrize(("sets", "message"), WRONG_HDF5)
def test_wrong_hdf5(sets: dict[str, Any], message: str) -> None:
    write_hdf5()
    with h5py.File("a.h5", "w") as file:
        for name, values in sets.items():
            file[name] = values
    with refused(DataError, message):
        batches(build(hdf5_text()), 2)


OUT = "layer 'out' (HDF5Output): "


def hdf5_output(file_name: str) -> Layer:
    param = parse_text(
        'name: "out" type: "HDF5Output" bottom: "a" bottom: "b" '
        f'hdf5_output_param {{ file_name: "{file_name}" }}',
        LayerParameter, "<test>",
    )  # fmt: skip
    layer = layer_class("HDF5Output")(param)
    layer.build([(2, 3), (2,)], Run(CaffeRandom(1)))
    return layer


def test_hdf5_output_writes_once_and_whole() -> None:
    layer = hdf5_output("out.h5")
    with h5py.File("out.h5") as file:
        assert list(file) == []
    data, label = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)
    assert layer(Tensor(data), Tensor(label)) == ()
    with h5py.File("out.h5") as file:
        np.testing.assert_array_equal(file["data"], data[:, :, None, None])
        assert file["label"].shape == (2, 1, 1, 1)
    assert os.listdir() == ["out.h5"]
    with refused(LayerError, f"{OUT}'out.h5' holds a batch already; HDF5Output writes one forward pass"):
        layer(Tensor(data), Tensor(label))


def test_hdf5_output_that_cannot_be() -> None:
    with refused(ImaeError, "cannot write 'no/out.h5': there is no folder '...no'"):
        hdf5_output("no/out.h5")
    Path("notes.txt").write_text("mine")
    for name in ("notes.txt", os.path.abspath("notes.txt")):
        with refused(
            LayerError, f"{OUT}'{name}' exists and is no HDF5 file; remove it, or choose another file_name"
        ):
            hdf5_output(name)
    assert Path("notes.txt").read_text() == "mine"
    with refused(LayerError, OUT + "hdf5_output_param.file_name is not set"):
        hdf5_output("")
    with refused(LayerError, OUT + "data blob and label blob must have the same batch size; got 2 and 3"):
        hdf5_output("out.h5")(Tensor(np.zeros((2, 3))), Tensor(np.zeros(3)))
    with refused(LayerError, OUT + "blobs of 1 to 4 axes can be written; got shape (1, 1, 1, 1, 1)"):
        hdf5_output("out.h5")(Tensor(np.zeros((1, 1, 1, 1, 1))), Tensor(np.zeros(1)))


# -- MemoryData, Input, DummyData ----------------------------------------------------------------------------


MEMORY = "layer 'data' (MemoryData): "


def memory_layer(transform: str = "") -> MemoryData:
    layer = build(
        f'type: "MemoryData" top: "data" top: "label" {transform} '
        "memory_data_param { batch_size: 2 channels: 3 height: 5 width: 5 }"
    )
    assert isinstance(layer, MemoryData)
    return layer


def test_memory_arrays_are_used_as_they_are_and_state_is_a_place_in_them() -> None:
    layer = memory_layer()
    data, labels = np.random.default_rng(0).random((6, 3, 5, 5), np.float32), np.arange(6, dtype=np.float32)
    layer.reset(data, labels)
    layer.next_batch()
    data[2] = 7
    state = layer.get_state()
    want = batches(layer, 3)
    assert (want[0][0][0] == 7).all()
    assert [label.ravel().tolist() for _, label in want] == [[2, 3], [4, 5], [0, 1]]
    other = memory_layer()
    with refused(SnapshotError, MEMORY + "give it the arrays of the saved run first"):
        other.set_state(state)
    other.reset(data, labels[:, None, None, None])
    other.set_state(state)
    assert_same(batches(other, 3), want)


def test_memory_images_are_transformed(caplog: pytest.LogCaptureFixture) -> None:
    images = random_images(4, (3, 7, 8))
    layer = memory_layer("transform_param { crop_size: 5 mirror: true scale: 0.5 }")
    run = CaffeRandom(1)
    stream = run.fork()
    layer.add(list(images), [3, 4, 5, 6])
    with refused(LayerError, MEMORY + "Can't add data until current data has been consumed."):
        layer.add(list(images), [3, 4, 5, 6])
    got = batches(layer, 2)
    want = [slow_transform(image, stream, TRAIN, 5, True, np.zeros((3, 7, 8)), 0.5) for image in images]
    np.testing.assert_array_equal(np.concatenate([data for data, _ in got]), np.stack(want))
    assert layer.random.word() == run.word()
    layer.add(list(images), [3, 4, 5, 6])
    assert not caplog.records
    layer.reset(np.zeros((2, 3, 5, 5), np.float32), np.zeros(2, np.float32))
    assert [record.getMessage() for record in caplog.records] == [
        "MemoryData does not transform array data on Reset()"
    ]


GOOD, LABELS = np.zeros((4, 3, 5, 5), np.float32), np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (GOOD.astype(np.float64), LABELS, "data array must be float32 and C contiguous; got float64"),
        (
            GOOD.transpose(0, 1, 3, 2)[..., ::2],
            LABELS,
            "data array must be float32 and C contiguous; got float32",
        ),
        (GOOD, np.zeros(4, np.int64), "labels array must be float32 and C contiguous; got int64"),
        (GOOD[:, :2].copy(), LABELS, "data array must be (N, 3, 5, 5); got (4, 2, 5, 5)"),
        (GOOD, LABELS[:3], "labels array must be (4,); got (3,)"),
        (GOOD[:3], LABELS[:3], "n must be a multiple of batch size; got 3 for 2"),
        (GOOD[:0], LABELS[:0], "n must be a multiple of batch size; got 0 for 2"),
    ],
)
def test_wrong_memory_arrays(data: NDArray[Any], labels: NDArray[Any], message: str) -> None:
    with refused(LayerError, MEMORY + message):
        memory_layer().set_input_arrays(data, labels)


def test_memory_layer_without_data() -> None:
    message = "MemoryDataLayer needs to be initialized by calling Reset; call set_input_arrays"
    with refused(LayerError, MEMORY + message):
        memory_layer().next_batch()
    with refused(LayerError, MEMORY + "There is no datum to add."):
        memory_layer().add([], [])


SHAPE, OTHER = "shape { dim: 2 dim: 3 }", "shape { dim: 4 }"


def test_shapes_of_input_and_dummy_data() -> None:
    two = 'top: "a" top: "b"'
    assert build(f'type: "Input" {two} input_param {{ {SHAPE} }}').shapes_at_setup == [(2, 3), (2, 3)]
    assert build(f'type: "Input" {two} input_param {{ {SHAPE} {OTHER} }}').shapes_at_setup == [(2, 3), (4,)]
    assert build('type: "Input" top: "a"').shapes_at_setup == [()]
    assert build(f'type: "DummyData" {two} dummy_data_param {{ {SHAPE} {OTHER} }}').shapes_at_setup == [
        (2, 3),
        (4,),
    ]
    legacy = "num: 2 num: 5 channels: 1 height: 3 width: 4"
    layer = build(f'type: "DummyData" {two} dummy_data_param {{ {legacy} }}')
    assert layer.shapes_at_setup == [(2, 1, 3, 4), (5, 1, 3, 4)]
    assert [top.abs().max() for top in layer()] == [0, 0]


def test_dummy_data_draws_when_its_turn_comes_and_never_for_constants() -> None:
    filler = 'data_filler { type: "uniform" min: 1 max: 2 }'
    layer = build(
        'type: "DummyData" top: "a" top: "b" '
        f"dummy_data_param {{ {SHAPE} {filler} data_filler {{ value: 3 }} }}"
    )
    run = CaffeRandom(1)
    for _ in range(2):
        a, b = layer()
        np.testing.assert_array_equal(a, run.uniform(6, 1, 2).reshape(2, 3))
        np.testing.assert_array_equal(b, np.full((2, 3), 3, np.float32))
    assert layer.double()()[0].dtype == layer()[1].dtype != a.dtype


# -- refusals ------------------------------------------------------------------------------------------------


def refusals() -> dict[str, tuple[str, str]]:
    """(layer, message) by what is wrong."""
    _, *blocks = (CASES / "refused.txt").read_text().strip().split("\n\n")
    assert blocks
    cases = [block.split("\n") for block in blocks]
    assert len({name for name, *_ in cases}) == len(cases)
    return {name: (layer, message) for name, layer, message in cases}


@pytest.mark.parametrize("what", refusals())
def test_wrong_layer_is_refused(what: str) -> None:
    image_lmdb(2)
    write_windows()
    mean = blob_from_array(np.zeros((1, 3, 11, 12), np.float32))
    write("mean", mean.SerializeToString())
    mean.ClearField("data")
    write("hollow", mean.SerializeToString())
    write("three", blob_from_array(np.zeros((3, 11, 13), np.float32)).SerializeToString())
    write("empty.txt")
    write("broken.txt", b"list.txt 1\n")
    layer, message = refusals()[what]
    with refused(ImaeError, message):
        build(layer)
