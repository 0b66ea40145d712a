"""Label noise: exactly what was asked for, the same for a seed, and the clean labels kept."""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from listing import sorted_names as names

from imae.cli import command_corrupt_labels as command
from imae.converters import corrupt_labels
from imae.converters.corrupt_labels import (
    CIFAR10_PAIRS,
    CIFAR100_SUPERCLASSES,
    NOISES,
    corrupt,
    summary,
)
from imae.converters.label_file import read_labels
from imae.converters.lmdb_writer import write_lmdb
from imae.files.errors import DataError, FileError
from imae.layers.data.lmdb_source import open_lmdb
from imae.prototxt import Datum

COUNT = 20_000
CLASSES = {name: corrupt_labels.CLASSES.get(name, 10) for name in NOISES}


def clean_labels(classes: int, count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(classes).integers(0, classes, count)


def check_share(hits: int, trials: int, probability: float) -> None:
    """Within five standard deviations of a binomial distribution (one in a million is outside)."""
    assert abs(hits - trials * probability) <= 5 * math.sqrt(trials * probability * (1 - probability))


def run(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(argument) for argument in arguments]))


def make_lmdb(path: Path, labels: list[int]) -> list[tuple[bytes, Datum]]:
    records = [
        (b"%05d_x" % i, Datum(channels=1, height=1, width=2, data=bytes([i % 256, 7]), label=label))
        for i, label in enumerate(labels)
    ]
    write_lmdb(path, records)
    return records


def read(path: Path) -> list[tuple[bytes, Datum]]:
    with open_lmdb(path) as source:
        return [(key, source.datum(i)) for i, key in enumerate(source.keys())]


# -- the kinds of noise ------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES)
def test_a_seed_means_the_same_labels(noise: str) -> None:
    labels, classes = clean_labels(CLASSES[noise]), CLASSES[noise]
    before = labels.copy()
    first = corrupt(labels, noise, 0.3, 123, classes)
    assert np.array_equal(first, corrupt(labels, noise, 0.3, 123, classes))
    assert not np.array_equal(first, corrupt(labels, noise, 0.3, 124, classes))
    assert np.array_equal(labels, before)
    assert first.min() >= 0
    assert first.max() < classes


@pytest.mark.parametrize("noise", NOISES)
def test_a_higher_rate_only_adds_wrong_labels(noise: str) -> None:
    labels, classes = clean_labels(CLASSES[noise]), CLASSES[noise]
    low, high = (corrupt(labels, noise, rate, 5, classes) for rate in (0.2, 0.6))
    wrong = low != labels
    assert np.array_equal(low[wrong], high[wrong])
    assert np.sum(high != labels) > np.sum(wrong) > 0


@pytest.mark.parametrize("noise", NOISES)
def test_rate_zero_changes_nothing(noise: str) -> None:
    labels = clean_labels(CLASSES[noise])
    assert np.array_equal(corrupt(labels, noise, 0, 1, CLASSES[noise]), labels)


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.8, 1])
def test_symmetric_noise_may_hit_the_own_class(rate: float) -> None:
    labels = clean_labels(10)
    noisy = corrupt(labels, "symmetric", rate, 1, 10)
    check_share(int(np.sum(noisy != labels)), COUNT, rate * 0.9)
    for clean in range(10):
        group = noisy[labels == clean]
        for other in range(10):
            own = 1 - rate if other == clean else 0
            check_share(int(np.sum(group == other)), len(group), own + rate / 10)


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.8, 1])
def test_symmetric_exclusive_noise_never_does(rate: float) -> None:
    labels = clean_labels(10)
    noisy = corrupt(labels, "symmetric-exclusive", rate, 1, 10)
    check_share(int(np.sum(noisy != labels)), COUNT, rate)
    for clean in range(10):
        group = noisy[labels == clean]
        for other in set(range(10)) - {clean}:
            check_share(int(np.sum(group == other)), len(group), rate / 9)
    if rate == 1:
        assert np.all(noisy != labels)


