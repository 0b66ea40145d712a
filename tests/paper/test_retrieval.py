"""Retrieval by the rules of MARS: the protocol's files, the measures beside a slow way, the commands.

The tests of the benchmark's own protocol run where the environment variable IMAE_MARS names the folder of its
tracks_train_info.mat, tracks_test_info.mat and query_IDX.mat (github.com/liangzheng06/MARS-evaluation).
"""

from __future__ import annotations

import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import pytest
import torch
from mars_protocol import mars_folder
from numpy.typing import NDArray
from reference import CASES
from tolerances import tolerance

from imae.cli.main import main
from imae.files.errors import DataError
from imae.files.mat_file import read_mat
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.lmdb_source import open_lmdb
from imae.layers.run import Run
from imae.net.net import Net
from imae.net.weights import save_caffemodel
from imae.paper.mars import read_part, read_test_protocol
from imae.paper.results_files import mars_results
from imae.paper.retrieval import (
    Features,
    Retrieval,
    Tracklets,
    average_tracklets,
    evaluate,
    read_queries,
    read_tracklets,
)
from imae.prototxt.text import read_net

MATS = CASES / "mars"
RTOL, ATOL, _ = tolerance("formula", "float64")

Row = tuple[int, int, int, int]  # first image, last image, person, camera


# -- MATLAB's files ------------------------------------------------------------------------------------------


