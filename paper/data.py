"""Make the LMDBs of a run with imae's own commands, which are printed as they run.

The source is CIFAR-10 as its authors distribute it, or a folder or archive of train/CLASS/IMAGE and
test/CLASS/IMAGE; for the authors' later runs (protocol 3) CIFAR-100 in the same forms. CIFAR-10's training
images are padded with 4 zeros on each side; CIFAR-100's images are all resized to 36x36, as MATLAB does it.
Channels are BGR. Label noise is added to all training images before a subset is taken, so that a small run
has the same labels as the full one.

The images are identified by a digest of all pixels and clean labels, which does not depend on the kind of
file and the order.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from imae.converters.compute_image_mean import mean_blob
from imae.converters.label_file import read_labels
from imae.converters.split_lmdb import read_lmdb_labels, subset_lmdb
from imae.files.atomic import write_atomically
from imae.files.errors import DataError, FileError, ImaeError
from imae.files.file_tree import open_tree
from imae.files.program import imae_program
from imae.files.read import AnyPath
from imae.layers.data.datum import array_from_datum
from imae.layers.data.lmdb_source import open_lmdb
from imae.layers.data.transformer import read_mean_file
from imae.paper.experiments import LATER, Run
from imae.paper.record import SHUFFLED_ONCE
from imae.train.snapshot_lock import writing_alone

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOW_TO_GET = (
    "give --cifar10 PATH: cifar-10-binary.tar.gz or cifar-10-python.tar.gz from "
    "https://www.cs.toronto.edu/~kriz/cifar.html, or a folder or .tar archive of train/CLASS/IMAGE and "
    "test/CLASS/IMAGE (PNG, or JPEG, which is not what the paper had)"
)
HOW_TO_GET_100 = (
    "give --cifar100 PATH: cifar-100-binary.tar.gz or cifar-100-python.tar.gz from "
    "https://www.cs.toronto.edu/~kriz/cifar.html, or a folder or .tar archive of train/CLASS/IMAGE and "
    "test/CLASS/IMAGE with CIFAR-100's 100 fine classes"
)
HOW_TO_GET_HUMAN = (
    "give --human-labels FILE.npz with the arrays clean, human_aggregate, human_random1 and human_worst, "
    "each the labels of the 50,000 training images in CIFAR-10's order (CIFAR-10N, http://noisylabels.com)"
)
NOISE_SEED = 122  # added to a run's seed to get the seed of the noise
TRAIN_IMAGES, TEST_IMAGES = 50000, 10000  # of CIFAR-10
POLL = 0.5  # seconds between two looks at whether another process is ready
PAD = 4  # black pixels on each side of a training image
# pixels_sha256 of CIFAR-10, from lossless PNGs whose mean and standard deviation are the published ones in
# all 8 digits: mean / 255 0.49139968 0.48215841 0.44653091, deviation 0.24703223 0.24348513 0.26158784 (RGB).
ORIGINAL_PIXELS = "2814362aeac8f6f2eda07664337cd195bb9986673a02069701466d507ab6bcdb"
ORIGINAL_WORDS = "CIFAR-10, original pixels"
JPEG_WORDS = "CIFAR-10, images from JPEG files (recompressed)"
OTHER_WORDS = "images that are not CIFAR-10's original pixels"
# Of CIFAR-100, from lossless PNGs whose mean and standard deviation are the published ones, and resized here.
RESIZED_PIXELS_100 = "0b349ecb3164067d982c5267d8b1d399c2f46f4f6052a9f2d6496f24c43820b5"
RESIZED = "36"  # pixels, by MATLAB's bicubic imresize
WORDS_100 = "CIFAR-100, original pixels resized to 36x36"
OTHER_WORDS_100 = "images that are not CIFAR-100's original pixels, resized to 36x36"
LOSSY = (".jpg", ".jpeg")


class Labelled(NamedTuple):
    """An LMDB, the labels of its records in order, and the mean image.

    clean   the clean labels
    noisy   the labels in the LMDB
    mean    .binaryproto of the size of the images: the mean of all clean training images, 0 in the padding
    """

    lmdb: Path
    clean: NDArray[np.int64]
    noisy: NDArray[np.int64]
    mean: Path = Path()


@dataclass(frozen=True)
class Images:
    """The images of a run.

    held_out   the images to choose T on, or None
    words      a description of the images for people
    sha256     pixels_sha256 of all of CIFAR-10, training and test
    """

    train: Labelled
    test: Labelled
    held_out: Labelled | None
    words: str
    sha256: str = ""

    @property
    def tested(self) -> dict[str, Labelled]:
        """The images of each test net, by its stage, in the order of the test nets."""
        sets = {"test": self.test, "train": self.train}
        return {**sets, "held_out": self.held_out} if self.held_out else sets


class Cifar10:
    """Makes the LMDBs that are missing in the folder `work`.

    source         see HOW_TO_GET; "" if `work` holds CIFAR-10's LMDBs already
    human_labels   see HOW_TO_GET_HUMAN, or ""
    within_class   --within-class of `imae convert-folder`, for images whose names are not in CIFAR-10's
                   order, or ""
    """

    name, classes, how_to_get = "cifar10", len(CLASSES), HOW_TO_GET

    def __init__(self, work: Path, source: str = "", human_labels: str = "", within_class: str = "") -> None:
        self.work, self.source, self.human_labels = work, source, human_labels
        self.within_class = within_class

    def images(self, run: Run) -> Images:
        """The images of a run; ImaeError if they cannot be made.

        Commands that begin together make them one after the other: the second one finds what the first made.
        """
        self._check_source()
        make_folder(self.work)
        with _making_alone(self.work):
            return self._images(run)

    def _images(self, run: Run) -> Images:
        train, test = self._originals()
        about = self._about(train, test)
        padded, unpadded = self._means(train)  # over all clean training images
        train = self._noisy(train, run)
        held_out = None
        if run.held_out:
            train, held_out = self._split(train, run)
            held_out = self._subset(held_out, run.test_images)
        train, test = self._subset(train, run.images), self._subset(test, run.test_images)
        return Images(
            _labelled(train, padded),
            _labelled(test, unpadded),
            _labelled(held_out, padded) if held_out else None,
            about["images"],
            about["sha256"],
        )

    def _check_source(self) -> None:
        """ImaeError if there are no images, and nothing to make them of."""
        if self.source or all(path.exists() for path in _original_lmdbs(self.work, self.name)):
            return
        title = self.name.upper().replace("CIFAR", "CIFAR-")
        raise ImaeError(
            f"there is no {title} in '{self.work}': {self.how_to_get}; --show trains nothing, and shows "
            "what there is without"
        )

    def _originals(self) -> tuple[Path, Path]:
        train, test = _original_lmdbs(self.work, self.name)
        if not (train.exists() and test.exists()):
            self._convert(train, test)
        return train, test

    def _convert(self, train: Path, test: Path) -> None:
        """Make the LMDBs of all images, and the file that describes them."""
        kind, shuffled = self._kind(), ""
        if kind == "CIFAR":
            _step("convert-cifar", self.source, self.work, "--bgr", "--pad", str(PAD))
        else:
            folder = ("convert-folder", self.source)
            classes = ("--classes", ",".join(CLASSES))
            # The images of a folder come class by class; a net does not learn from batches of one class.
            order: tuple[str, ...] = ("--shuffle", "1")
            if self.human_labels:
                order = ("--class-sequence", f"{self.human_labels}:clean")
                order += ("--within-class", self.within_class) if self.within_class else ()
            if not test.exists():
                _step(*folder, test, "--subfolder", "test", *classes)
            if not train.exists():
                _step(*folder, train, "--subfolder", "train", "--pad", str(PAD), *classes, *order)
            shuffled = "" if self.human_labels else SHUFFLED_ONCE
        self._note(train, test, JPEG_WORDS if kind == "JPEG" else OTHER_WORDS, shuffled)

    def _kind(self) -> str:
        """CIFAR for the files of its authors, JPEG for lossy images, else PICTURES."""
        with open_tree(self.source, depth=3) as tree:
            names = list(tree.names)
        if any("data_batch_1" in name for name in names):
            return "CIFAR"
        return "JPEG" if any(name.lower().endswith(LOSSY) for name in names) else "PICTURES"

    def _note(self, train: Path, test: Path, others: str, shuffled: str = "") -> dict[str, str]:
        """Write a description of the images to cifar10.json: CIFAR-10 if the digest is its, else `others`."""
        sha256 = pixels_sha256(train, test)
        words = self._original_words(sha256) or others
        about = {"images": words + shuffled, "sha256": sha256}
        write_atomically(self.work / f"{self.name}.json", json.dumps(about, indent=1).encode())
        return about

    def _original_words(self, sha256: str) -> str:
        """What images with this digest are, if they are the original ones."""
        return ORIGINAL_WORDS if sha256 == ORIGINAL_PIXELS else ""

    def _about(self, train: Path, test: Path) -> dict[str, str]:
        """Read what `_note` wrote; for LMDBs of unknown origin, call it now."""
        path = self.work / f"{self.name}.json"
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            return {name: str(about[name]) for name in ("images", "sha256")}
        except FileNotFoundError:
            return self._note(train, test, OTHER_WORDS)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"'{path}' does not say what the images are: {error}; remove it") from None

    def _means(self, train: Path) -> tuple[Path, Path]:
        """Files of the mean of the clean training images: padded, and without the padding."""
        padded, unpadded = _mean_files(self.work)
        if not padded.exists():
            _step("compute-image-mean", train, padded)
        if not unpadded.exists():
            mean = read_mean_file(str(padded), "imae paper")
            write_atomically(unpadded, mean_blob(mean[:, PAD:-PAD, PAD:-PAD]).SerializeToString())
        return padded, unpadded

    def _noisy(self, train: Path, run: Run) -> Path:
        noisy = _noisy_lmdb(train, run)
        if run.noise == "none":
            return train
        if run.noise == "human":
            labels = f"{self.human_labels}:human_{run.human}"
            how = ["--noise", "file", "--labels", labels, "--classes", str(self.classes)]
            if not noisy.exists():
                self._check_order(train, run)
        else:
            seed = str(run.seed + NOISE_SEED)
            how = ["--noise", run.noise, "--rate", f"{run.rate:g}", "--seed", seed]
            how += ["--classes", str(self.classes)]
        if not noisy.exists():
            _step("corrupt-labels", train, noisy, *how)
        return noisy

    def _check_order(self, train: Path, run: Run) -> None:
        """ImaeError unless there are human labels and they belong to these images in this order."""
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
        part, held_out = _split_lmdbs(train, run)
        if not (part.exists() and held_out.exists()):
            share = f"{1 - run.held_out:g}"
            _step("split-lmdb", train, part, held_out, "--share", share, "--seed", str(NOISE_SEED + run.seed))
        return part, held_out

    def _subset(self, lmdb: Path, images: int) -> Path:
        with open_lmdb(lmdb) as source:
            count = len(source)
        if count <= images:
            return lmdb
        subset = _subset_lmdb(lmdb, images)
        if not subset.exists():
            subset_lmdb(lmdb, subset, images // self.classes)
        return subset


class Cifar100(Cifar10):
    """The same of CIFAR-100, resized to 36x36 as the authors' images are; the net subtracts their means."""

    name, classes, how_to_get = "cifar100", 100, HOW_TO_GET_100

    def _convert(self, train: Path, test: Path) -> None:
        kind = self._kind()
        if kind == "CIFAR":
            size = ("--resize", RESIZED, "--interpolation", "bicubic")
            _step("convert-cifar", self.source, self.work, "--bgr", *size)
        else:
            sides = ("--resize-height", RESIZED, "--resize-width", RESIZED, "--interpolation", "bicubic")
            for lmdb, part in ((test, "test"), (train, "train")):
                if not lmdb.exists():
                    _step("convert-folder", self.source, lmdb, "--subfolder", part, *sides)
        self._note(train, test, OTHER_WORDS_100)

    def _kind(self) -> str:
        with open_tree(self.source, depth=3) as tree:
            files = {name.rpartition("/")[2] for name in tree.names}
        return "CIFAR" if files & {"train.bin", "train"} else "PICTURES"

    def _original_words(self, sha256: str) -> str:
        return WORDS_100 if sha256 == RESIZED_PIXELS_100 else ""

    def _means(self, train: Path) -> tuple[Path, Path]:
        return Path(), Path()


