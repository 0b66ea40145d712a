"""A copy of an LMDB with part of its labels made wrong on purpose, by one of KINDS.

Images, keys and order stay the same. NAME.clean_labels.npz beside the new LMDB holds the keys, the clean and
the noisy labels, so that the noisy and the clean part of the training set can be told apart later.

The random numbers are those of numpy's RandomState(seed) (mt19937), whose streams are frozen: a seed gives
the same labels with every version of numpy. The draws do not depend on the rate: the labels that are wrong at
a lower rate are wrong at a higher one as well.
"""

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imae.converters.instance_noise import instance_dependent, standardised_pixels
from imae.converters.label_file import (
    Labels,
    check_range,
    clean_labels_file,
    clean_labels_path,
    read_labels,
    read_matrix,
)
from imae.converters.lmdb_writer import Record, write_lmdb
from imae.files.errors import DataError
from imae.files.nearest import did_you_mean
from imae.files.read import AnyPath
from imae.layers.data.lmdb_source import LmdbSource, open_lmdb

logger = logging.getLogger(__name__)

CIFAR10_PAIRS = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
CIFAR100_SUPERCLASSES = np.array([  # of each class; classes and superclasses are in alphabetical order
     4,  1, 14,  8,  0,  6,  7,  7, 18,  3,  3, 14,  9, 18,  7, 11,  3,  9,  7, 11,
     6, 11,  5, 10,  7,  6, 13, 15,  3, 15,  0, 11,  1, 10, 12, 14, 16,  9, 11,  5,
     5, 19,  8,  8, 15, 13, 14, 17, 18, 10, 16,  4, 17,  4,  2,  0, 17,  4, 18, 17,
    10,  3,  2, 12, 12, 16, 12,  1,  9, 19,  2, 10,  0,  1, 16, 12,  9, 13, 15, 13,
    16, 19,  2,  4,  6, 19,  5,  5,  8, 19, 18,  1,  2, 15,  6,  0, 17,  8, 14, 13,
])  # fmt: skip
LARGEST_TABLE = 20  # classes
DEFAULT_SEED = 123  # the authors'

Random = np.random.RandomState


def symmetric(labels: Labels, classes: int, rate: float, random: Random) -> Labels:
    """With probability `rate` any class."""
    hit = random.random_sample(len(labels)) < rate
    return np.where(hit, random.randint(0, classes, len(labels), np.int64), labels)


def symmetric_exclusive(labels: Labels, classes: int, rate: float, random: Random) -> Labels:
    """With probability `rate` another class, all equally likely."""
    hit = random.random_sample(len(labels)) < rate
    return np.where(hit, (labels + random.randint(1, classes, len(labels), np.int64)) % classes, labels)


def flip(labels: Labels, targets: Labels, rate: float, random: Random) -> Labels:
    """With probability `rate` the target; `targets` has one for each record."""
    return np.where(random.random_sample(len(labels)) < rate, targets, labels)


def asymmetric_cifar10(labels: Labels, classes: int, rate: float, random: Random) -> Labels:
    """CIFAR-10's usual pairs."""
    return flip(labels, np.array([CIFAR10_PAIRS.get(c, c) for c in labels.tolist()]), rate, random)


def pair_flip(labels: Labels, classes: int, rate: float, random: Random) -> Labels:
    """To the next class."""
    return flip(labels, (labels + 1) % classes, rate, random)


def asymmetric_cifar100(labels: Labels, classes: int, rate: float, random: Random) -> Labels:
    """Two classes of each superclass exchange the share `rate` of their images."""
    noisy = labels.copy()
    for superclass in range(20):
        members = np.flatnonzero(superclass == CIFAR100_SUPERCLASSES)
        a, b = members[random.permutation(len(members))[:2]]
        for one, other in ((a, b), (b, a)):
            images = np.flatnonzero(labels == one)
            noisy[images[random.permutation(len(images))[: round(rate * len(images))]]] = other
    return noisy


NOISES: dict[str, Callable[[Labels, int, float, Random], Labels]] = {
    "symmetric": symmetric,
    "symmetric-exclusive": symmetric_exclusive,
    "asymmetric-cifar10": asymmetric_cifar10,
    "asymmetric-cifar100": asymmetric_cifar100,
    "pair-flip": pair_flip,
}
CLASSES = {"asymmetric-cifar10": 10, "asymmetric-cifar100": 100}
INSTANCE, MATRIX, FILE = "instance", "matrix", "file"
KINDS = (*NOISES, INSTANCE, MATRIX, FILE)
# A row of a transition matrix may be as far from the sum 1.
ROW_ERROR = 1e-6