@pytest.mark.parametrize(
    ("noise", "pairs"),
    [("asymmetric-cifar10", CIFAR10_PAIRS), ("pair-flip", {c: (c + 1) % 10 for c in range(10)})],
)
@pytest.mark.parametrize("rate", [0.3, 1])
def test_pairs(noise: str, pairs: dict[int, int], rate: float) -> None:
    labels = clean_labels(10)
    noisy = corrupt(labels, noise, rate, 1, 10)
    for clean in range(10):
        group = noisy[labels == clean]
        assert set(group) <= {clean, pairs.get(clean, clean)}
        check_share(int(np.sum(group != clean)), len(group), rate if clean in pairs else 0)


@pytest.mark.parametrize(
    ("noise", "classes", "rate", "wrong"),
    [
        # The paper: a random class of CIFAR-10's ten, so that a tenth of the labels that are hit stay right.
        *(("symmetric", 10, rate, 0.9 * rate) for rate in (0.2, 0.5, 0.8)),
        # The later version on CIFAR-100: one of the 99 other classes.
        *(("symmetric-exclusive", 100, rate, rate) for rate in (0.2, 0.4, 0.6)),
        # Two of the five classes of each superclass.
        *(("asymmetric-cifar100", 100, rate, 0.4 * rate) for rate in (0.2, 0.3, 0.4)),
        *(("asymmetric-cifar10", 10, rate, 0.5 * rate) for rate in (0.2, 0.4)),
    ],
)
def test_how_many_labels_are_wrong_at_the_papers_rates(
    noise: str, classes: int, rate: float, wrong: float
) -> None:
    labels = np.repeat(np.arange(classes), 50000 // classes)
    noisy = corrupt(labels, noise, rate, 123, classes)
    check_share(int(np.sum(noisy != labels)), 50000, wrong)
    if noise == "symmetric-exclusive":  # all confusions are equally likely: chi squared of 9,900 counts
        counts = np.zeros((100, 100))
        np.add.at(counts, (labels, noisy), 1)
        others = counts[~np.eye(100, dtype=bool)]
        chi2 = float(((others - others.mean()) ** 2 / others.mean()).sum())
        assert abs(chi2 - others.size) <= 5 * math.sqrt(2 * others.size)


def test_cifar10s_pairs_are_the_usual_ones() -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert {names[a]: names[b] for a, b in CIFAR10_PAIRS.items()} == {
        "truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"
    }  # fmt: skip


def test_cifar100s_superclasses_have_five_classes_each() -> None:
    assert np.bincount(CIFAR100_SUPERCLASSES).tolist() == [5] * 20
    flowers = [54, 62, 70, 82, 92]  # orchid, poppy, rose, sunflower, tulip
    people = [2, 11, 35, 46, 98]  # baby, boy, girl, man, woman
    assert np.flatnonzero(CIFAR100_SUPERCLASSES == 2).tolist() == flowers
    assert np.flatnonzero(CIFAR100_SUPERCLASSES == 14).tolist() == people


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_cifar100s_pairs_exchange_an_exact_share(rate: float) -> None:
    labels = np.repeat(np.arange(100), 50)
    noisy = corrupt(labels, "asymmetric-cifar100", rate, 123, 100)
    partners = {}
    for clean in range(100):
        others = noisy[labels == clean]
        others = others[others != clean]
        if len(others):
            assert len(others) == round(rate * 50)
            (partners[clean],) = set(others.tolist())
    assert len(partners) == 40
    for one, other in partners.items():
        assert partners[other] == one
        assert CIFAR100_SUPERCLASSES[one] == CIFAR100_SUPERCLASSES[other]


def test_the_streams_are_frozen() -> None:
    """Labels that a seed once gave, it gives for ever: results are cited with it."""
    labels = np.arange(20) % 10
    expected = {
        "symmetric": "0 0 7 3 4 4 6 7 5 6 2 1 8 3 5 5 2 6 8 9",
        "symmetric-exclusive": "0 2 0 3 4 2 6 7 5 2 2 1 6 9 5 5 3 0 8 9",
        "asymmetric-cifar10": "0 1 0 3 4 3 6 7 8 1 0 1 0 5 7 5 6 7 8 9",
        "pair-flip": "0 2 3 3 4 6 6 7 9 0 1 1 3 4 5 5 7 8 8 9",
    }
    for noise, text in expected.items():
        assert corrupt(labels, noise, 0.5, 123, 10).tolist() == [int(label) for label in text.split()]


@pytest.mark.parametrize(
    ("noise", "rate", "seed", "classes", "message"),
    [
        ("symmetric", 1.01, 1, 10, "--rate must be from 0 to 1, got 1.01"),
        ("symmetric", -0.1, 1, 10, "--rate must be from 0 to 1"),
        ("symmetric", math.nan, 1, 10, "--rate must be from 0 to 1"),
        ("symmetric", 0.1, 2**32, 10, "--seed must be from 0 to 4294967295"),
        ("pair-flip", 0.1, 1, 1, "pair-flip noise needs at least 2 classes, got 1"),
        ("asymmetric-cifar10", 0.1, 1, 100, "asymmetric-cifar10 noise is for 10 classes, got 100"),
        ("asymmetric-cifar100", 0.1, 1, 10, "asymmetric-cifar100 noise is for 100 classes, got 10"),
    ],
)
def test_what_makes_no_sense(noise: str, rate: float, seed: int, classes: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        corrupt(np.zeros(3, np.int64), noise, rate, seed, classes)


# -- from LMDB to LMDB -------------------------------------------------------------------------------------


def test_only_the_labels_change_and_the_clean_ones_are_kept(tmp_path: Path) -> None:
    clean = clean_labels(10, 1500).tolist()
    records = make_lmdb(tmp_path / "in", clean)
    run(tmp_path / "in", tmp_path / "out", "--noise", "symmetric", "--rate", 0.4, "--seed", 7)
    assert names(tmp_path) == ["in", "out", "out.clean_labels.npz"]
    noisy = corrupt(np.array(clean), "symmetric", 0.4, 7, 10).tolist()
    assert noisy != clean
    for (key, datum), (old_key, old), label in zip(read(tmp_path / "out"), records, noisy, strict=True):
        assert key == old_key
        assert datum == Datum(channels=1, height=1, width=2, data=old.data, label=label)
    with np.load(tmp_path / "out.clean_labels.npz", allow_pickle=False) as kept:
        assert sorted(kept.files) == ["clean", "key", "noisy", "settings"]
        assert kept["key"].tolist() == [key for key, _ in records]
        assert kept["clean"].tolist() == clean
        assert kept["noisy"].tolist() == noisy
        assert json.loads(str(kept["settings"])) == {
            "input": str(tmp_path / "in"), "noise": "symmetric", "rate": 0.4, "seed": 7, "classes": 10
        }  # fmt: skip


def test_the_default_seed_is_the_authors(tmp_path: Path) -> None:
    make_lmdb(tmp_path / "in", [0, 1, 2] * 50)
    run(tmp_path / "in", tmp_path / "out", "--noise", "pair-flip", "--rate", 0.5)
    expected = corrupt(np.array([0, 1, 2] * 50), "pair-flip", 0.5, 123, 3)
    assert [datum.label for _, datum in read(tmp_path / "out")] == expected.tolist()


def test_labels_of_a_file_by_place(tmp_path: Path) -> None:
    make_lmdb(tmp_path / "in", [0, 1, 2, 3])
    wanted = np.array([3, 1, 0, 0])
    np.save(tmp_path / "l.npy", wanted.astype(np.uint8))
    np.savez(tmp_path / "one.npz", worst=wanted)
    np.savez(tmp_path / "two.npz", clean=wanted * 0, worst=wanted)
    (tmp_path / "l.txt").write_text("3\n1\n0\n0\n")
    for i, source in enumerate(["l.npy", "one.npz", "two.npz:worst", "l.txt"]):
        run(tmp_path / "in", tmp_path / f"out{i}", "--noise", "file", "--labels", tmp_path / source)
        assert [datum.label for _, datum in read(tmp_path / f"out{i}")] == wanted.tolist()


def test_labels_of_a_file_in_another_order(tmp_path: Path) -> None:
    make_lmdb(tmp_path / "in", [0, 1, 2])
    np.savez(tmp_path / "l.npz", labels=[5, 4, 3, 2, 1], order=[4, 0, 2])
    run(tmp_path / "in", tmp_path / "out", "--noise", "file", "--classes", 6,
        "--labels", f"{tmp_path}/l.npz:labels", "--order", f"{tmp_path}/l.npz:order")  # fmt: skip
    assert [datum.label for _, datum in read(tmp_path / "out")] == [1, 5, 3]


def test_labels_of_a_file_by_key(tmp_path: Path) -> None:
    """The clean labels' own file is such a file: it takes the noise back, whatever the order."""
    clean = clean_labels(10, 200).tolist()
    make_lmdb(tmp_path / "in", clean)
    run(tmp_path / "in", tmp_path / "noisy", "--noise", "symmetric-exclusive", "--rate", 0.5)
    with np.load(tmp_path / "noisy.clean_labels.npz", allow_pickle=False) as kept:
        np.savez(tmp_path / "mixed.npz", key=kept["key"][::-1], clean=kept["clean"][::-1])
    run(tmp_path / "noisy", tmp_path / "out", "--noise", "file", "--labels", tmp_path / "mixed.npz")
    assert read(tmp_path / "out") == read(tmp_path / "in")


def test_summary_of_few_classes() -> None:
    clean, noisy = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 2, 2])
    assert summary(clean, noisy, 3) == [
        "2 of 6 labels are wrong (33.33 %).",
        "Records by clean label (rows) and noisy label (columns):",
        "   0 1 2",
        " 0 1 1 0",
        " 1 0 1 0",
        " 2 1 0 2",
    ]


