"""The numbers of training logs, Caffe's and ours, as TensorBoard's event files: one run for each log.

The tags of the curves, which TensorBoard groups by the part before the slash:

    train/smoothed loss    the loss after `Iteration N`, a mean of the last average_loss iterations
    train/learning rate
    train/NAME             an output of the train net; NAME[0], NAME[1] ... of a vector
    test/NAME              an output of the test net; `test net 1/NAME` of the second one
    test/mean loss         the line `Test loss:`, of test_compute_loss
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from imae.files.caffe_log import LogNumber, read_log
from imae.files.errors import FileError
from imae.files.event_file import FILE_NAME, Scalars, write_events
from imae.files.read import AnyPath

KINDS = {"loss": "train/smoothed loss", "lr": "train/learning rate"}


def tags(numbers: Iterable[LogNumber]) -> list[tuple[str, LogNumber]]:
    """Each number with the tag of its curve."""
    numbers = list(numbers)
    places: dict[tuple[str, int, str], set[int]] = {}
    for number in numbers:
        places.setdefault((number.what, number.net, number.name), set()).add(number.place)
    tagged = []
    for number in numbers:
        group = f"test net {number.net}" if number.net else number.what.removesuffix("_loss")
        if number.what == "test_loss":
            tag = f"{group}/mean loss"
        elif number.what in KINDS:
            tag = KINDS[number.what]
        else:
            of_blob = sorted(places[number.what, number.net, number.name])
            element = f"[{of_blob.index(number.place)}]" if len(of_blob) > 1 else ""
            tag = f"{group}/{number.name}{element}"
        tagged.append((tag, number))
    return tagged


def scalars(numbers: Iterable[LogNumber], ended: float = 0) -> list[Scalars]:
    """The numbers of a log by iterations, in the log's order.

    ended   when the last line was written, in seconds since 1970: most logs have no year
    """
    tagged = tags(numbers)
    last = tagged[-1][1].seconds if tagged else 0
    entries: list[Scalars] = []
    values: dict[str, float] = {}
    for tag, number in tagged:
        if not entries or entries[-1].iteration != number.iteration or tag in values:
            values = {}
            entries.append(Scalars(number.iteration, ended - last + number.seconds, values))
        values[tag] = number.value
    return entries


def run_names(paths: Sequence[str]) -> list[str]:
    """A name of its own for each log: the file's without `.log`, or, where two are equal, the path's."""
    names = [os.path.basename(path).removesuffix(".log").strip(".") for path in paths]
    if len(set(names)) < len(names) or not all(names):
        names = [os.path.normpath(path).strip("./").removesuffix(".log").replace("/", "_") for path in paths]
    return [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]


def write_tensorboard(paths: Sequence[str], folder: AnyPath) -> list[Path]:
    """Write FOLDER/RUN/events.out.tfevents... for each log; returns the files.

    DataError for a log that cannot be read, before anything is written.
    """
    logs = [(scalars(read_log(path), _time_of(path))) for path in paths]
    written = []
    for name, entries in zip(run_names(paths), logs, strict=True):
        path = Path(folder, name, FILE_NAME)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot make the folder '{path.parent}': {error.strerror}") from error
        write_events(path, entries)
        written.append(path)
    return written


def _time_of(path: str) -> float:
    """When a file was written last."""
    return os.stat(path).st_mtime if os.path.isfile(path) else 0