def corrupt_labels(
    source: AnyPath,
    output: AnyPath,
    noise: str,
    *,
    rate: float | None = None,
    seed: int | None = None,
    classes: int | None = None,
    labels: str | None = None,
    order: str | None = None,
    matrix: str | None = None,
) -> None:
    """Write the records of the LMDB `source` with other labels into `output`; log a summary.

    noise     one of KINDS: "matrix" with `matrix`, "file" with `labels`, all others with `rate`
    seed      of the random numbers; None: DEFAULT_SEED
    classes   how many; None: as many as the matrix has rows, or the largest label + 1
    labels    for "file": a label file
    order     for "file": a label file that says which of the labels each record has
    matrix    for "matrix": a file with the transition matrix, see `read_matrix`

    DataError for arguments that do not go with the noise, for labels that are not those of the classes, and
    for classes that the noise is not for.
    """
    _check_arguments(noise, rate, seed, labels, order, matrix)
    transitions = read_transitions(matrix) if matrix else None
    with open_lmdb(source) as lmdb:
        keys = lmdb.keys()
        clean = np.array([lmdb.datum(i).label for i in range(len(lmdb))])
        noisy = labels_from_file(keys, labels, order) if labels else clean
        classes = _number_of_classes(classes, noise, os.fspath(source), clean, transitions)
        check_range(clean, classes, f"the labels of lmdb '{os.fspath(source)}'")
        origin: dict[str, Any]
        if labels:
            check_range(noisy, classes, f"the labels of '{labels}', of {classes} classes (see --classes)")
            origin = {"labels": labels, "order": order}
        else:
            seed = DEFAULT_SEED if seed is None else seed
            if transitions is not None:
                noisy = by_matrix(clean, transitions, _random(seed))
                origin = {"matrix": matrix, "transitions": transitions.tolist(), "seed": seed}
            else:
                assert rate is not None
                origin = {"rate": rate, "seed": seed}
                _check_numbers(noise, rate, seed, classes)
                if noise == INSTANCE:
                    pixels = standardised_pixels(lmdb)
                    noisy = instance_dependent(clean, classes, rate, Random(seed), pixels)
                else:
                    noisy = NOISES[noise](clean, classes, rate, Random(seed))
        settings = {"input": os.fspath(source), "noise": noise, "classes": classes, **origin}
        with clean_labels_file(output, keys, clean, noisy, settings):
            write_lmdb(output, relabelled(lmdb, noisy), len(keys))
    for line in summary(clean, noisy, classes):
        logger.info("%s", line)
    logger.info("The clean labels are in %s", clean_labels_path(output))


def _check_arguments(
    noise: str,
    rate: float | None,
    seed: int | None,
    labels: str | None,
    order: str | None,
    matrix: str | None,
) -> None:
    if noise not in KINDS:
        raise DataError(f"unknown noise '{noise}'{did_you_mean(noise, KINDS)} (known: {', '.join(KINDS)})")
    if matrix and noise != MATRIX:
        raise DataError(f"--noise {noise} takes no --matrix; choose --noise matrix, or leave out --matrix")
    if noise == FILE:
        if not labels or rate is not None or seed is not None:
            raise DataError("--noise file takes --labels FILE, and no --rate and no --seed")
    elif noise == MATRIX:
        if not matrix or rate is not None or labels or order:
            raise DataError("--noise matrix takes --matrix FILE, and no --rate, no --labels and no --order")
    elif rate is None or labels or order:
        raise DataError(f"--noise {noise} takes --rate R, and no --labels and no --order")


def _number_of_classes(
    classes: int | None,
    noise: str,
    source: str,
    clean: Labels,
    transitions: NDArray[np.float64] | None,
) -> int:
    if transitions is not None:
        if classes not in (None, len(transitions)):
            raise DataError(f"the matrix is for {len(transitions)} classes, got --classes {classes}")
        return len(transitions)
    if classes is not None:
        return classes
    present = int(clean.max()) + 1
    if CLASSES.get(noise, present) != present:
        raise DataError(
            f"{noise} noise is for {CLASSES[noise]} classes; lmdb '{source}' seems to have {present}, as its "
            f"largest label is {present - 1}; choose another noise, or say --classes {CLASSES[noise]}"
        )
    return present


def read_transitions(path: str) -> NDArray[np.float64]:
    """A transition matrix (C, C): row c has the probability of each noisy label of class c."""
    matrix = read_matrix(path)
    if matrix.shape[0] != matrix.shape[1]:
        raise DataError(
            f"'{path}': a transition matrix has as many rows as columns, one for each class; got "
            f"{matrix.shape[0]} x {matrix.shape[1]}"
        )
    for row, probabilities in enumerate(matrix):
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise DataError(f"'{path}': row {row} has numbers that are no probabilities, 0 to 1")
        if abs(probabilities.sum() - 1) > ROW_ERROR:
            raise DataError(
                f"'{path}': row {row} (clean label {row}) sums to {probabilities.sum():.7g}, not to 1; its "
                "numbers are the probabilities of the noisy labels 0, 1, ..."
            )
    return matrix


