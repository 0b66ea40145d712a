"""Retrieval by the rules of the MARS benchmark (Zheng et al., ECCV 2016): finding a person in other cameras.

    feature(t)  = mean of the features of t's images, scaled to length 1
    similarity  = feature(query) . feature(t) for each t of the gallery; largest first, ties in row order
    good        t shows the query's person in another camera
    junk        t shows nobody (person -1), or the query's person in the query's camera; it is skipped
    CMC-k       = share of the queries that have a good tracklet among their first k
    AP          = sum_r (recall(r) - recall(r - 1)) (precision(r - 1) + precision(r)) / 2,    trapezoid
                  sum_r (recall(r) - recall(r - 1)) precision(r),                             step
                  over the ranks r = 1, 2, .., with recall(0) = 0 and precision(0) = 1
    mAP         = mean of the queries' AP

Person 0 is a distractor: never good, never junk. The gallery is "rest", the tracklets that are not queries,
or "all". With "rest" 140 of the benchmark's 1,980 queries have no good tracklet; their recall is undefined,
and they are left out of both means. The benchmark's own script (test_mars.m) searches all: the gallery then
has the query itself, which is junk, and its person's other queries, and every query has a good tracklet.

Rows and images count from 1 in the benchmark's files and in messages, from 0 here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imae.files.errors import DataError
from imae.files.mat_file import read_mat
from imae.files.read import AnyPath

Numbers = NDArray[np.int64]
Features = NDArray[np.float32]
ApRule = Literal["trapezoid", "step"]
Gallery = Literal["rest", "all"]

JUNK = -1  # the person of tracklets that show nobody
QUERIES_AT_ONCE = 128  # about 100 MB of ranks for the benchmark's 12,180 tracklets


class Tracklets(NamedTuple):
    """One row per tracklet. Its images are begin <= i < end of the list; there are no gaps between rows."""

    begin: Numbers
    end: Numbers
    person: Numbers
    camera: Numbers

    @property
    def images(self) -> int:
        """The number of images."""
        return int(self.end[-1])

    def text(self, row: int) -> str:
        """The name of a tracklet in errors."""
        return (
            f"tracklet {row + 1} (person {self.person[row]}, camera {self.camera[row]}, "
            f"images {self.begin[row] + 1} to {self.end[row]})"
        )


def read_tracklets(path: AnyPath, name: str) -> Tracklets:
    """Read a matrix of rows (first image, last image, person, camera); DataError for invalid rows."""
    rows = _whole_numbers(read_mat(path, name), f"'{path}': {name}")
    if rows.ndim != 2 or rows.shape[1] != 4 or not len(rows):
        raise DataError(
            f"'{path}': {name} must have 4 columns, one row a tracklet, got the shape {rows.shape}"
        )
    tracklets = Tracklets(rows[:, 0] - 1, rows[:, 1], rows[:, 2], rows[:, 3])
    wrong = np.flatnonzero(
        (tracklets.begin != [0, *tracklets.end[:-1]])
        | (tracklets.begin >= tracklets.end)
        | (tracklets.person < JUNK)
    )
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"'{path}': {name}, {tracklets.text(row)}: the images must begin with "
            f"{tracklets.end[row - 1] + 1 if row else 1}, after the row before, and the person be -1 or more"
        )
    return tracklets


def read_queries(path: AnyPath, tracklets: Tracklets, name: str = "query_IDX") -> Numbers:
    """Read the tracklets that are queries; DataError if one does not exist, comes twice or shows nobody."""
    rows = _whole_numbers(read_mat(path, name), f"'{path}': {name}").ravel() - 1
    count = len(tracklets.person)
    if not len(rows):
        raise DataError(f"'{path}': {name} is empty")
    outside = np.flatnonzero((rows < 0) | (rows >= count))
    if len(outside):
        raise DataError(
            f"'{path}': {name} has {rows[outside[0]] + 1} at place {outside[0] + 1}; there are the tracklets "
            f"1 to {count}"
        )
    if len(np.unique(rows)) < len(rows):
        raise DataError(f"'{path}': {name} has a tracklet twice")
    nobody = np.flatnonzero(tracklets.person[rows] <= 0)
    if len(nobody):
        raise DataError(
            f"'{path}': {name}: {tracklets.text(rows[nobody[0]])} cannot be a query: persons are 1 or more"
        )
    return rows


def _whole_numbers(values: NDArray[Any], what: str) -> Numbers:
    numbers = values.astype(np.float64)
    if not (np.abs(numbers) < 2**53).all() or (numbers != np.floor(numbers)).any():
        raise DataError(f"{what} must hold whole numbers")
    return numbers.astype(np.int64)


def average_tracklets(batches: Iterable[Features], tracklets: Tracklets) -> Features:
    """The tracklets' mean features, (T, D), from the images' features in order, in batches (N, D).

    DataError if their number is not that of the tracklets' images, or if one is NaN or infinite.
    """
    sums, done = np.zeros((len(tracklets.end), 0)), 0
    for batch in batches:
        if not done:
            sums = np.zeros((len(tracklets.end), batch.shape[1]))
        if done + len(batch) > tracklets.images:
            raise DataError(f"more than {tracklets.images} images; the tracklets have no more")
        owners = np.searchsorted(tracklets.end, np.arange(done, done + len(batch)), "right")
        rows, starts = np.unique(owners, return_index=True)
        sums[rows] += np.add.reduceat(batch, starts, axis=0, dtype=np.float64)
        _check_finite(sums[rows], rows, tracklets)
        done += len(batch)
    if done < tracklets.images:
        raise DataError(f"{done} images; the tracklets have {tracklets.images}")
    return (sums / (tracklets.end - tracklets.begin)[:, None]).astype(np.float32)


def _check_finite(features: NDArray[Any], rows: Numbers, tracklets: Tracklets) -> None:
    wrong = np.flatnonzero(~np.isfinite(features).all(1))
    if len(wrong):
        raise DataError(
            f"{tracklets.text(int(rows[wrong[0]]))}: its feature is NaN or infinite; look at the model"
        )


@dataclass(frozen=True)
class Retrieval:
    """The result of each query.

    ap        (Q,), in [0, 1]; NaN if there is no good tracklet
    rank      (Q,), of the first good tracklet, from 1; 0 if there is none
    gallery   number of tracklets that were searched, junk included
    """

    ap: NDArray[np.float64]
    rank: Numbers
    gallery: int

    @property
    def counted(self) -> int:
        """The number of queries that have a good tracklet; the others do not count."""
        return int((self.rank > 0).sum())

    @property
    def mean_ap(self) -> float:
        """In [0, 1]."""
        return float(np.nanmean(self.ap))

    def cmc(self, k: int) -> float:
        """CMC-k, in [0, 1]."""
        return float((self.rank[self.rank > 0] <= k).mean())


def evaluate(
    features: Features,
    tracklets: Tracklets,
    queries: Numbers,
    ap: ApRule = "trapezoid",
    gallery: Gallery = "rest",
    queries_at_once: int = QUERIES_AT_ONCE,
) -> Retrieval:
    """Search the gallery for each of the `queries` (rows of the tracklets) with these features, (T, D).

    DataError for a feature that is zero, NaN or infinite, and if no query has a good tracklet.
    """
    if features.ndim != 2 or len(features) != len(tracklets.person):
        raise DataError(f"features of shape {features.shape} for {len(tracklets.person)} tracklets")
    places, distinct = _directions(features, tracklets)
    searched = np.ones(len(features), np.bool_)
    if gallery == "rest":
        searched[queries] = False
    size = int(searched.sum())
    # Tracklets that show nobody are junk for every query.
    rows = np.flatnonzero(searched & (tracklets.person != JUNK))
    person, camera, columns = tracklets.person[rows], tracklets.camera[rows], places[rows]
    aps, ranks = np.full(len(queries), np.nan), np.zeros(len(queries), np.int64)
    for begin in range(0, len(queries), queries_at_once):
        chunk = queries[begin : begin + queries_at_once]
        similarity = (distinct[places[chunk]] @ distinct.T)[:, columns]
        order = np.argsort(-similarity, axis=1, kind="stable")
        same_person = person[order] == tracklets.person[chunk, None]
        same_camera = camera[order] == tracklets.camera[chunk, None]
        junk, good = same_person & same_camera, same_person & ~same_camera
        query, place = np.nonzero(good)  # by query, then by place
        junk_before = np.cumsum(junk, axis=1, dtype=np.int32)[query, place]
        rank = place + 1 - junk_before
        counts = good.sum(1)
        hits = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        height = hits / rank
        if ap == "trapezoid":
            # Precision at rank 0 is 1.
            height = (height + np.where(rank > 1, (hits - 1) / np.maximum(rank - 1, 1), 1)) / 2
        with np.errstate(invalid="ignore"):
            aps[begin : begin + len(chunk)] = np.bincount(query, height, len(chunk)) / counts
        ranks[begin + query[hits == 1]] = rank[hits == 1]
    if not ranks.any():
        raise DataError(
            "no query has a good tracklet: none of its person in another camera is in the gallery"
        )
    return Retrieval(aps, ranks, size)


def _directions(features: Features, tracklets: Tracklets) -> tuple[Numbers, NDArray[np.float64]]:
    """Each tracklet's index into the distinct features, and the distinct features, scaled to length 1.

    Equal features must have equal similarities, so that they keep their row order. A matrix product may round
    equal columns differently, so each distinct feature is multiplied only once.
    """
    _check_finite(features, np.arange(len(features)), tracklets)
    places: dict[bytes, int] = {}
    rows = features + np.float32(0)  # -0 becomes 0
    place = np.array([places.setdefault(row.tobytes(), len(places)) for row in rows], np.int64)
    first = np.unique(place, return_index=True)[1]
    distinct = features[first].astype(np.float64)
    lengths = np.linalg.norm(distinct, axis=1)
    if not lengths.all():
        row = int(first[np.flatnonzero(lengths == 0)[0]])
        raise DataError(
            f"{tracklets.text(row)}: its feature is zero, which has no direction; look at the model"
        )
    return place, distinct / lengths[:, None]