def write_mat(path: Path, name: str, matrix: NDArray[Any], order: str = "<", deflate: bool = True) -> None:
    """A matrix in a MAT-file of version 5; numbers of 32 bits as int32, others as double."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)

    whole = matrix.dtype == np.int32
    content = element(
        14,
        element(6, struct.pack(f"{order}II", 12 if whole else 6, 0))
        + element(5, struct.pack(f"{order}{matrix.ndim}i", *matrix.shape))
        + element(1, name.encode())
        + element(5 if whole else 9, matrix.astype(order + ("i4" if whole else "f8")).tobytes("F")),
    )
    if deflate:
        packed = zlib.compress(content)
        content = struct.pack(f"{order}II", 15, len(packed)) + packed
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}HH", 0x100, 0x4D49)
    path.write_bytes(header + content)


@pytest.mark.parametrize("name", ["plain.mat", "deflated.mat"])
def test_mat_files(name: str) -> None:
    rows = read_mat(MATS / name, "track_test_info")
    assert rows.tolist() == [[1, 3, -1, 1], [4, 300, 0, 2], [301, 70000, 2, 6]]
    assert read_mat(MATS / name, "before").tolist() == [[0.5, -2]]
    assert read_mat(MATS / name, "query_IDX").tolist() == [[3]]
    for other in ("text", "half", "parts"):
        with pytest.raises(
            DataError, match=f"{name}' is damaged, or its {other} is no matrix of real numbers"
        ):
            read_mat(MATS / name, other)
    with pytest.raises(
        DataError, match=f"{name}' has no matrix rows; it has before, track_test_info, query_IDX"
    ):
        read_mat(MATS / name, "rows")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [True, False])
def test_mat_files_of_both_byte_orders(tmp_path: Path, order: str, deflate: bool) -> None:
    for matrix in (np.arange(30, dtype=np.int32).reshape(2, 3, 5), np.zeros((0, 4)), np.array([[np.pi]])):
        write_mat(tmp_path / "x.mat", "x", matrix, order, deflate)
        got = read_mat(tmp_path / "x.mat", "x")
        assert got.shape == matrix.shape and np.array_equal(got, matrix)


def test_damaged_mat_files(tmp_path: Path) -> None:
    """A bit flipped in every byte, every place where the file can end: a matrix or a DataError."""
    refused = 0
    path = tmp_path / "x.mat"
    write_mat(path, "x", np.arange(6, dtype=np.int32).reshape(2, 3), deflate=False)
    whole = path.read_bytes()
    flipped = [
        whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        for place in range(124, len(whole))
    ]
    for damaged in [*flipped, *(whole[:size] for size in range(len(whole)))]:
        path.write_bytes(damaged)
        try:
            assert read_mat(path, "x").size == 6
        except DataError:
            refused += 1
    assert refused > len(whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*x.mat': No such file or directory"),
        (b"", "is no MAT-file of version 5; make it with MATLAB's save -v7"),
        (bytes(124) + b"\0\2IM", "is no MAT-file of version 5"),  # -v7.3
        (bytes(124) + b"\0\1IM", "has no matrix x; it has none"),
        (bytes(124) + b"\0\1IM" + struct.pack("<II", 15, 4) + b"abcd", "is damaged, or its x is no matrix"),
        (bytes(124) + b"\0\1IM" + struct.pack("<II", 14, 99), "an element of 99 bytes where 0 are left"),
    ],
)
def test_what_is_no_mat_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_mat(tmp_path / "x.mat", "x")


def test_a_matrix_that_unpacks_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imae.files.mat_file.LARGEST", 1000)
    packed = zlib.compress(bytes(1001))
    (tmp_path / "x.mat").write_bytes(bytes(124) + b"\0\1IM" + struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(DataError, match="a deflated matrix is cut short, or larger than any of ours"):
        read_mat(tmp_path / "x.mat", "x")


# -- the measures, one query at a time -----------------------------------------------------------------------


class Slow:
    """The rules word by word, query after query; the means are over those that have a good tracklet."""

    def __init__(self, features: Features, rows: Sequence[Row], queries: Sequence[int], gallery: str) -> None:
        self.aps: dict[str, list[float]] = {"trapezoid": [], "step": []}
        self.ranks: list[int] = []
        self.without_good = 0
        units = features.astype(np.float64)
        units /= np.sqrt((units * units).sum(1, keepdims=True))
        searched = [t for t in range(len(rows)) if gallery == "all" or t not in set(queries)]
        units_searched = units[searched]
        for query in queries:
            # Row by row, so that equal rows have equal sums.
            distance = (-np.einsum("td,d->t", units_searched, units[query])).tolist()
            order = sorted(range(len(searched)), key=distance.__getitem__)  # a stable sort
            self._one_query(rows[query], [rows[searched[place]] for place in order])

    def _one_query(self, query: Row, ranked: list[Row]) -> None:
        _, _, person, camera = query
        goods = sum(row[2] == person and row[3] != camera for row in ranked)
        if not goods:
            self.without_good += 1
            return
        old_recall, old_precision, rank, found = 0.0, 1.0, 0, 0
        trapezoid = step = 0.0
        for _, _, other, other_camera in ranked:
            if other == -1 or (other == person and other_camera == camera):
                continue
            rank += 1
            if other == person:
                found += 1
                if found == 1:
                    self.ranks.append(rank)
            recall, precision = found / goods, found / rank
            trapezoid += (recall - old_recall) * (old_precision + precision) / 2
            step += (recall - old_recall) * precision
            old_recall, old_precision = recall, precision
            if found == goods:
                break
        self.aps["trapezoid"].append(trapezoid)
        self.aps["step"].append(step)

    def mean_ap(self, rule: str) -> float:
        return sum(self.aps[rule]) / len(self.aps[rule])

    def cmc(self, k: int) -> float:
        return sum(rank <= k for rank in self.ranks) / len(self.ranks)

    def check(self, got: Retrieval, rule: str) -> None:
        counted = got.rank > 0
        assert (got.counted, int((~counted).sum())) == (len(self.ranks), self.without_good)
        assert got.rank[counted].tolist() == self.ranks
        assert np.isnan(got.ap[~counted]).all()
        np.testing.assert_allclose(got.ap[counted], self.aps[rule], RTOL, ATOL)
        assert got.mean_ap == pytest.approx(self.mean_ap(rule), rel=RTOL)
        for k in (1, 5, 10, 20, 1000):
            assert got.cmc(k) == self.cmc(k)


def as_tracklets(rows: Sequence[Row]) -> Tracklets:
    first, last, person, camera = np.array(rows, np.int64).T
    return Tracklets(first - 1, last, person, camera)


def some_protocol(seed: int, persons: int = 30) -> tuple[list[Row], list[int]]:
    """A protocol as MARS' own: junk, distractors, then persons; one query for each person and camera."""
    random = np.random.default_rng(seed)
    shown = [(-1, int(random.integers(1, 7))) for _ in range(25)] + [(0, int(random.integers(1, 7)))] * 60
    for person in range(2, 2 * persons, 2):
        shown += sorted((person, int(camera)) for camera in random.integers(1, 7, random.integers(1, 9)))
    lengths = random.integers(1, 6, len(shown))
    last = np.cumsum(lengths)
    rows = [(int(e - n + 1), int(e), *s) for s, e, n in zip(shown, last, lengths, strict=True)]
    of_query: dict[tuple[int, int], int] = {}
    for t, row in enumerate(rows):
        if row[2] > 0:
            of_query.setdefault(row[2:], t)
    return rows, sorted(of_query.values())


