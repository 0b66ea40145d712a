"""What stops the files of a project, equal reasons together, those of most files first."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from imae.train.doctor.row import CODE, FILE, IMAE, PROJECT, Row

# What differs between files that one reason stops: the place in the file, its layer, the names in quotes.
PLACE = re.compile(r"^line \d+(:\d+)?: ")
LAYER = re.compile(r"^layer '[^']*' \((\w+)\): |^layer '[^']*': ")
MISSING = re.compile(r"^(.*?) ?'([^']*)' (is not there)$")
OF_A_NET = re.compile(r"^its net .+? does not train: ")
ITS_NET = "its net does not train"


@dataclass
class Reason:
    """One reason, and the files that it stops.

    what     of the first file, without its place and layer
    owner    as in Stop
    remedy   as in Stop
    files    the files' paths, each with the names that it lacks, if that is what stops it
    """

    what: str
    owner: str
    remedy: str
    files: dict[str, list[str]] = field(default_factory=dict)

    @property
    def entries(self) -> list[str]:
        """The files, with these names in brackets."""
        return [f"{path} ({', '.join(names)})" if names else path for path, names in self.files.items()]

    @property
    def is_consequence(self) -> bool:
        """Whether another file's reason is behind it."""
        return self.what == ITS_NET


def reasons_of(rows: Iterable[Row]) -> list[Reason]:
    """The reasons that stop these files; what follows from others last."""
    reasons: dict[tuple[str, str, str], Reason] = {}
    for row in rows:
        for stop in row.stops:
            what, name = _general(stop.what)
            owner, remedy = (PROJECT, "") if what == ITS_NET else (stop.owner, stop.remedy)
            reason = reasons.setdefault((what, owner, remedy), Reason(what, owner, remedy))
            names = reason.files.setdefault(row.path, [])
            if name and name not in names:
                names.append(name)
    return sorted(reasons.values(), key=lambda reason: (reason.is_consequence, -len(reason.files)))


def forks_of(reasons: Iterable[Reason]) -> dict[str, int]:
    """The forks of Caffe that files need, and how many files each."""
    files: dict[str, set[str]] = {}
    for reason in reasons:
        if reason.owner not in (PROJECT, FILE, CODE, IMAE):
            files.setdefault(reason.owner, set()).update(reason.files)
    return {fork: len(files[fork]) for fork in sorted(files, key=lambda fork: (-len(files[fork]), fork))}


def _general(what: str) -> tuple[str, str]:
    """A stop without what only its file has, and the name of what is missing, or ""."""
    if OF_A_NET.match(what):
        return ITS_NET, ""
    what = LAYER.sub(lambda match: f"{match[1]}: " if match[1] else "", PLACE.sub("", what))
    if match := MISSING.match(what):
        return f"{match[1]} {match[3]}", match[2]
    return what, ""