class Sources:
    """The images of any run: CIFAR-100 for the authors' later ones, else CIFAR-10.

    work   the folder of both
    """

    def __init__(self, cifar10: Cifar10, cifar100: Cifar100) -> None:
        self.work, self._cifar10, self._cifar100 = cifar10.work, cifar10, cifar100

    def images(self, run: Run) -> Images:
        """As Cifar10.images."""
        return (self._cifar100 if run.protocol == LATER else self._cifar10).images(run)


def named_images(run: Run, work: Path) -> Images:
    """The paths that `images(run)` gives for CIFAR-10, or CIFAR-100, itself.

    No file is read, so the labels, the description and the digest of the images are empty.
    """
    train, test = _original_lmdbs(work, "cifar100" if run.protocol == LATER else "cifar10")
    padded, unpadded = (Path(), Path()) if run.protocol == LATER else _mean_files(work)
    train, held_out = _noisy_lmdb(train, run), None
    sizes = TRAIN_IMAGES, 0
    if run.held_out:
        train, held_out = _split_lmdbs(train, run)
        sizes = round(TRAIN_IMAGES * (1 - run.held_out)), round(TRAIN_IMAGES * run.held_out)

    def named(lmdb: Path, count: int, images: int, mean: Path) -> Labelled:
        no_labels = np.zeros(0, np.int64)
        return Labelled(lmdb if count <= images else _subset_lmdb(lmdb, images), no_labels, no_labels, mean)

    return Images(
        named(train, sizes[0], run.images, padded),
        named(test, TEST_IMAGES, run.test_images, unpadded),
        named(held_out, sizes[1], run.test_images, padded) if held_out else None,
        "",
    )