@pytest.mark.parametrize("gallery", ["rest", "all"])
@pytest.mark.parametrize("rule", ["trapezoid", "step"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_measures_are_those_of_the_slow_way(seed: int, rule: Any, gallery: Any) -> None:
    rows, queries = some_protocol(seed)
    random = np.random.default_rng(seed)
    of_person = random.standard_normal((100, 13))
    persons = [row[2] for row in rows]
    features = (random.standard_normal((len(rows), 13)) + 0.5 * of_person[persons]).astype(np.float32)
    slow = Slow(features, rows, queries, gallery)
    assert slow.without_good > 0 and len(slow.ranks) > 30
    for at_once in (1, 7, 1000):
        got = evaluate(features, as_tracklets(rows), np.array(queries), rule, gallery, at_once)
        slow.check(got, rule)
        assert got.gallery == len(rows) - (len(queries) if gallery == "rest" else 0)
    assert slow.mean_ap("step") != slow.mean_ap("trapezoid")


@pytest.mark.parametrize("kinds", [1, 2, 5])
def test_equal_similarities_keep_the_order_of_the_rows(kinds: int) -> None:
    rows, queries = some_protocol(4)
    random = np.random.default_rng(kinds)
    features = random.standard_normal((kinds, 37)).astype(np.float32)[random.integers(0, kinds, len(rows))]
    features[:, 0] = np.where(random.integers(0, 2, len(rows)), 0, np.float32(-0.0))
    for gallery in ("rest", "all"):
        slow = Slow(features, rows, queries, gallery)
        slow.check(evaluate(features, as_tracklets(rows), np.array(queries), "step", gallery), "step")  # type: ignore[arg-type]  # a str


def directions(*degrees: float) -> Features:
    """Features in these directions from the query's; the lengths must not matter."""
    angle = np.deg2rad(degrees)
    return (np.stack([np.cos(angle), np.sin(angle)], 1) * np.arange(1, len(degrees) + 1)[:, None]).astype(
        "f4"
    )


def one_query(*shown: tuple[int, int]) -> Callable[[str], Retrieval]:
    """Person 2 in camera 1 is asked for; the others follow in the order of their similarity."""
    rows = as_tracklets([(t + 1, t + 1, *s) for t, s in enumerate([(2, 1), *shown])])
    features = directions(*range(len(shown) + 1))
    return lambda rule: evaluate(features, rows, np.array([0]), rule)  # type: ignore[arg-type]  # a str


def test_precision_and_recall_by_hand() -> None:
    good, distractor, other, junk, own_camera = (2, 3), (0, 3), (4, 3), (-1, 3), (2, 1)
    result = one_query(good, distractor, good, other)
    assert result("step").mean_ap == pytest.approx((1 + 2 / 3) / 2)
    assert result("trapezoid").mean_ap == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    assert [result("step").cmc(k) for k in (1, 2)] == [1, 1]
    result = one_query(other, distractor, good)
    assert result("step").mean_ap == pytest.approx(1 / 3)
    assert result("trapezoid").mean_ap == pytest.approx((0 + 1 / 3) / 2)
    assert [result("step").cmc(k) for k in (1, 2, 3)] == [0, 0, 1]
    # Junk is as if it were not there.
    with_junk = one_query(junk, other, own_camera, junk, distractor, own_camera, good, junk)
    for rule in ("step", "trapezoid"):
        assert with_junk(rule).mean_ap == result(rule).mean_ap
        assert with_junk(rule).rank.tolist() == [3]
    assert one_query(junk, own_camera, good, good, other)("trapezoid").mean_ap == 1


def test_a_query_without_a_good_tracklet_does_not_count() -> None:
    rows = as_tracklets([(1, 1, 2, 1), (2, 2, 2, 3), (3, 3, 4, 1), (4, 4, 4, 2)])
    got = evaluate(directions(0, 10, 20, 25), rows, np.array([0, 2, 3]))
    assert (got.counted, got.gallery, got.mean_ap, got.rank.tolist()) == (1, 1, 1, [1, 0, 0])
    got = evaluate(directions(0, 10, 20, 25), rows, np.array([0, 2, 3]), gallery="all")
    assert (got.counted, got.gallery, got.rank.tolist()) == (3, 4, [1, 1, 1])
    with pytest.raises(DataError, match="no query has a good tracklet"):
        evaluate(directions(0, 10, 20, 25), rows, np.array([2, 3]))


def test_tracklets_are_means_of_their_images() -> None:
    rows, _ = some_protocol(5)
    tracklets = as_tracklets(rows)
    images = np.random.default_rng(5).standard_normal((tracklets.images, 3)).astype(np.float32)
    want = [images[first - 1 : last].mean(0, dtype=np.float64) for first, last, _, _ in rows]
    rtol, atol, _ = tolerance("formula")
    for size in (1, 2, 7, len(images)):
        batches = (images[begin : begin + size] for begin in range(0, len(images), size))
        np.testing.assert_allclose(average_tracklets(batches, tracklets), want, rtol, atol)
    with pytest.raises(DataError, match=f"^{len(images) - 1} images; the tracklets have {len(images)}$"):
        average_tracklets([images[:-1]], tracklets)
    with pytest.raises(DataError, match=f"^more than {len(images)} images"):
        average_tracklets([images, images[:1]], tracklets)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers(value: float) -> None:
    rows = as_tracklets([(1, 3, 2, 1), (4, 5, 2, 4), (6, 6, 0, 2)])
    images = np.ones((6, 2), np.float32)
    images[4, 1] = value
    message = r"^tracklet 2 \(person 2, camera 4, images 4 to 5\): its feature is NaN or infinite"
    with pytest.raises(DataError, match=message):
        average_tracklets([images[:4], images[4:]], rows)
    features = np.ones((3, 2), np.float32)
    features[1, 1] = value
    with pytest.raises(DataError, match=message):
        evaluate(features, rows, np.array([0]))
    with pytest.raises(DataError, match=r"^tracklet 3 \(.*\): its feature is zero, which has no direction"):
        evaluate(np.float32([[1, 0], [1, 1], [0, 0]]), rows, np.array([0]))
    with pytest.raises(DataError, match=r"^features of shape \(2, 2\) for 3 tracklets"):
        evaluate(np.ones((2, 2), np.float32), rows, np.array([0]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.int32([[1, 2, 2, 1], [4, 5, 2, 2]]), "tracklet 2 .*images 4 to 5.*must begin with 3"),
        (np.int32([[2, 2, 2, 1]]), "tracklet 1 .*must begin with 1"),
        (np.int32([[1, 0, 2, 1]]), "tracklet 1 "),
        (np.int32([[1, 2, -2, 1]]), "the person be -1 or more"),
        (np.int32([[1, 2, 2]]), r"must have 4 columns, one row a tracklet, got the shape \(1, 3\)"),
        (np.zeros((0, 4)), "must have 4 columns"),
        (np.float64([[1, 2.5, 2, 1]]), "must hold whole numbers"),
        (np.float64([[1, np.nan, 2, 1]]), "must hold whole numbers"),
    ],
)
def test_tracklets_that_make_no_sense(tmp_path: Path, rows: NDArray[Any], message: str) -> None:
    write_mat(tmp_path / "t.mat", "rows", rows)
    with pytest.raises(DataError, match=message):
        read_tracklets(tmp_path / "t.mat", "rows")


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([1, 4], "query_IDX has 4 at place 2; there are the tracklets 1 to 3"),
        ([0], "query_IDX has 0 at place 1"),
        ([1, 1], "query_IDX has a tracklet twice"),
        ([1, 2], r"tracklet 2 \(person 0, .*cannot be a query"),
        ([3], r"tracklet 3 \(person -1, .*cannot be a query"),
        ([], "query_IDX is empty"),
    ],
)
def test_queries_that_make_no_sense(tmp_path: Path, queries: list[int], message: str) -> None:
    write_mat(tmp_path / "q.mat", "query_IDX", np.array([queries], np.int32))
    with pytest.raises(DataError, match=message):
        read_queries(tmp_path / "q.mat", as_tracklets([(1, 1, 2, 1), (2, 2, 0, 1), (3, 3, -1, 1)]))


