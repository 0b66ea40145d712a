"""Part of an LMDB and the rest: what goes where, in which order, with its clean labels."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from listing import sorted_names as names

from imae.cli import command_corrupt_labels as corrupt_labels
from imae.cli import command_split_lmdb as split_lmdb
from imae.converters.lmdb_writer import write_lmdb
from imae.converters.split_lmdb import random_share, read_lmdb_labels, subset_lmdb
from imae.files.errors import DataError, FileError
from imae.layers.data.lmdb_source import open_lmdb
from imae.prototxt import Datum

LABELS = (np.arange(60) * 7 % 4 * (np.arange(60) % 3 > 0)).tolist()  # 0 is the most frequent


def run(*arguments: object, module: object = split_lmdb) -> None:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)  # type: ignore[attr-defined]  # a module
    module.run(parser.parse_args([str(argument) for argument in arguments]))  # type: ignore[attr-defined]


def make_lmdb(path: Path, labels: Sequence[int]) -> list[tuple[bytes, Datum]]:
    """Raw images, encoded ones and float data: a record is not looked into."""
    records = [
        (b"%05d_x" % i, Datum(channels=1, height=1, width=2, data=bytes([i % 256, 7]), label=label))
        for i, label in enumerate(labels)
    ]
    records[1][1].encoded = True
    records[2][1].float_data.append(0.5)
    write_lmdb(path, records)
    return records


def read(path: Path) -> list[tuple[bytes, Datum]]:
    with open_lmdb(path) as source:
        return [(key, source.datum(i)) for i, key in enumerate(source.keys())]


def clean_of(path: Path) -> tuple[list[int], list[int]]:
    """The clean and the noisy labels of an LMDB's records."""
    with open_lmdb(path) as source:
        labels = read_lmdb_labels(source)
    assert labels.clean is not None
    return labels.clean.tolist(), labels.labels.tolist()


@pytest.mark.parametrize("stratified", [[], ["--stratified"]])
@pytest.mark.parametrize("share", [0.8, 0.25, 0.01])
def test_each_record_goes_into_one_part(tmp_path: Path, share: float, stratified: list[str]) -> None:
    records = make_lmdb(tmp_path / "in", LABELS)
    if share == 0.01 and stratified:
        with pytest.raises(DataError, match=r"^nothing to write into '.*/a': there are no records$"):
            run(tmp_path / "in", tmp_path / "a", tmp_path / "b", "--share", share, *stratified)
        assert names(tmp_path) == ["in"]
        return
    run(tmp_path / "in", tmp_path / "a", tmp_path / "b", "--share", share, *stratified)
    a, b = read(tmp_path / "a"), read(tmp_path / "b")
    assert sorted(a + b, key=lambda record: record[0]) == records
    for part in (a, b):
        assert [key for key, _ in part] == sorted(key for key, _ in part)
    if stratified:
        there, in_a = Counter(LABELS), Counter(datum.label for _, datum in a)
        assert {label: in_a[label] for label in there} == {
            label: round(share * n) for label, n in there.items()
        }
    else:
        assert len(a) == round(share * 60)


def test_the_seed_says_which(tmp_path: Path) -> None:
    make_lmdb(tmp_path / "in", LABELS)
    for name, seed in (("a", ["--seed", 123]), ("b", []), ("c", ["--seed", 124])):
        run(tmp_path / "in", tmp_path / name, "--share", 0.5, *seed)
    keys = {name: [key for key, _ in read(tmp_path / name)] for name in "abc"}
    assert keys["a"] == keys["b"] != keys["c"]
    assert names(tmp_path) == ["a", "b", "c", "in"]


def test_the_streams_are_frozen() -> None:
    """A share that a seed once gave, it gives for ever: results are cited with it."""
    classes = np.arange(20) % 3
    assert np.flatnonzero(random_share(classes, 0.4, 123)).tolist() == [4, 5, 7, 8, 12, 14, 17, 19]
    assert np.flatnonzero(random_share(classes, 0.4, 123, True)).tolist() == [1, 3, 9, 11, 12, 13, 14, 19]


def test_a_random_share_takes_every_record_as_often() -> None:
    """Within five standard deviations (one in a million is outside); stratified too."""
    classes, times = np.array([0] * 10 + [1] * 30), 2000
    for stratified in (False, True):
        taken = sum(random_share(classes, 0.8, seed, stratified).astype(int) for seed in range(times))
        assert np.all(np.abs(taken - 0.8 * times) < 5 * math.sqrt(times * 0.8 * 0.2))


def test_the_first_of_each_class_in_their_order(tmp_path: Path) -> None:
    records = make_lmdb(tmp_path / "in", LABELS)
    run(tmp_path / "in", tmp_path / "a", tmp_path / "b", "--per-class", 7)
    seen: Counter[int] = Counter()
    first = []
    for record in records:
        seen[record[1].label] += 1
        if seen[record[1].label] <= 7:
            first.append(record)
    assert read(tmp_path / "a") == first
    assert read(tmp_path / "b") == [record for record in records if record not in first]
    assert subset_lmdb(tmp_path / "in", tmp_path / "c", 7) == 28
    assert read(tmp_path / "c") == first
    assert names(tmp_path) == ["a", "b", "c", "in"]


