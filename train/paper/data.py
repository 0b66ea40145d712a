"""The images of a run as LMDBs, made by imae's own commands and printed as they run.

From CIFAR-10 as its authors distribute it, or from a folder or archive with train/CLASS/*.jpg and
test/CLASS/*.jpg. Training images get 4 zeros on each side; channels are BGR. The noise is put into the labels
of all training images before some of them are taken, so that a small run's labels are those of the full one.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imae.converters.file_tree import open_tree
from imae.converters.label_file import read_labels
from imae.converters.split_lmdb import read_lmdb_labels, subset_lmdb
from imae.layers.data.lmdb_source import open_lmdb
from imae.prototxt.errors import FileError, ImaeError
from imae.train.paper.experiments import Run

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOW_TO_GET = (
    "give --cifar10 PATH: cifar-10-binary.tar.gz or cifar-10-python.tar.gz from "
    "https://www.cs.toronto.edu/~kriz/cifar.html, or a folder or .tar archive of train/CLASS/*.jpg and "
    "test/CLASS/*.jpg"
)
HOW_TO_GET_HUMAN = (
    "give --human-labels FILE.npz with the arrays clean, human_aggregate, human_random1 and human_worst, "
    "each the labels of the 50,000 training images in CIFAR-10's order (CIFAR-10N, http://noisylabels.com)"
)
NOISE_SEED = 122  # added to a run's seed


class Labelled(NamedTuple):
    """An LMDB, and the labels of its records in their order; `noisy` are those in it."""

    lmdb: Path
    clean: NDArray[np.int64]
    noisy: NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """What a run needs, and where it comes from in words. held_out: the images to choose T on, or None."""

    train: Labelled
    test: Labelled
    held_out: Labelled | None
    words: str

    @property
    def tested(self) -> dict[str, Labelled]:
        """What is tested, by the stage of the test net, in the order of the test nets."""
        sets = {"test": self.test, "train": self.train}
        return {**sets, "held_out": self.held_out} if self.held_out else sets


class Cifar10:
    """Makes LMDBs in the folder `work` where they are not there yet.

    source         as HOW_TO_GET says; "" if what `work` holds must do
    human_labels   as HOW_TO_GET_HUMAN says, or ""
    """

    def __init__(self, work: Path, source: str = "", human_labels: str = "") -> None:
        self.work, self.source, self.human_labels = work, source, human_labels

    def images(self, run: Run) -> Images:
        """What a run needs; ImaeError where it cannot be had."""
        train, test = self._originals()
        train = self._noisy(train, run)
        held_out = None
        if run.held_out:
            train, held_out = self._split(train, run)
            held_out = self._subset(held_out, run.test_images)
        train, test = self._subset(train, run.images), self._subset(test, run.test_images)
        return Images(
            _labelled(train), _labelled(test), _labelled(held_out) if held_out else None, self._words()
        )

    def _originals(self) -> tuple[Path, Path]:
        train, test = self.work / "cifar10_train_lmdb", self.work / "cifar10_test_lmdb"
        if train.exists() and test.exists():
            return train, test
        if not self.source:
            raise ImaeError(f"there is no CIFAR-10 in '{self.work}': {HOW_TO_GET}")
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot make the folder '{self.work}': {error.strerror}") from None
        if self._is_original():
            _step("convert-cifar", self.source, self.work, "--bgr", "--pad", "4")
            words = "CIFAR-10 as its authors distribute it"
        else:
            folder = ("convert-folder", self.source)
            classes = ("--classes", ",".join(CLASSES))
            # The pictures of a folder come class by class, which no solver can learn from.
            order = (
                ("--class-sequence", f"{self.human_labels}:clean")
                if self.human_labels
                else ("--shuffle", "1")
            )
            if not test.exists():
                _step(*folder, test, "--subfolder", "test", *classes)
            if not train.exists():
                _step(*folder, train, "--subfolder", "train", "--pad", "4", *classes, *order)
            words = "CIFAR-10, images from JPEG files (recompressed)"
            if not self.human_labels:
                words += ", shuffled once"
        (self.work / "cifar10.txt").write_text(words + "\n", encoding="utf-8")
        return train, test

    def _is_original(self) -> bool:
        with open_tree(self.source, depth=2) as tree:
            return any("data_batch_1" in name for name in tree.names)

    def _words(self) -> str:
        try:
            return (self.work / "cifar10.txt").read_text(encoding="utf-8").strip()
        except OSError:
            return f"LMDBs found in {self.work}"

    def _noisy(self, train: Path, run: Run) -> Path:
        if run.noise == "none":
            return train
        if run.noise == "human":
            noisy = self.work / f"train_{run.noise_name}"
            labels = f"{self.human_labels}:human_{run.human}"
            how = ["--noise", "file", "--labels", labels, "--classes", "10"]
            if not noisy.exists():
                self._check_order(train, run)
        else:
            seed = str(run.seed + NOISE_SEED)
            noisy = self.work / f"train_{run.noise_name}_seed{seed}"
            how = ["--noise", run.noise, "--rate", f"{run.rate:g}", "--seed", seed, "--classes", "10"]
        if not noisy.exists():
            _step("corrupt-labels", train, noisy, *how)
        return noisy

    def _check_order(self, train: Path, run: Run) -> None:
        """ImaeError unless the human labels are there and are those of these images in this order."""
        if not self.human_labels:
            raise ImaeError(f"human labels are needed for {run.name}: {HOW_TO_GET_HUMAN}")
        clean = read_labels(f"{self.human_labels}:clean").labels
        if not np.array_equal(clean, _labelled(train).clean):
            raise ImaeError(
                f"'{train}' is not in the order of '{self.human_labels}', whose human labels would be "
                f"those of other images; choose another --work, and give --human-labels from the first "
                f"command on"
            )

    def _split(self, train: Path, run: Run) -> tuple[Path, Path]:
        part, held_out = (
            self.work / f"{train.name}_{kind}{100 * run.held_out:g}" for kind in ("without", "heldout")
        )
        if not (part.exists() and held_out.exists()):
            share = f"{1 - run.held_out:g}"
            _step("split-lmdb", train, part, held_out, "--share", share, "--seed", str(NOISE_SEED + run.seed))
        return part, held_out

    def _subset(self, lmdb: Path, images: int) -> Path:
        with open_lmdb(lmdb) as source:
            there = len(source)
        if there <= images:
            return lmdb
        subset = self.work / f"{lmdb.name}_n{images}"
        if not subset.exists():
            subset_lmdb(lmdb, subset, images // len(CLASSES))
        return subset


def _labelled(lmdb: Path) -> Labelled:
    """An LMDB with its labels; clean ones are noisy ones where none are kept beside."""
    with open_lmdb(lmdb) as source:
        _, noisy, clean = read_lmdb_labels(source)
    return Labelled(lmdb, noisy if clean is None else clean, noisy)


def _step(command: str, *arguments: str | Path) -> None:
    """Print and run a command of imae's; ImaeError with its last line where it fails."""
    words = [command, *(str(argument) for argument in arguments)]
    print("$ imae", shlex.join(words), flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "imae.train.main", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last: Iterable[str] = done.stderr.strip().splitlines()[-1:]
        raise ImaeError("".join(last).removeprefix("imae: ") or f"imae {command} failed")