# -- the benchmark's own protocol ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mars() -> Path:
    return mars_folder()


def test_the_protocol_of_mars(mars: Path) -> None:
    train = read_part(mars, "train")
    assert (len(train.person), train.images, len(np.unique(train.person))) == (8298, 509914, 625)
    test, queries = read_test_protocol(mars)
    assert (len(test.person), test.images, len(queries)) == (12180, 681089, 1980)
    assert [int((test.person == person).sum()) for person in (-1, 0)] == [870, 3248]


@pytest.mark.parametrize("gallery", ["rest", "all"])
def test_mars_with_random_features(mars: Path, gallery: Any) -> None:
    tracklets, queries = read_test_protocol(mars)
    rows: list[Row] = [
        (begin + 1, end, person, camera) for begin, end, person, camera in np.stack(tracklets, 1).tolist()
    ]
    features = np.random.default_rng(1).standard_normal((len(rows), 64)).astype(np.float32)
    slow = Slow(features, rows, queries.tolist(), gallery)
    assert slow.without_good == (140 if gallery == "rest" else 0)
    for rule in ("trapezoid", "step"):
        slow.check(evaluate(features, tracklets, queries, rule, gallery), rule)  # type: ignore[arg-type]  # a str


# -- the commands --------------------------------------------------------------------------------------------

INPUT = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 3 dim: 3 dim: 8 dim: 8 } } }
"""
DATA = """
layer { name: "data" type: "ImageData" top: "data" top: "label" include { phase: TEST }
        transform_param { crop_size: 8 mirror: true mean_value: [100, 110, 120] scale: 0.5 }
        image_data_param { source: "none" new_height: 10 new_width: 10 batch_size: 3 } }
layer { name: "random" type: "DummyData" top: "noise" include { phase: TRAIN } }
"""
LAYERS = """
name: "colours"
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: "gaussian" std: 0.1 } } }
layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool"
        pooling_param { pool: AVE global_pooling: true } }
layer { name: "again" type: "Reshape" bottom: "pool" top: "again" reshape_param { shape { dim: 3 dim: 3 } } }
layer { name: "fc" type: "InnerProduct" bottom: "again" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "gaussian" } } }
"""
LOSS = """
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""
PREPARED = ["--resize", "10", "--crop", "8", "--mean-value", "100,110,120", "--scale", "0.5"]
BLUE, GREEN, RED, GRAY = (200, 20, 20), (20, 200, 20), (20, 20, 200), (100, 110, 120)