def _original_lmdbs(work: Path, name: str) -> tuple[Path, Path]:
    return work / f"{name}_train_lmdb", work / f"{name}_test_lmdb"


def _mean_files(work: Path) -> tuple[Path, Path]:
    """The files of the mean of the padded and of the unpadded images."""
    return work / "cifar10_mean.binaryproto", work / "cifar10_mean_32.binaryproto"


def _noisy_lmdb(train: Path, run: Run) -> Path:
    """The LMDB with the run's labels: one per kind of human labels, else one per kind, rate and seed."""
    if run.noise == "none":
        return train
    seed = "" if run.noise == "human" else f"_seed{run.seed + NOISE_SEED}"
    data = "cifar100_" if run.protocol == LATER else ""
    return train.parent / f"{data}train_{run.noise_name}{seed}"


def _split_lmdbs(train: Path, run: Run) -> tuple[Path, Path]:
    """The LMDBs of the images that remain for training and of the images that are held out."""
    share = f"{100 * run.held_out:g}"
    return train.parent / f"{train.name}_without{share}", train.parent / f"{train.name}_heldout{share}"


def _subset_lmdb(lmdb: Path, images: int) -> Path:
    return lmdb.parent / f"{lmdb.name}_n{images}"


@contextmanager
def _making_alone(work: Path) -> Iterator[None]:
    """Wait while another process makes images in this folder, and let others wait while the block runs."""
    with ExitStack() as held:
        waits = False
        while True:
            try:
                held.enter_context(writing_alone(str(work / "images")))
                break
            except FileError:
                if not waits:
                    print(f"another process makes images in '{work}'; waiting for it", flush=True)
                waits = True
                time.sleep(POLL)
        yield


