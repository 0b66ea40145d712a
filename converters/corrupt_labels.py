"""A copy of an LMDB with part of its labels made wrong on purpose, by one of NOISES or from a file.

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

from imae.converters.label_file import (
    Labels,
    check_range,
    clean_labels_file,
    clean_labels_path,
    read_labels,
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
) -> None:
    """Write the records of the LMDB `source` with other labels into `output`; log a summary.

    noise     one of NOISES, with `rate` and `seed` (DEFAULT_SEED if it is None), or "file", with `labels`
    classes   how many; None: as many as the noise is for, or the largest label + 1
    labels    for "file": a label file
    order     for "file": a label file that says which of the labels each record has

    DataError for arguments that do not go with the noise, and for labels that are not those of the classes.
    """
    if noise not in NOISES and noise != "file":
        raise DataError(
            f"unknown noise '{noise}'{did_you_mean(noise, NOISES)} (known: {', '.join(NOISES)}, file)"
        )
    from_file = noise == "file"
    if from_file and (not labels or rate is not None or seed is not None):
        raise DataError("--noise file takes --labels FILE, and no --rate and no --seed")
    if not from_file and (rate is None or labels or order):
        raise DataError(f"--noise {noise} takes --rate R, and no --labels and no --order")
    with open_lmdb(source) as lmdb:
        keys = lmdb.keys()
        clean = np.array([lmdb.datum(i).label for i in range(len(lmdb))])
        noisy = labels_from_file(keys, labels, order) if labels else clean
        if classes is None:
            classes = CLASSES.get(noise, int(max(clean.max(), noisy.max())) + 1)
        check_range(clean, classes, f"the labels of lmdb '{source}'")
        origin: dict[str, Any]
        if rate is None:
            check_range(noisy, classes, f"the labels of '{labels}'")
            origin = {"labels": labels, "order": order}
        else:
            seed = DEFAULT_SEED if seed is None else seed
            noisy = corrupt(clean, noise, rate, seed, classes)
            origin = {"rate": rate, "seed": seed}
        settings = {"input": os.fspath(source), "noise": noise, "classes": classes, **origin}
        with clean_labels_file(output, keys, clean, noisy, settings):
            write_lmdb(output, relabelled(lmdb, noisy), len(keys))
    for line in summary(clean, noisy, classes):
        logger.info("%s", line)
    logger.info("The clean labels are in %s", clean_labels_path(output))


def corrupt(labels: Labels, noise: str, rate: float, seed: int, classes: int) -> Labels:
    """Noisy labels by one of NOISES; DataError where rate, classes or labels do not allow it."""
    if not 0 <= rate <= 1:
        raise DataError(f"--rate must be from 0 to 1, got {rate}")
    if not 0 <= seed < 2**32:
        raise DataError(f"--seed must be from 0 to 4294967295, got {seed}")
    if classes >= 2**31:
        raise DataError(f"--classes must be at most {2**31 - 1}, as a label has 32 bits; got {classes}")
    if classes < 2:
        raise DataError(f"{noise} noise needs at least 2 classes, got {classes}; see --classes")
    if CLASSES.get(noise, classes) != classes:
        raise DataError(f"{noise} noise is for {CLASSES[noise]} classes, got {classes}; leave out --classes")
    return NOISES[noise](labels, classes, rate, Random(seed))


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