class Benchmark:
    """Images of the size 12 x 8 in MARS' layout, with its protocol: persons are known by their colours."""

    def __init__(self, folder: Path, shown: Sequence[tuple[int, int, tuple[int, int, int], int]]) -> None:
        """shown    person, camera, colour and number of images of each tracklet"""
        random = np.random.default_rng(1)
        self.rows: list[Row] = []
        self.names: list[str] = []
        for t, (person, camera, colour, count) in enumerate(shown):
            self.rows.append((len(self.names) + 1, len(self.names) + count, person, camera))
            prefix = "00-1" if person == -1 else f"{person:04d}"
            (folder / "bbox_test" / prefix).mkdir(parents=True, exist_ok=True)
            for frame in range(1, count + 1):
                self.names.append(f"{prefix}C{camera}T{t:04d}F{frame:03d}.jpg")
                pixels = np.array(colour) + random.integers(-15, 16, (12, 8, 3))
                cv2.imwrite(str(self.path(folder, self.names[-1])), pixels.astype(np.uint8))
        self.queries = [t for t, row in enumerate(self.rows) if row[2] > 0 and row[3] == 1]
        info = folder / "info"
        info.mkdir()
        (info / "test_name.txt").write_text("".join(f"{name}\n" for name in self.names))
        write_mat(info / "tracks_test_info.mat", "track_test_info", np.array(self.rows, np.int32))
        write_mat(info / "query_IDX.mat", "query_IDX", np.array([self.queries], np.int32) + 1)

    @staticmethod
    def path(folder: Path, name: str) -> Path:
        return folder / "bbox_test" / name[:4] / name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    """Three persons in three cameras, junk, distractors and a net, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deploy.prototxt").write_text(INPUT + LAYERS)
    net = Net(read_net("deploy.prototxt"), Run(CaffeRandom(3)))
    with torch.no_grad():
        for blob, values in zip(net.params["norm"], ([3.0, -4, 5], [2.0, 3, 4], [1.0]), strict=True):
            blob.copy_(torch.tensor(values))
    save_caffemodel(net, "w.caffemodel")
    # Junk is in the persons' own colours.
    shown = [(-1, 1, BLUE, 2), (-1, 2, GREEN, 3), (-1, 3, RED, 1), (0, 1, (200, 200, 20), 3), (0, 3, GRAY, 2)]
    for person, colour in ((2, BLUE), (4, GREEN), (6, RED)):
        shown += [(person, camera, colour, camera + 1) for camera in (1, 2, 3, 3)]
    return Benchmark(tmp_path, shown)


def retrieved(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines of `imae retrieve info ...`."""
    capsys.readouterr()
    status = main(["retrieve", "info", *arguments])
    output = capsys.readouterr()
    assert status == 0, output.err.splitlines()[-1]
    return output.out.splitlines()


def lines_of(slow: Slow, gallery: int, rule: str = "trapezoid") -> list[str]:
    left_out = [
        f"{slow.without_good} more queries do not count: their person is in no other camera of the gallery"
    ]
    return [
        f"{len(slow.ranks)} queries, each against {gallery} tracklets",
        *(left_out if slow.without_good else []),
        f"mAP = {100 * slow.mean_ap(rule):.2f} % (AP by the {rule} rule)",
        *(f"CMC-{k} = {100 * slow.cmc(k):.2f} %" for k in (1, 5, 10, 20)),
    ]


def kept_features(path: str) -> Features:
    with np.load(path, allow_pickle=False) as archive:
        return np.asarray(archive["features"], np.float32)


def want_features(here: Benchmark, blob: str = "fc") -> NDArray[np.float64]:
    """What the net makes of the images, in double precision."""
    net = Net(read_net("deploy.prototxt"), Run(CaffeRandom(3)))
    weights = {name: [blob.detach().double().numpy() for blob in blobs] for name, blobs in net.params.items()}
    features = []
    for name in here.names:
        pixels = cv2.resize(cv2.imread(str(here.path(Path(), name))), (10, 10))[1:9, 1:9].astype(np.float64)
        values = (pixels - GRAY) * 0.5 @ weights["conv"][0][:, :, 0, 0].T + weights["conv"][1]
        if blob == "conv":
            features.append(values.transpose(2, 0, 1).ravel())
            continue
        values = (values.mean((0, 1)) - [3, -4, 5]) / np.sqrt(np.array([2, 3, 4]) + 1e-5)
        features.append(weights["fc"][0] @ values + weights["fc"][1] if blob == "fc" else values)
    return np.array([np.mean(features[first - 1 : last], 0) for first, last, _, _ in here.rows])


def check_features(path: str, want: NDArray[np.float64]) -> None:
    rtol, atol, _ = tolerance("same arithmetic")
    np.testing.assert_allclose(kept_features(path), want, rtol, atol * np.abs(want).max())


NET = ["--model", "deploy.prototxt", "--weights", "w.caffemodel"]
PERFECT = ["3 queries, each against 14 tracklets", "mAP = 100.00 % (AP by the trapezoid rule)"]