def test_the_clean_labels_go_along_and_are_the_classes(tmp_path: Path) -> None:
    clean = [0, 1, 2] * 30
    make_lmdb(tmp_path / "in", clean)
    noise = ["--noise", "symmetric", "--rate", 0.6]
    run(tmp_path / "in", tmp_path / "noisy", *noise, module=corrupt_labels)
    records = read(tmp_path / "noisy")
    noisy = [datum.label for _, datum in records]
    run(tmp_path / "noisy", tmp_path / "a", tmp_path / "b", "--share", 0.8, "--seed", 5, "--stratified")
    run(tmp_path / "noisy", tmp_path / "c", "--per-class", 10)
    for name, counts in (("a", [24] * 3), ("b", [6] * 3), ("c", [10] * 3)):
        part = read(tmp_path / name)
        rows = [records.index(record) for record in part]
        kept_clean, kept_noisy = clean_of(tmp_path / name)
        assert kept_clean == [clean[row] for row in rows]
        assert kept_noisy == [noisy[row] for row in rows] != kept_clean
        assert np.bincount(kept_clean).tolist() == counts
        with np.load(tmp_path / f"{name}.clean_labels.npz", allow_pickle=False) as kept:
            settings = json.loads(str(kept["settings"]))
        assert settings.pop("input") == str(tmp_path / "noisy")
        share = {"share": 0.8, "seed": 5, "stratified": True}
        assert settings == ({"per_class": 10} if name == "c" else share)
    assert [records.index(record) for record in read(tmp_path / "c")] == list(range(30))


def test_a_part_can_be_split_again(tmp_path: Path) -> None:
    make_lmdb(tmp_path / "in", [0, 1] * 20)
    run(tmp_path / "in", tmp_path / "n", "--noise", "pair-flip", "--rate", 0.5, module=corrupt_labels)
    run(tmp_path / "n", tmp_path / "a", "--per-class", 12)
    run(tmp_path / "a", tmp_path / "b", "--per-class", 4)
    assert clean_of(tmp_path / "b")[0] == [0, 1] * 4
    assert [key for key, _ in read(tmp_path / "b")] == [key for key, _ in read(tmp_path / "in")[:8]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "split-lmdb takes --share S or --per-class K, one of the two"),
        (["--share", "0.5", "--per-class", "1"], "split-lmdb takes --share S or --per-class K, one of the"),
        (["--per-class", "1", "--seed", "1"], "--per-class takes no --seed and no --stratified: nothing is"),
        (["--per-class", "1", "--stratified"], "--per-class takes no --seed and no --stratified"),
        (["--share", "0"], "--share must be between 0 and 1, got 0.0"),
        (["--share", "1"], "--share must be between 0 and 1, got 1.0"),
        (["--share", "nan"], "--share must be between 0 and 1, got nan"),
        (["--share", "0.5", "--seed", "4294967296"], "--seed must be from 0 to 4294967295, got 4294967296"),
        (["--per-class", "0"], "--per-class must be 1 or more, got 0"),
        (["--per-class", "3"], "class 1 has 2 records, fewer than the 3 that are asked for"),
        (["a", "--per-class", "1"], "both parts cannot be written into 'a'; name two places"),
        (["b", "--per-class", "2"], "nothing to write into 'b': there are no records"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    labels = [0, 1, 0, 1] if "b" in arguments else [0, 1, 0, 0, 1]
    make_lmdb(Path("in"), labels)
    with pytest.raises(DataError) as caught:
        run("in", "a", *arguments)
    assert str(caught.value).startswith(message)
    assert names(tmp_path) == ["in"]


def test_existing_targets_are_refused(tmp_path: Path) -> None:
    for name in ("in", "b"):
        make_lmdb(tmp_path / name, [0, 1, 0, 1])
    with pytest.raises(FileError, match=r"b': it exists already; remove it or choose another name$"):
        run(tmp_path / "in", tmp_path / "a", tmp_path / "b", "--share", 0.5)
    assert names(tmp_path) == ["b", "in"]


@pytest.mark.parametrize("what", ["labels", "keys"])
def test_clean_labels_of_another_lmdb_are_refused(tmp_path: Path, what: str) -> None:
    make_lmdb(tmp_path / "in", [0, 1, 0, 1])
    run(tmp_path / "in", tmp_path / "n", "--noise", "pair-flip", "--rate", 1, module=corrupt_labels)
    records = read(tmp_path / "n")
    (tmp_path / "n" / "data.mdb").unlink()
    (tmp_path / "n" / "lock.mdb").unlink()
    (tmp_path / "n").rmdir()
    if what == "labels":
        records[3][1].label = 1
    else:
        records[3] = (b"other", records[3][1])
    write_lmdb(tmp_path / "n", records)
    before = names(tmp_path)
    with pytest.raises(DataError) as caught:
        run(tmp_path / "n", tmp_path / "a", "--share", 0.5)
    assert str(caught.value) == (
        f"the clean labels '{tmp_path}/n.clean_labels.npz' are not of the LMDB beside them: its keys or "
        "labels are others; remove the file, or make both again"
    )
    assert names(tmp_path) == before
