"""The MARS benchmark's files: the protocol's folder, and images called PPPPCxTxxxxFxxx.jpg.

    tracks_train_info.mat, tracks_test_info.mat    tracklets: first image, last image, person, camera
    query_IDX.mat                                  which of the test tracklets are queries
    train_name.txt, test_name.txt                  the images' names, in the order of the tracklets' numbers

In a name, PPPP is the person (00-1: junk) and the x after C the camera; the image is in the folder PPPP.
Without a list of names the images are sorted by the bytes of their names. In both cases person and camera of
each image must be those of its tracklet; junk tracklets are not checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from imae.files.errors import DataError
from imae.files.read import AnyPath
from imae.paper.retrieval import JUNK, Numbers, Tracklets, read_queries, read_tracklets

BATCH_SIZE = 128  # images that a model is given at once

Part = Literal["train", "test"]

# What count_part finds in the benchmark's files (github.com/liangzheng06/MARS-evaluation). The label 0 of the
# distractors and -1 of junk are no persons here; with them the test tracklets have 636 labels.
COUNTED = {
    "training": {"persons": 625, "videos": 8298, "images": 509914},
    "testing": {"persons": 634, "videos": 12180, "images": 681089},
}

# A path, or a key of an LMDB: the name alone, or after a folder or an index.
NAME_AT_END = re.compile(r"(?:^|[/_])((?:[0-9]{4}|00-1)C[0-9]T[0-9]+F[0-9]+\.jpg)$")


def read_part(folder: AnyPath, part: Part) -> Tracklets:
    """The tracklets for training or testing."""
    return read_tracklets(Path(folder, f"tracks_{part}_info.mat"), f"track_{part}_info")


def count_part(tracklets: Tracklets) -> dict[str, int]:
    """The numbers of persons, of videos (tracklets, those of distractors and junk too) and of images."""
    persons = np.unique(tracklets.person[tracklets.person > 0])
    return {"persons": len(persons), "videos": len(tracklets.person), "images": tracklets.images}


def read_test_protocol(folder: AnyPath) -> tuple[Tracklets, Numbers]:
    """The test tracklets, and which of them are queries."""
    tracklets = read_part(folder, "test")
    return tracklets, read_queries(Path(folder, "query_IDX.mat"), tracklets)


def find_images(paths: Iterable[str]) -> dict[str, str]:
    """The path of each image, by its name, among these files or keys; DataError for a repeated name."""
    by_name: dict[str, str] = {}
    for path in paths:
        if match := NAME_AT_END.search(path):
            if match[1] in by_name:
                raise DataError(f"the image {match[1]} comes twice: '{by_name[match[1]]}' and '{path}'")
            by_name[match[1]] = path
    return by_name


def order_images(
    paths: dict[str, str], folder: AnyPath, part: Part, tracklets: Tracklets, where: str
) -> list[str]:
    """The names of the tracklets' images in order.

    paths    the images, as find_images returns them; errors call their folder or database `where`
    folder   of the protocol; if it has a list of names, that gives the order

    DataError if images are missing, too few or too many, or not of the tracklets' persons and cameras.
    """
    list_path = Path(folder, f"{part}_name.txt")
    if list_path.exists():
        names, source = _read_lines(list_path), f"'{list_path}'"
        missing = [name for name in names if name not in paths]
        if missing:
            raise DataError(
                f"{where} lacks {len(missing)} of the {len(names)} images that {source} names, the first is "
                f"'{missing[0]}'"
            )
    else:
        names, source = sorted(paths), where
    if len(names) != tracklets.images:
        raise DataError(f"{source} has {len(names)} images of MARS; the tracklets have {tracklets.images}")
    _check_names(names, tracklets, source)
    return names


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list '{path}': {error}") from None


def _check_names(names: Sequence[str], tracklets: Tracklets, source: str) -> None:
    owner = np.repeat(np.arange(len(tracklets.person)), tracklets.end - tracklets.begin)
    person = np.array([JUNK if name.startswith("00-1") else int(name[:4]) for name in names])
    camera = np.array([int(name[5]) for name in names])
    alike = (tracklets.person[owner] == person) & (tracklets.camera[owner] == camera)
    wrong = np.flatnonzero(~alike & (tracklets.person[owner] != JUNK))
    if len(wrong):
        place = int(wrong[0])
        raise DataError(
            f"{source}: image {place + 1} is '{names[place]}', but belongs to "
            f"{tracklets.text(owner[place])}; the order must be the benchmark's"
        )
