"""A run's record: what was trained, on what, and every test point, as one JSON file.

Accuracies are fractions, 0 to 1. A record is written when its run has ended; a run that is going on keeps the
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

FORMAT = 2
# Format 1 is of runs of protocol 1, without a commit. Instead of the net's digest it had the net in a file
# (`net_file`); the digest was made of that file, and added, later.
CERTAIN = 1e-6
RECORDS = Path(__file__).with_name("records")


@dataclass(frozen=True)
class Point:
    """A test along the training, after `iteration` updates.

    loss           the smoothed training loss, as the log shows it; None before the first display
    test           accuracy on the test images
    corrupted      on the training images, not augmented, against the labels trained with
    intact         the same against the clean labels; equal to `corrupted` where no label is wrong
    noisy_subset   against the labels trained with, on the images whose label is wrong; None if there are none
    clean_subset   on the images whose label is right
    hybrid         on the test images and the images whose label is right, together
    validation     against the labels as given, on a part of the training images that was held out; or None
    validation_clean    the same against the clean labels
    certain        share of the training images whose label, as trained with, has p > 1 - CERTAIN; None in
                   records from before this was measured
    hopeless       the same for p < CERTAIN
    """

    iteration: int
    loss: float | None
    test: float
    corrupted: float
    intact: float
    noisy_subset: float | None
    clean_subset: float | None
    hybrid: float
    validation: float | None = None
    validation_clean: float | None = None
    certain: float | None = None
    hopeless: float | None = None


@dataclass(frozen=True)
class Record:
    """All that is needed to judge a run, and to make it again.

    data           what the images are, in words
    images_sha256  pixels_sha256 of them (data.py); "" in format 1
    wrong_labels   how many of the `train_images` labels are wrong
    net_sha256     of the train_val prototxt, whose paths are relative to the folder of --work, in format 1 to
                   that of the command; recorded_net.py makes the text again. "" in a record of format 1 to
                   which it was not added
    solver         the solver prototxt, with paths like that
    commit         of the code that the run was started with, "-dirty" after it if files were changed; ""
                   where that is not known. A run that went on with another one has both: "A, then B"
    device         in words, with the threads; likewise
    versions       of imae, torch, numpy, python, at the start
    seconds        of training and tests, of all parts of a run that was stopped and resumed
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
    def best(self) -> Point:
        """The point with the best test accuracy, the first of equal ones."""
        return max(self.points, key=lambda point: point.test)

    @property
    def final(self) -> Point:
        """The last point."""
        return self.points[-1]

    @property
    def complete(self) -> bool:
        """Whether the run reached its last iteration."""
        return bool(self.points) and self.final.iteration == self.run.iterations

    def with_point(self, point: Point, seconds: float) -> Record:
        """The record with one point more, after so many seconds in all."""
        return replace(self, points=(*self.points, point), seconds=round(seconds, 1))


def write_record(record: Record, path: AnyPath) -> None:
    """Write a record as JSON, a line per test point."""
    content = {"format": FORMAT, **asdict(record)}
    points = content.pop("points")
    text = json.dumps(content, indent=1, ensure_ascii=False).removesuffix("\n}")
    rows = ",\n".join("  " + json.dumps(point) for point in points)
    write_atomically(path, f'{text},\n "points": [\n{rows}\n ]\n}}\n'.encode())


def read_record(path: AnyPath) -> Record:
    """A record from its file; DataError where it is none."""
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        if (form := content.pop("format")) not in (1, FORMAT):
            raise ValueError(f"its format is {form}, not 1 or {FORMAT}")
        content.pop("net_file", "")
        if form == 1:
            content["run"]["protocol"] = 1
        points = tuple(Point(**point) for point in content.pop("points"))
        record = Record(**{**content, "run": Run(**content["run"]), "points": points})
        _check(record)
    except OSError as error:
        raise DataError(f"cannot read the record '{path}': {error.strerror or error}") from error
    except (ImaeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"'{path}' is not a record of a run: {error}") from error
    return record


def _check(record: Record) -> None:
    for point in record.points:
        for field in fields(point):
            value = getattr(point, field.name)
            if field.name not in ("iteration", "loss") and value is not None and not 0 <= value <= 1:
                raise ValueError(f"{field.name} at iteration {point.iteration} is {value}, not 0 to 1")


def read_records(folder: AnyPath = RECORDS) -> list[Record]:
    """The records of a folder by name; those of runs that have not ended are left out."""
    return [record for record in _all(Path(folder)) if record.complete]


def _all(folder: Path) -> Iterator[Record]:
    for path in sorted(folder.glob("*.json")):
        yield read_record(path)
