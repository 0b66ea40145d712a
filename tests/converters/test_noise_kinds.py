"""Noise by a transition matrix and by the image; kinds of noise that the classes are not for; the help."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from listing import sorted_names as names
from tolerances import tolerance

from imae.cli import command_corrupt_labels as command
from imae.cli.main import main
from imae.converters.corrupt_labels import KINDS, by_matrix
from imae.converters.instance_noise import (
    DEVIATION,
    image_rates,
    instance_dependent,
    standardised_pixels,
    wrong_labels,
)
from imae.converters.label_file import read_labels, read_matrix
from imae.converters.lmdb_writer import write_lmdb
from imae.files.errors import DataError, ImaeError
from imae.layers.data.lmdb_source import open_lmdb
from imae.prototxt import Datum

Random = np.random.RandomState
COUNT = 20_000


def check_share(hits: int, trials: int, probability: float) -> None:
    """Within five standard deviations of a binomial distribution (one in a million is outside)."""
    assert abs(hits - trials * probability) <= 5 * math.sqrt(trials * probability * (1 - probability))


def run(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(argument) for argument in arguments]))


def make_lmdb(path: Path, labels: list[int], width: int = 3) -> None:
    random = Random(5)
    write_lmdb(
        path,
        [
            (
                b"%05d" % i,
                Datum(channels=2, height=1, width=width, data=random.bytes(2 * width), label=label),
            )
            for i, label in enumerate(labels)
        ],
    )


def labels_of(path: Path) -> list[int]:
    with open_lmdb(path) as source:
        return [source.datum(i).label for i in range(len(source))]


# -- a transition matrix -----------------------------------------------------------------------------------

MATRIX = np.array([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.25, 0.25, 0.5]])


def test_labels_follow_the_rows_of_the_matrix() -> None:
    labels = np.arange(3 * COUNT) % 3
    noisy = by_matrix(labels, MATRIX, Random(1))
    assert np.array_equal(noisy, by_matrix(labels, MATRIX, Random(1)))
    assert not np.array_equal(noisy, by_matrix(labels, MATRIX, Random(2)))
    for clean, row in enumerate(MATRIX):
        for label, probability in enumerate(row):
            hits = int(np.sum(noisy[labels == clean] == label))
            if probability in (0, 1):
                assert hits == probability * COUNT
            else:
                check_share(hits, COUNT, probability)


def test_a_matrix_is_read_from_text_and_numpy(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("# clean, noisy\n0.7,0.3,0\n0, 1, 0,\n\n.25,.25,.5\n")
    (tmp_path / "a.txt").write_text("0.7 0.3 0\n0 1 0\n\t.25 .25 5e-1\n")
    np.save(tmp_path / "a.npy", MATRIX)
    np.save(tmp_path / "columns.npy", np.asfortranarray(MATRIX))
    for name in ("a.csv", "a.txt", "a.npy", "columns.npy"):
        assert read_matrix(str(tmp_path / name)).tolist() == MATRIX.tolist()


def test_an_lmdb_by_a_matrix(tmp_path: Path) -> None:
    """--noise matrix may be left out; the matrix is kept with the clean labels."""
    clean = [0, 1, 2] * 50
    make_lmdb(tmp_path / "in", clean)
    np.save(tmp_path / "m.npy", MATRIX)
    run(tmp_path / "in", tmp_path / "a", "--matrix", tmp_path / "m.npy", "--seed", 4)
    run(tmp_path / "in", tmp_path / "b", "--noise", "matrix", "--matrix", tmp_path / "m.npy", "--seed", 4)
    expected = by_matrix(np.array(clean), MATRIX, Random(4)).tolist()
    assert labels_of(tmp_path / "a") == labels_of(tmp_path / "b") == expected != clean
    with np.load(tmp_path / "a.clean_labels.npz", allow_pickle=False) as kept:
        settings = json.loads(str(kept["settings"]))
        assert kept["clean"].tolist() == clean
    assert settings["transitions"] == MATRIX.tolist()
    assert (settings["noise"], settings["seed"], settings["classes"]) == ("matrix", 4, 3)


@pytest.mark.parametrize("kind", [b"<f1", b"|b2"])
def test_a_number_of_a_size_that_no_number_has(kind: bytes, tmp_path: Path) -> None:
    head = b"{'descr': '%s', 'fortran_order': False, 'shape': (1, 1), }\n" % kind
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head + b"\0")
    for read in (read_matrix, read_labels):
        with pytest.raises(DataError, match=r"cannot read the .*: expected .*: "):
            read(str(tmp_path / "a.npy"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0\n0 0.9\n", "row 1 (clean label 1) sums to 0.9, not to 1"),
        ("1 0\n-0.5 1.5\n", "row 1 has numbers that are no probabilities, 0 to 1"),
        ("1 0\nnan 1\n", "row 1 has numbers that are no probabilities"),
        ("1 0\n", "has as many rows as columns, one for each class; got 1 x 2"),
        ("1 0\n1\n", "its rows have 1 to 2 numbers"),
        ("1 a\n0 1\n", "cannot read the matrix 'm.txt': expected a matrix"),
        ("", "must hold a matrix, got an array with shape (0,)"),
        ("1 0\n0 1\n", "the labels of lmdb 'in': number 2 at place 2 is out of range; it must be 0 to 1"),
    ],
)
def test_matrices_that_are_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_lmdb(Path("in"), [0, 1, 2])
    Path("m.txt").write_text(text)
    with pytest.raises(DataError) as caught:
        run("in", "out", "--matrix", "m.txt")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["in", "m.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --noise KIND (symmetric, "),
        (["--matrix", "none.csv"], "cannot read the matrix 'none.csv': No such file or directory"),
        (["--matrix", "o.npy"], "Python objects, which are not unpickled"),
        (["--matrix", "v.npy"], "must hold a matrix, got an array with shape (3,)"),
        (["--matrix", "m.npy", "--classes", "4"], "the matrix is for 3 classes, got --classes 4"),
        (["--matrix", "m.npy", "--rate", "0.1"], "takes --matrix FILE, and no --rate"),
        (["--noise", "matrix"], "takes --matrix FILE, and no --rate"),
        (["--noise", "symmetric", "--matrix", "m.npy"], "--noise symmetric takes no --matrix"),
        # Classes that are not there.
        (
            ["--noise", "asymmetric-cifar100", "--rate", "0.1"],
            "asymmetric-cifar100 noise is for 100 classes; lmdb 'in' seems to have 3, as its largest label "
            "is 2; choose another noise, or say --classes 100",
        ),
        (["--noise", "asymmetric-cifar10", "--rate", "0.1"], "lmdb 'in' seems to have 3"),
        (
            ["--noise", "file", "--labels", "l.npy"],
            "the labels of 'l.npy', of 3 classes (see --classes): number 7 at place 1 is out of range",
        ),
        (["--noise", "instance"], "--noise instance takes --rate R"),
        (["--noise", "instance", "--rate", "2"], "--rate must be from 0 to 1, got 2.0"),
    ],
)
def test_refused(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_lmdb(Path("in"), [0, 1, 2])
    np.save("m.npy", MATRIX)
    np.save("v.npy", MATRIX[0])
    np.save("o.npy", np.array([[{}]], object), allow_pickle=True)
    np.save("l.npy", [0, 7, 2])
    before = names(tmp_path)
    with pytest.raises(ImaeError) as caught:
        run("in", "out", *arguments)
    assert message in str(caught.value)
    assert names(tmp_path) == before


def test_a_subset_of_the_classes_is_taken_when_it_is_said_so(tmp_path: Path) -> None:
    make_lmdb(tmp_path / "in", [0, 3, 5] * 10)
    noise = ["--noise", "asymmetric-cifar10", "--rate", 1, "--classes", 10]
    run(tmp_path / "in", tmp_path / "out", *noise)
    assert labels_of(tmp_path / "out") == [0, 5, 3] * 10


# -- noise that depends on the image -----------------------------------------------------------------------


def random_pixels(count: int, size: int = 12) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, size))


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4, 0.95])
def test_the_rates_of_images_are_of_a_normal_distribution_that_is_cut_off(rate: float) -> None:
    """Against the density of that distribution, integrated."""
    rates = image_rates(np.random.default_rng(1).random(COUNT), rate)
    grid = (np.arange(10_000) + 0.5) / 10_000
    density = np.exp(-((grid - rate) ** 2) / (2 * DEVIATION**2))
    density /= density.sum()
    mean = float((density * grid).sum())
    deviation = math.sqrt(float((density * (grid - mean) ** 2).sum()))
    assert abs(rates.mean() - mean) <= 5 * deviation / math.sqrt(COUNT)
    assert rates.min() >= 0 and rates.max() <= 1
    for limit in (rate - 0.05, rate, min(rate + 0.05, 0.99)):
        check_share(int(np.sum(rates < limit)), COUNT, float(density[grid < limit].sum()))


def test_the_rates_of_images_are_those_in_the_documentation() -> None:
    places = (np.arange(COUNT) + 0.5) / COUNT
    means = [f"{image_rates(places, rate).mean():.3f}" for rate in (0, 0.1, 0.2, 0.4)]
    assert means == ["0.000", "0.129", "0.206", "0.400"]


def test_wrong_labels_are_drawn_by_softmax_over_the_other_classes() -> None:
    scores = np.tile([1.0, 0.0, 50.0, 2.0], (COUNT, 1))
    drawn = wrong_labels(scores, 2, np.random.default_rng(2).random(COUNT))
    p = np.exp([1.0, 0.0, -math.inf, 2.0])
    p /= p.sum()
    for label in (0, 1, 3):
        check_share(int(np.sum(drawn == label)), COUNT, float(p[label]))
    assert not np.any(drawn == 2)
    last = wrong_labels(np.array([[0.0, 1.0, 2.0]]), 2, np.array([1 - 2**-53]))
    assert last.tolist() == [1]


def test_about_the_rate_of_the_labels_is_wrong_and_more_at_a_higher_rate() -> None:
    pixels = random_pixels(COUNT)
    labels = np.arange(COUNT) % 5
    low, high = (
        instance_dependent(labels, 5, rate, Random(3), lambda rows: pixels[rows]) for rate in (0.2, 0.4)
    )
    wrong = low != labels
    normal = NormalDist(0, 1)
    check_share(int(wrong.sum()), COUNT, 0.2 + DEVIATION * normal.pdf(2) / normal.cdf(2))
    check_share(int(np.sum(high != labels)), COUNT, 0.4)
    assert np.array_equal(low[wrong], high[wrong])
    assert np.array_equal(instance_dependent(labels, 5, 0, Random(3), lambda rows: pixels[rows]), labels)
    other = instance_dependent(labels, 5, 0.2, Random(4), lambda rows: pixels[rows])
    assert not np.array_equal(low, other)
    assert low.min() == 0 and low.max() == 4


def test_the_wrong_label_depends_on_the_image() -> None:
    """Copies of an image share their likely wrong labels, whatever the record; other images have others.

    Of normal noise in 12 pixels the most likely wrong class has most of the probability. If the classes did
    not depend on the image, each would have the same share in all images.
    """
    images, copies = random_pixels(8), 500
    pixels = np.repeat(images, copies, axis=0)
    noisy = instance_dependent(
        np.zeros(len(pixels), np.int64), 10, 0.5, Random(1), lambda rows: pixels[rows]
    ).reshape(8, copies)
    shares = np.stack([np.bincount(row[row > 0], minlength=10) / np.sum(row > 0) for row in noisy])
    assert np.median(shares.max(axis=1)) > 0.5
    assert len(set(shares.argmax(axis=1).tolist())) > 2
    # The scores are linear in the pixels: an image and its negative never have the same favourite.
    both = np.repeat(np.stack([images[0], -images[0]]), copies, axis=0)
    noisy = instance_dependent(
        np.zeros(2 * copies, np.int64), 10, 0.5, Random(1), lambda rows: both[rows]
    ).reshape(2, copies)
    first, second = (np.bincount(row[row > 0], minlength=10).argmax() for row in noisy)
    assert first == shares[0].argmax() != second


def test_pixels_have_mean_0_and_deviation_1_in_each_channel(tmp_path: Path) -> None:
    make_lmdb(tmp_path / "in", [0] * 40)
    with open_lmdb(tmp_path / "in") as source:
        x = standardised_pixels(source)(np.arange(40)).reshape(40, 2, 3)
        raw = np.stack([np.frombuffer(source.datum(i).data, np.uint8).reshape(2, 3) for i in range(40)])
    expected = (raw - raw.mean(axis=(0, 2))[:, None]) / raw.std(axis=(0, 2))[:, None]
    allowed = tolerance("formula", "float64")
    np.testing.assert_allclose(x, expected, rtol=allowed.rtol, atol=allowed.atol)


def test_an_lmdb_by_the_image(tmp_path: Path) -> None:
    clean = [0, 1, 2, 3] * 100
    make_lmdb(tmp_path / "in", clean)
    for name in ("a", "b"):
        run(tmp_path / "in", tmp_path / name, "--noise", "instance", "--rate", 0.3, "--seed", 2)
    noisy = labels_of(tmp_path / "a")
    assert noisy == labels_of(tmp_path / "b")
    check_share(sum(a != b for a, b in zip(clean, noisy, strict=True)), 400, 0.3)
    with np.load(tmp_path / "a.clean_labels.npz", allow_pickle=False) as kept:
        settings = json.loads(str(kept["settings"]))
    assert (settings["noise"], settings["rate"], settings["seed"]) == ("instance", 0.3, 2)


def test_images_of_several_sizes_are_refused(tmp_path: Path) -> None:
    write_lmdb(
        tmp_path / "in",
        [
            (b"a", Datum(channels=1, height=1, width=2, data=b"ab", label=0)),
            (b"b", Datum(channels=1, height=1, width=3, data=b"abc", label=1)),
        ],
    )
    with pytest.raises(DataError, match=r"of one size; .* shape \(1, 1, 3\), the first one \(1, 1, 2\)"):
        run(tmp_path / "in", tmp_path / "out", "--noise", "instance", "--rate", 0.3)
    assert names(tmp_path) == ["in"]


def test_the_help_explains_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["corrupt-labels", "--help"])
    lines = capsys.readouterr().out.splitlines()
    for kind in KINDS:
        assert any(line.startswith(f"  {kind} ") for line in lines), kind
    assert any("its own included: R (C - 1) / C of the labels" in line for line in lines)