@pytest.mark.parametrize("model", ["net", "onnx"])
@pytest.mark.parametrize("source", ["folder", "unlisted", "tar", "raw", "encoded", "names"])
def test_persons_are_found(
    here: Benchmark, capsys: pytest.CaptureFixture[str], source: str, model: str
) -> None:
    images = ["--images", "bbox_test"]
    if source == "unlisted":
        Path("info/test_name.txt").unlink()
        Path("bbox_test/0002/Thumbs.db").write_text("no image")
    elif source == "tar":
        with tarfile.open("test.tar.gz", "w:gz") as tar:
            tar.add("bbox_test")
        images = ["--images", "test.tar.gz"]
    elif source == "names":
        with lmdb.open("db", map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
            assert main(["convert-mars", "info", "bbox_test", "raw", "--part", "test", "--shuffle", "1"]) == 0
            with open_lmdb("raw") as raw:
                for key, value in raw.records():
                    transaction.put(key.rpartition(b"/")[2], value)
        images = ["--lmdb", "db"]
    elif source != "folder":
        options = ["--encoded"] if source == "encoded" else []
        assert main(["convert-mars", "info", "bbox_test", "db", "--part", "test", *options]) == 0
        images = ["--lmdb", "db"]
    arguments = NET
    if model == "onnx":
        assert main(["export", *NET, "--output", "net.onnx", "--fixed-batch"]) == 0
        arguments = ["--onnx", "net.onnx"]
    found = retrieved(capsys, *images, *arguments, *PREPARED, "--features", "f.npz", "--batch-size", "3")
    assert found == [*PERFECT, *(f"CMC-{k} = 100.00 %" for k in (1, 5, 10, 20))]
    check_features("f.npz", want_features(here))
    Path("bbox_test").rename("away")
    assert retrieved(capsys, "--features", "f.npz") == found


@pytest.mark.parametrize("rule", ["trapezoid", "step"])
@pytest.mark.parametrize("gallery", ["rest", "all"])
def test_persons_are_mistaken(
    here: Benchmark, capsys: pytest.CaptureFixture[str], tmp_path: Path, rule: str, gallery: str
) -> None:
    """A distractor in a person's colour, a person in another's, one who is in one camera only."""
    shown = [(-1, 1, BLUE, 1), (0, 2, BLUE, 2), (0, 3, GRAY, 1)]
    shown += [
        (2, 1, BLUE, 2),
        (2, 2, RED, 3),
        (2, 3, BLUE, 1),
        (4, 1, RED, 1),
        (4, 1, GREEN, 2),
        (4, 3, RED, 2),
    ]
    other = tmp_path / "other"
    other.mkdir()
    mistaken = Benchmark(other, [*shown, (6, 1, RED, 2)])
    Path("info").rename("info of here")
    (other / "info").rename("info")
    options = ["--ap", rule, "--gallery", gallery]
    found = retrieved(
        capsys,
        "--images",
        "other/bbox_test",
        *NET,
        *PREPARED,
        "--batch-size",
        "3",
        "--features",
        "f.npz",
        *options,
    )
    slow = Slow(kept_features("f.npz"), mistaken.rows, mistaken.queries, gallery)
    assert 0 < slow.mean_ap(rule) < 1 and slow.without_good == 1
    assert found == lines_of(slow, 10 if gallery == "all" else 6, rule)
    assert retrieved(capsys, "--features", "f.npz", *options) == found
    for loss in ("IMAE", "CCE"):  # a second result joins the first
        retrieved(capsys, "--features", "f.npz", *options, "--results", "mars.json", "--loss", loss)
    kept = mars_results("mars.json")
    want = {"mAP": pytest.approx(slow.mean_ap(rule)), "CMC-1": pytest.approx(slow.cmc(1))}
    assert kept == {"IMAE": want, "CCE": want}


@pytest.mark.parametrize("model", ["net", "onnx", "embedded"])
def test_images_are_prepared_as_the_data_layer_says(
    here: Benchmark, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    Path("train_val.prototxt").write_text(DATA + LAYERS + LOSS)
    arguments = ["--images", "bbox_test", "--features", "f.npz"]
    if model == "net":
        found = retrieved(capsys, *arguments, "--model", "train_val.prototxt", *NET[2:], "--batch-size", "3")
    else:
        export = ["--model", "train_val.prototxt", *NET[2:], "--output", "net.onnx", "--fixed-batch"]
        embed = ["--embed-preprocess", "rgb", "--resize", "10"] if model == "embedded" else []
        assert main(["export", *export, "--input-shape", "3,3,8,8", *embed]) == 0
        resize = ["--resize", "10,10"]
        if model == "embedded":
            assert main(["retrieve", "info", *arguments, "--onnx", "net.onnx", *resize]) == 2
            assert "the model prepares images itself" in capsys.readouterr().err.splitlines()[-1]
            resize = []
        found = retrieved(capsys, *arguments, "--onnx", "net.onnx", *resize)
    assert found[:2] == PERFECT
    check_features("f.npz", want_features(here))


def test_the_options_overrule_the_data_layer(here: Benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    Path("train_val.prototxt").write_text(
        DATA.replace("100, 110", "1, 2").replace("10", "40") + LAYERS + LOSS
    )
    arguments = [
        "--model",
        "train_val.prototxt",
        *NET[2:],
        *PREPARED,
        "--batch-size",
        "3",
        "--features",
        "f.npz",
    ]
    retrieved(capsys, "--images", "bbox_test", *arguments)
    check_features("f.npz", want_features(here))


@pytest.mark.parametrize("blob", ["pool", "conv"])
def test_features_may_be_any_blob(here: Benchmark, capsys: pytest.CaptureFixture[str], blob: str) -> None:
    """Folding BatchNorm into the convolution must not change what its top is."""
    text = (INPUT + LAYERS).replace('bottom: "conv" top: "conv"', 'bottom: "conv" top: "norm"')
    Path("apart.prototxt").write_text(
        text.replace('bottom: "conv" top: "pool"', 'bottom: "norm" top: "pool"')
    )
    arguments = ["--model", "apart.prototxt", *NET[2:], *PREPARED, "--batch-size", "3", "--features", "f.npz"]
    retrieved(capsys, "--images", "bbox_test", *arguments, "--blob", blob)
    check_features("f.npz", want_features(here, blob))


def test_gray_models_get_gray_images(here: Benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    Path("gray.prototxt").write_text(
        (INPUT + LAYERS).replace("dim: 3 dim: 3 dim: 8", "dim: 3 dim: 1 dim: 8", 1)
    )
    save_caffemodel(Net(read_net("gray.prototxt"), Run(CaffeRandom(3))), "gray.caffemodel")
    arguments = [
        "--model",
        "gray.prototxt",
        "--weights",
        "gray.caffemodel",
        *PREPARED[:4],
        "--batch-size",
        "3",
    ]
    assert retrieved(capsys, "--images", "bbox_test", *arguments)[0] == PERFECT[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_features_on_a_gpu(here: Benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*NET, *PREPARED, "--batch-size", "3", "--features", "f.npz", "--gpu"]
    retrieved(capsys, "--images", "bbox_test", *arguments)
    check_features("f.npz", want_features(here))


def test_training_images_get_persons_by_number(here: Benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows from the first person on, as if they were for training."""
    shown = [row for row in here.rows if row[2] > 0]
    before = shown[0][0] - 1
    rows = [(first - before, last - before, person, camera) for first, last, person, camera in shown]
    names = here.names[before:]
    write_mat(Path("info/tracks_train_info.mat"), "track_train_info", np.array(rows, np.int32))
    Path("info/train_name.txt").write_text("\r\n".join(names))
    assert main(["convert-mars", "info", "bbox_test", "db"]) == 0
    assert main(["convert_mars", "info", "bbox_test", "small", "--resize_height=4", "--resize_width=6"]) == 0
    with open_lmdb("db") as source, open_lmdb("small") as small:
        keys = [b"%08d_%s/%s" % (i, name[:4].encode(), name.encode()) for i, name in enumerate(names)]
        assert source.keys() == small.keys() == keys
        labels = [source.datum(i).label for i in range(len(source))]
        assert labels == [{"0002": 0, "0004": 1, "0006": 2}[name[:4]] for name in names]
        pixels = cv2.imread(str(here.path(Path(), names[3])))
        assert source.datum(3).data == pixels.transpose(2, 0, 1).tobytes()
        assert small.datum(3).data == cv2.resize(pixels, (6, 4)).transpose(2, 0, 1).tobytes()
    write_mat(Path("info/tracks_train_info.mat"), "track_train_info", np.array(here.rows, np.int32))
    Path("info/train_name.txt").unlink()
    assert main(["convert-mars", "info", "bbox_test", "no"]) == 2
    assert "the persons to train with must be 1 or more, got -1" in capsys.readouterr().err
    assert not Path("no").exists()


def delete(path: str) -> Callable[[Benchmark], None]:
    return lambda here: Path(path).unlink()


def text(path: str, content: str | bytes) -> Callable[[Benchmark], None]:
    return lambda here: Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def matrix(name: str, variable: str, values: object) -> Callable[[Benchmark], None]:
    return lambda here: write_mat(Path("info", name), variable, np.array(values, np.int32))


def swap_names(here: Benchmark) -> None:
    names = here.names.copy()
    names[-1], names[-9] = names[-9], names[-1]
    Path("info/test_name.txt").write_text("\n".join(names))


def keep(**arrays: NDArray[Any]) -> Callable[[Benchmark], None]:
    def write(here: Benchmark) -> None:
        rows = np.array(here.rows)
        rows[:, 0] -= 1
        np.savez("f.npz", **{"tracklets": np.stack([rows[:, 0], *rows.T[1:]], 1), **arrays})

    return write


def nothing(here: Benchmark) -> None:
    """The arguments alone are wrong."""


FOLDER = ["--images", "bbox_test"]
USUAL = [*FOLDER, *NET, *PREPARED]
FIRST_IMAGE = "bbox_test/00-1/00-1C1T0000F001.jpg"


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (delete("info/query_IDX.mat"), USUAL, "cannot read 'info/query_IDX.mat': No such file or directory"),
        (matrix("query_IDX.mat", "queries", [[6]]), USUAL, "has no matrix query_IDX; it has queries"),
        (matrix("query_IDX.mat", "query_IDX", [[18]]), USUAL, "query_IDX has 18 at place 1; there are the"),
        (text("info/tracks_test_info.mat", "x" * 200), USUAL, "is no MAT-file of version 5"),
        (
            delete(FIRST_IMAGE),
            USUAL,
            "'bbox_test' lacks 1 of the 50 images that 'info/test_name.txt' names, the",
        ),
        (text(FIRST_IMAGE, b"no picture"), USUAL, "00-1C1T0000F001.jpg: could not decode the 10 bytes"),
        (
            text("info/test_name.txt", ""),
            USUAL,
            "'info/test_name.txt' has 0 images of MARS; the tracklets have 50",
        ),
        (text("info/test_name.txt", b"\xff"), USUAL, "cannot read the list 'info/test_name.txt'"),
        (swap_names, USUAL, "but belongs to tracklet 15 (person 6, camera 2"),
        (nothing, ["--images", "info", *NET], "'info' lacks 50 of the 50 images"),
        (nothing, ["--images", "no", *NET], "no such file or folder: 'no'"),
        (nothing, ["--lmdb", "no", *NET], "lmdb 'no': No such file or directory"),
        (nothing, FOLDER, "a model is needed: --model NET --weights W, or --onnx MODEL"),
        (nothing, [*FOLDER, *NET, "--onnx", "x"], "--onnx has its weights inside"),
        (nothing, [*FOLDER, "--onnx", "x"], "x: no such file"),
        (nothing, NET, "--model, --weights: a model needs images, --images or --lmdb"),
        (nothing, [], "without --features: a model needs images"),
        (
            nothing,
            [*FOLDER, *NET],
            "the input is 3 x 8 x 8, the prepared images are 3 x 12 x 8; use --resize and",
        ),
        (nothing, [*USUAL, "--crop", "11"], "datum_height >= crop_size (10 vs. 11)"),
        (
            nothing,
            [*USUAL, "--mean-value", "1,2"],
            "Specify either 1 mean_value or as many as channels: 3; got 2",
        ),
        (nothing, [*USUAL, "--mean-value", "x"], "argument --mean-value: invalid numbers value: 'x'"),
        (
            nothing,
            [*USUAL, "--mean-value", "nan", "--batch-size", "3"],
            "tracklet 1 (person -1, camera 1, images 1 to 2): its feature",
        ),
        (nothing, [*USUAL, "--resize", "8,0"], "argument --resize: must be N or H,W of at least 1, got 8,0"),
        (nothing, [*USUAL, "--batch-size", "0"], "--batch-size must be 1 or more, got 0"),
        (
            nothing,
            [*USUAL, "--batch-size", "3", "--blob", "x"],
            "one blob is needed, there is no 'x'; use --blob",
        ),
        (
            nothing,
            [*USUAL, "--batch-size", "3", "--features", "no/f"],
            "cannot write 'no/f': there is no folder",
        ),
        (nothing, ["--features", "f.npz"], "cannot read the features 'f.npz': [Errno 2] No such file"),
        (text("f.npz", "PK no archive"), ["--features", "f.npz"], "cannot read the features 'f.npz'"),
        (keep(), ["--features", "f.npz"], "cannot read the features 'f.npz': 'features is not a file in the"),
        (
            keep(features=np.zeros((17, 2))),
            ["--features", "f.npz"],
            "must be float32 of two axes, got float64",
        ),
        (keep(features=np.zeros((17, 2), "f4")), ["--features", "f.npz"], "tracklet 1 (person -1, camera 1"),
        (keep(features=np.ones((9, 2), "f4")), ["--features", "f.npz"], "features of shape (9, 2) for 17"),
        (
            keep(tracklets=np.ones(3), features=np.ones((17, 2), "f4")),
            ["--features", "f.npz"],
            "another protocol's",
        ),
        (keep(features=np.array([{}])), ["--features", "f.npz"], "cannot be loaded when allow_pickle=False"),
        (nothing, ["--features", "f.npz", "--gpu"], "--gpu: a model needs images"),
    ],
)
def test_bad_input_gets_one_line(
    here: Benchmark,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Benchmark], None],
    arguments: list[str],
    message: str,
) -> None:
    change(here)
    before = sorted(Path().rglob("*"))
    assert main(["retrieve", "info", *arguments]) == 2
    output = capsys.readouterr()
    assert output.err.splitlines()[-1].startswith("imae: ") and message in output.err.splitlines()[-1]
    assert not output.out and "Traceback" not in output.err
    assert sorted(Path().rglob("*")) == before