def make_folder(path: AnyPath) -> None:
    """Make a folder if it is missing; FileError if that fails."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder '{path}': {error.strerror}") from None


def pixels_sha256(train: Path, test: Path) -> str:
    """A digest of CIFAR-10's images and clean labels: the same for any order and any kind of file.

    It is the SHA-256 of the sorted digests of all images. An image's digest is over "train" or "test", the
    label as a byte, and the pixels without padding: 3 x 32 x 32, blue, green, red.
    """
    digests = []
    for part, lmdb in ((b"train", train), (b"test", test)):
        with open_lmdb(lmdb) as source:
            _, noisy, clean = read_lmdb_labels(source)
            for i, label in enumerate((noisy if clean is None else clean).tolist()):
                pixels = array_from_datum(source.datum(i), f"lmdb '{lmdb}'")
                margin = (pixels.shape[1] - 32) // 2
                inner = pixels[:, margin : margin + 32, margin : margin + 32].astype(np.uint8)
                digests.append(hashlib.sha256(part + bytes([label]) + inner.tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _labelled(lmdb: Path, mean: Path = Path()) -> Labelled:
    """An LMDB with its labels. Without a file of clean labels beside it, its labels are the clean ones."""
    with open_lmdb(lmdb) as source:
        _, noisy, clean = read_lmdb_labels(source)
    return Labelled(lmdb, noisy if clean is None else clean, noisy, mean)


def _step(command: str, *arguments: str | Path) -> None:
    """Print and run an imae command; if it fails, ImaeError with its last line."""
    words = [command, *(str(argument) for argument in arguments)]
    print("$ imae", shlex.join(words), flush=True)
    done = subprocess.run([*imae_program(), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        last: Iterable[str] = done.stderr.strip().splitlines()[-1:]
        raise ImaeError("".join(last).removeprefix("imae: ") or f"imae {command} failed")
