"""A run's record: its settings, its images and every test point, as one JSON file.

Accuracies are fractions, 0 to 1. A record is written when its run has ended; until then the run keeps the
same file in its own folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from imae.files.atomic import write_atomically
from imae.files.errors import DataError, ImaeError
from imae.files.read import AnyPath
from imae.paper.experiments import Run

FORMAT = 3
# Format 1: runs of protocol 1, without a commit. Instead of the net's digest it had the name of a file with
# the net (`net_file`); the digest of that file was added later. Formats 1 and 2: each point had `hybrid`, of
# the test images and the training images whose label is right, which is not what the later version measured.
CERTAIN = 1e-6  # a label is certain if 1 - p is below this, and hopeless if p is
SHUFFLED_ONCE = ", shuffled once"
RECORDS = Path(__file__).with_name("records")


@dataclass(frozen=True)
class Point:
    """A test during the training, after `iteration` updates. All but `loss` are accuracies or shares.

    loss           the smoothed training loss, as the log shows it; None before the first display
    test           on the test images
    corrupted      on the training images, not augmented, against the labels that are trained on
    intact         the same against the clean labels; equal to `corrupted` if no label is wrong
    noisy_subset   against the labels that are trained on, on the training images whose label is wrong; None
                   if there are none
    clean_subset   the same on the training images whose label is right
    validation     on the held-out part of the training images, against the given labels; or None
    validation_clean    the same against the clean labels
    certain        share of the training images with p > 1 - CERTAIN for the label that is trained on; None
                   in records made before this was measured
    hopeless       the same with p < CERTAIN
    """

    iteration: int
    loss: float | None
    test: float
    corrupted: float
    intact: float
    noisy_subset: float | None
    clean_subset: float | None
    validation: float | None = None
    validation_clean: float | None = None
    certain: float | None = None
    hopeless: float | None = None


@dataclass(frozen=True)
class Record:
    """Everything that is needed to judge a run and to repeat it.

    data           description of the images; SHUFFLED_ONCE at its end if they had an order of their own
    images_sha256  pixels_sha256 of the images (data.py); "" in format 1
    wrong_labels   number of wrong labels among the `train_images` labels
    net_sha256     SHA-256 of the train_val prototxt; recorded_net.py makes the text again. Its paths are
                   relative to the folder of --work, in format 1 to the working directory. "" in records of
                   format 1 to which it was not added
    solver         the solver prototxt, with the same kind of paths
    commit         of the code that the run was started with, with "-dirty" if files were changed; "" if not
                   known. A run that was resumed with another commit has both: "A, then B"
    device         description of the device, with the number of threads; "A, then B" as for commit
    versions       of imae, torch, numpy, python, at the start
    seconds        time of training and tests, over all parts of a run that was stopped and resumed
    """

    run: Run
    data: str
    train_images: int
    test_images: int
    wrong_labels: int
    solver: str
    device: str
    versions: dict[str, str]
    began: str
    seconds: float
    points: tuple[Point, ...]
    net_sha256: str = ""
    images_sha256: str = ""
    commit: str = ""

    @property
    def images(self) -> str:
        """The description of the images, whatever their order."""
        return self.data.removesuffix(SHUFFLED_ONCE)

    @property
    def shuffled_once(self) -> bool:
        """Whether the images had another order than CIFAR-10's: a seed then makes other labels wrong."""
        return self.data.endswith(SHUFFLED_ONCE)

    @property
    def best(self) -> Point:
        """The point with the best test accuracy; if several are equal, the first."""
        return max(self.points, key=lambda point: point.test)

    @property
    def final(self) -> Point:
        """The last point."""
        return self.points[-1]

    @property
    def hybrid(self) -> float:
        """The accuracy at the end on the test images and all training images against their clean labels.

        The later version says "on test set and clean training set together". Its printed numbers do not fit
        the training images alone whose label is right: they would be up to 24 points higher.
        """
        hits = self.final.test * self.test_images + self.final.intact * self.train_images
        return hits / (self.test_images + self.train_images)

    @property
    def complete(self) -> bool:
        """Whether the run reached its last iteration."""
        return bool(self.points) and self.final.iteration == self.run.iterations

    def with_point(self, point: Point, seconds: float) -> Record:
        """The record with one more point; `seconds` is the new total time."""
        return replace(self, points=(*self.points, point), seconds=round(seconds, 1))


def write_record(record: Record, path: AnyPath) -> None:
    """Write a record as JSON, one line per test point."""
    content = {"format": FORMAT, **asdict(record)}
    points = content.pop("points")
    text = json.dumps(content, indent=1, ensure_ascii=False).removesuffix("\n}")
    rows = ",\n".join("  " + json.dumps(point) for point in points)
    write_atomically(path, f'{text},\n "points": [\n{rows}\n ]\n}}\n'.encode())


def read_record(path: AnyPath) -> Record:
    """Read a record; DataError if the file is not a record."""
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        if (version := content.pop("format")) not in (1, 2, FORMAT):
            raise ValueError(f"its format is {version}, not 1 to {FORMAT}")
        content.pop("net_file", "")
        if version == 1:
            content["run"]["protocol"] = 1
        points = content.pop("points")
        if version < FORMAT:
            for point in points:
                point.pop("hybrid", None)
        points = tuple(Point(**point) for point in points)
        record = Record(**{**content, "run": Run(**content["run"]), "points": points})
        _check(record)
    except OSError as error:
        raise DataError(f"cannot read the record '{path}': {error.strerror or error}") from error
    except (ImaeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"'{path}' is not a record of a run: {error}") from error
    return record


def _check(record: Record) -> None:
    for name in ("train_images", "test_images"):
        count = getattr(record, name)
        if type(count) is not int or count < 1:
            raise ValueError(f"{name} is {count!r}, not a number of images")
    for point in record.points:
        for field in fields(point):
            value = getattr(point, field.name)
            needed = value is not None or "None" not in str(field.type)
            if field.name not in ("iteration", "loss") and needed and not 0 <= value <= 1:
                raise ValueError(f"{field.name} at iteration {point.iteration} is {value}, not 0 to 1")


def read_records(folder: AnyPath = RECORDS) -> list[Record]:
    """The records of a folder, sorted by name, without those of unfinished runs."""
    return [record for record in _all(Path(folder)) if record.complete]


def _all(folder: Path) -> Iterator[Record]:
    for path in sorted(folder.glob("*.json")):
        yield read_record(path)