def test_summary_of_many_classes() -> None:
    clean, noisy = np.array([0, 7, 7, 99]), np.array([0, 8, 8, 2])
    assert summary(clean, noisy, 100) == [
        "3 of 4 labels are wrong (75.00 %).",
        "The most frequent of 2 confusions, clean -> noisy: records",
        "7 -> 8: 2",
        "99 -> 2: 1",
    ]
    assert len(summary(np.arange(100), (np.arange(100) + 1) % 100, 100)) == 22


def test_the_summary_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    make_lmdb(tmp_path / "in", [0, 1])
    run(tmp_path / "in", tmp_path / "out", "--noise", "pair-flip", "--rate", 1)
    assert "2 of 2 labels are wrong (100.00 %)." in caplog.messages
    assert f"The clean labels are in {tmp_path}/out.clean_labels.npz" in caplog.messages


# -- what is refused ---------------------------------------------------------------------------------------

FROM = ["--noise", "file", "--labels"]
PAIR = ["--noise", "pair-flip"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*PAIR], "--noise pair-flip takes --rate R, and no --labels and no --order"),
        ([*PAIR, "--rate", "0.1", "--labels", "x"], "takes --rate R, and no --labels"),
        ([*PAIR, "--rate", "2"], "--rate must be from 0 to 1, got 2.0"),
        ([*PAIR, "--rate", "0.1", "--classes", "3"], "3 at place 3 is out of range; it must be 0 to 2"),
        ([*PAIR, "--rate", "0.1", "--classes", "0"], "is out of range"),
        (["--noise", "asymmetric-cifar10", "--rate", "0.1", "--classes", "9"], "is for 10 classes, got 9"),
        (["--noise", "file"], "--noise file takes --labels FILE, and no --rate and no --seed"),
        ([*FROM, "x", "--rate", "0.1"], "takes --labels FILE, and no --rate and no --seed"),
        ([*FROM, "x", "--seed", "1"], "takes --labels FILE, and no --rate and no --seed"),
        ([*FROM, "none.txt"], "cannot read the labels 'none.txt': No such file or directory"),
        ([*FROM, "none.npz:a"], "cannot read the labels 'none.npz': No such file or directory"),
        ([*FROM, "three.txt"], "'three.txt' has 3 entries; the LMDB has 4 records"),
        ([*FROM, "words.txt"], "expected FILE.npz:KEY, FILE.npy or FILE.txt"),
        ([*FROM, "empty.txt"], "'empty.txt' must be a list of whole numbers"),
        ([*FROM, "broken.npy"], "cannot read the labels 'broken.npy'"),
        ([*FROM, "broken.npz"], "cannot read the labels 'broken.npz'"),
        ([*FROM, "cut.npz:a"], "cannot read the labels 'cut.npz:a'"),
        ([*FROM, "objects.npy"], "Python objects, which are not unpickled"),
        ([*FROM, "huge.npy"], "cannot read the labels 'huge.npy'"),
        ([*FROM, "float.npy"], "got an array of float64 with shape (4,)"),
        ([*FROM, "square.npy"], "got an array of int64 with shape (2, 2)"),
        ([*FROM, "two.npz"], "has the arrays a, b; name one of them, as in two.npz:a"),
        ([*FROM, "two.npz:c"], "has the arrays a, b; name one of them"),
        ([*FROM, "two.npz:b"], "number -1 at place 3 is out of range"),
        ([*FROM, "two.npz:a", "--classes", "3"], "out of range; it must be 0 to 2"),
        ([*FROM, "two.npz:a", "--order", "two.npz:b"], "the order 'two.npz:b': number -1 at place 3"),
        ([*FROM, "two.npz:a", "--order", "three.txt"], "'three.txt' has 3 entries"),
        ([*FROM, "keys.npz:a"], "has no label for 3 keys, e.g. b'00001_x'"),
        ([*FROM, "short.npz:a"], "'key' must hold the LMDB key of each of the 4 labels"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    make_lmdb(Path("in"), [0, 1, 2, 3])
    Path("three.txt").write_text("0 1 2")
    Path("words.txt").write_text("zero one")
    Path("empty.txt").touch()
    Path("broken.npy").write_bytes(b"no")
    Path("broken.npz").write_bytes(b"PK\3\4 no")
    np.save("objects.npy", np.array([{}, 1, 2, 3], object), allow_pickle=True)
    np.save("float.npy", np.zeros(4))
    np.save("square.npy", np.zeros((2, 2), np.int64))
    np.savez("two.npz", a=[0, 1, 2, 3], b=[0, 1, 2, -1])
    np.savez("keys.npz", key=np.array([b"00000_x", b"a", b"b", b"c"]), a=[0, 1, 2, 3])
    np.savez("short.npz", key=np.array([b"00000_x"]), a=[0, 1, 2, 3])
    np.savez_compressed("cut.npz", a=np.arange(5000))
    data = Path("cut.npz").read_bytes()
    Path("cut.npz").write_bytes(data[:300] + bytes(300) + data[600:])
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }\n"
    Path("huge.npy").write_bytes(b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
    before = names(tmp_path)
    with pytest.raises(DataError) as caught:
        run("in", "out", *arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == before


def test_negative_labels_are_refused(tmp_path: Path) -> None:
    make_lmdb(tmp_path / "in", [0, 1, -1])
    with pytest.raises(DataError, match=r"the labels of lmdb '.*/in': number -1 at place 2 is out of range"):
        run(tmp_path / "in", tmp_path / "out", "--noise", "symmetric", "--rate", 0.1)


def test_an_existing_target_is_refused(tmp_path: Path) -> None:
    make_lmdb(tmp_path / "in", [0, 1])
    make_lmdb(tmp_path / "out", [1, 0])
    with pytest.raises(FileError, match=r"out': it exists already; remove it or choose another name$"):
        run(tmp_path / "in", tmp_path / "out", "--noise", "symmetric", "--rate", 0.1)
    assert names(tmp_path) == ["in", "out"]


def test_a_key_that_the_clean_labels_cannot_hold(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "in", [(b"a\0", Datum(label=0)), (b"b", Datum(label=1))])
    with pytest.raises(DataError, match="keys that end in a zero byte"):
        run(tmp_path / "in", tmp_path / "out", "--noise", "symmetric", "--rate", 0.1)
    assert names(tmp_path) == ["in"]


def test_labels_are_read_without_unpickling(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.array([1, 2]))
    assert read_labels(str(tmp_path / "l.npy")).labels.tolist() == [1, 2]
    np.save(tmp_path / "o.npy", np.array([1, 2], object), allow_pickle=True)
    with pytest.raises(DataError, match="not unpickled"):
        read_labels(str(tmp_path / "o.npy"))


def test_more_classes_than_a_label_can_tell_apart() -> None:
    with pytest.raises(DataError, match="--classes must be at most 2147483647, as a label has 32 bits"):
        corrupt(np.zeros(3, np.int64), "symmetric", 0.5, 1, 2**63)
