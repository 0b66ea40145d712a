"""The MARS benchmark's files: the protocol's folder, and images called PPPPCxTxxxxFxxx.jpg.

    tracks_train_info.mat, tracks_test_info.mat    tracklets: first image, last image, person, camera
    query_IDX.mat                                  which of the test tracklets are queries
    train_name.txt, test_name.txt                  the images' names in the order that the tracklets count in

In a name, PPPP is the person (00-1: junk), the x behind C the camera; the image lies in the folder PPPP.
Without a list of names the order is that of the names' bytes. Either way person and camera of each image must
be its tracklet's; junk tracklets are passed over.
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

Part = Literal["train", "test"]

# A path, or a key of an LMDB: the name alone, or behind a folder or a place in the order.
NAME_AT_END = re.compile(r"(?:^|[/_])((?:[0-9]{4}|00-1)C[0-9]T[0-9]+F[0-9]+\.jpg)$")


def read_part(folder: AnyPath, part: Part) -> Tracklets:
    """The tracklets for training or testing."""
    return read_tracklets(Path(folder, f"tracks_{part}_info.mat"), f"track_{part}_info")


def read_test_protocol(folder: AnyPath) -> tuple[Tracklets, Numbers]:
    """The test tracklets, and which of them are queries."""
    tracklets = read_part(folder, "test")
    return tracklets, read_queries(Path(folder, "query_IDX.mat"), tracklets)


def find_images(paths: Iterable[str]) -> dict[str, str]:
    """Name: path of each image among these files or keys; DataError for a name that comes twice."""
    found: dict[str, str] = {}
    for path in paths:
        if match := NAME_AT_END.search(path):
            if match[1] in found:
                raise DataError(f"the image {match[1]} comes twice: '{found[match[1]]}' and '{path}'")
            found[match[1]] = path
    return found


def order_images(
    found: dict[str, str], folder: AnyPath, part: Part, tracklets: Tracklets, where: str
) -> list[str]:
    """The names of the tracklets' images in order.

    found    the images that are there; `where` is what errors call their folder or database
    folder   the protocol's; the list of names in it decides

    DataError where images are missing, too few or too many, or not of the tracklets' persons and cameras.
    """
    list_path = Path(folder, f"{part}_name.txt")
    if list_path.exists():
        names, source = _read_lines(list_path), f"'{list_path}'"
        missing = [name for name in names if name not in found]
        if missing:
            raise DataError(
                f"{where} lacks {len(missing)} of the {len(names)} images that {source} names, the first is "
                f"'{missing[0]}'"
            )
    else:
        names, source = sorted(found), where
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