def by_matrix(labels: Labels, transitions: NDArray[np.float64], random: Random) -> Labels:
    """Labels drawn from the row of the transition matrix that belongs to each clean label."""
    places = random.random_sample(len(labels))
    noisy = labels.copy()
    for label, probabilities in enumerate(transitions):
        rows = labels == label
        upto = np.cumsum(probabilities)
        drawn = np.searchsorted(upto, places[rows] * upto[-1], side="right")
        # Rounding may put a place beyond the last class that is possible.
        noisy[rows] = np.minimum(drawn, np.flatnonzero(probabilities)[-1])
    return noisy


def corrupt(labels: Labels, noise: str, rate: float, seed: int, classes: int) -> Labels:
    """Noisy labels by one of NOISES; DataError where rate, classes or labels do not allow it."""
    _check_numbers(noise, rate, seed, classes)
    return NOISES[noise](labels, classes, rate, Random(seed))


def _random(seed: int) -> Random:
    if not 0 <= seed < 2**32:
        raise DataError(f"--seed must be from 0 to 4294967295, got {seed}")
    return Random(seed)


def _check_numbers(noise: str, rate: float, seed: int, classes: int) -> None:
    """DataError where rate, seed or classes do not allow the noise."""
    if not 0 <= rate <= 1:
        raise DataError(f"--rate must be from 0 to 1, got {rate}")
    _random(seed)
    if classes >= 2**31:
        raise DataError(f"--classes must be at most {2**31 - 1}, as a label has 32 bits; got {classes}")
    if classes < 2:
        raise DataError(f"{noise} noise needs at least 2 classes, got {classes}; see --classes")
    if CLASSES.get(noise, classes) != classes:
        raise DataError(f"{noise} noise is for {CLASSES[noise]} classes, got {classes}; leave out --classes")


def labels_from_file(keys: list[bytes], source: str, order: str | None = None) -> Labels:
    """The label of each record from a label file.

    With an `order`, a label file of places, record i has the label at place order[i]. Without one, it has the
    label of its key if the file has keys; else the labels are in the order of the records.
    """
    labels, names = read_labels(source)
    if order:
        places = read_labels(order).labels
        check_range(places, len(labels), f"the order '{order}'")
        labels = labels[places]
    elif names is not None:
        logger.info("The labels of '%s' are matched by key.", source)
        by_key = dict(zip(names, labels, strict=True))
        missing = [key for key in keys if key not in by_key]
        if missing:
            raise DataError(f"'{source}' has no label for {len(missing)} keys, e.g. {missing[0]!r}")
        return np.array([by_key[key] for key in keys])
    if len(labels) != len(keys):
        raise DataError(f"'{order or source}' has {len(labels)} entries; the LMDB has {len(keys)} records")
    return labels


def relabelled(source: LmdbSource, labels: Labels) -> Iterator[Record]:
    """The records of an LMDB with new labels."""
    for i, (key, label) in enumerate(zip(source.keys(), labels.tolist(), strict=True)):
        datum = source.datum(i)
        datum.label = label
        yield key, datum


def summary(clean: Labels, noisy: Labels, classes: int) -> list[str]:
    """Lines that count the wrong labels and show them: a table, or the most frequent ones of many classes."""
    wrong = int(np.sum(clean != noisy))
    lines = [f"{wrong} of {len(clean)} labels are wrong ({100 * wrong / len(clean):.2f} %)."]
    pairs, counts = np.unique(np.stack([clean, noisy]), axis=1, return_counts=True)
    if classes <= LARGEST_TABLE:
        table = np.zeros((classes, classes), np.int64)
        table[*pairs] = counts
        width = len(str(table.max())) + 1
        rows = [("", *range(classes)), *((c, *row) for c, row in enumerate(table))]
        lines.append("Records by clean label (rows) and noisy label (columns):")
        return lines + ["".join(f"{cell:>{width}}" for cell in row) for row in rows]
    confused = sorted((-count, c, n) for c, n, count in zip(*pairs, counts, strict=True) if c != n)
    lines.append(f"The most frequent of {len(confused)} confusions, clean -> noisy: records")
    return lines + [f"{c} -> {n}: {-count}" for count, c, n in confused[:LARGEST_TABLE]]
