"""What is found out about one file of a project: a row of the report."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

YES, NO, PARTLY, UNKNOWN, NOT_ASKED = "yes", "no", "partly", "unknown", ""
COLUMNS = ("reads", "builds", "trains", "exports")
LONGEST = 500  # characters of a line about a file: errors may list all known types

# Who has what stops a file.
PROJECT, FILE, CODE, IMAE = "the project", "the file", "the project's Python code", "imae"
FORK = re.compile(r"; (.+?) (?:has|have) it, Caffe has not(?:, nor has imae)?(?:; (.*))?$")
KNOWN = re.compile(r" \(known types: .*\)$|; known: [A-Z0-9_, ]+")


@dataclass
class Stop:
    """What stops a file, whose it is, and what to do."""

    what: str
    owner: str
    remedy: str


@dataclass
class Row:
    """A file, or the folder of a database.

    path      relative to the project
    kind      net, solver, weights, ...
    reads, builds, trains, exports   yes, no, partly, unknown, or "" where it does not apply
    facts     what it is
    stops     what stops it
    warnings  what does nothing, and what will differ from Caffe
    """

    path: str
    kind: str
    reads: str = NOT_ASKED
    builds: str = NOT_ASKED
    trains: str = NOT_ASKED
    exports: str = NOT_ASKED
    facts: list[str] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def stop(self, what: str, owner: str = FILE, remedy: str = "") -> None:
        """Note what stops it, once."""
        entry = Stop(shortened(what), owner, remedy)
        if entry not in self.stops:
            self.stops.append(entry)

    def stop_error(self, error: Exception, owner: str = FILE, remedy: str = "") -> None:
        """Note an error of a reader; one that names a fork is the fork's."""
        text = KNOWN.sub("", str(error))
        if match := FORK.search(text):
            self.stop(
                text[: match.start()], match[1], match[2] or "imae does not have it; write it as a plugin"
            )
        else:
            self.stop(text, owner, remedy)

    def to_dict(self) -> dict[str, Any]:
        """The row for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Row:
        """The row that `to_dict` has made."""
        return cls(**{**values, "stops": [Stop(**stop) for stop in values["stops"]]})


def shortened(text: str) -> str:
    """One line of at most LONGEST characters."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def is_there(path: str) -> bool:
    """Whether a path of a prototxt exists, from the working folder, as in Caffe."""
    return "\0" not in path and os.path.exists(path)


def place_of(path: str, file: Path, root: Path) -> str:
    """The folder of the project from which a path that is not there would be, or "".

    The folders between the project and the file that names the path are tried.
    """
    if not path or os.path.isabs(path) or "\0" in path:
        return ""
    for folder in (root, *reversed(file.parents)):
        if folder.is_relative_to(root) and os.path.exists(folder / path):
            return str(folder)
    return ""


def look_for(row: Row, path: str, what: str, file: Path, root: Path) -> str:
    """The path of a file or folder that a prototxt names, "" where it is not there; the row notes it.

    It counts as there, too, where it is from another folder of the project.
    """
    if is_there(path):
        outside = not os.path.isabs(path) and not Path.cwd().is_relative_to(root)
        row.facts.append(f"{what} {path!r} is there" + outside * f" in the working folder, {Path.cwd()}")
        return path
    if folder := place_of(path, file, root):
        row.facts.append(f"{what} {path!r} is there from {FROM}{folder}")
        return os.path.join(folder, path)
    if os.path.isabs(path):
        remedy = "it is an absolute path of another machine: write a path of this one"
    else:
        remedy = "fetch or make it; a relative path starts at the working folder"
    row.stop(f"{what} {path!r} is not there", PROJECT, remedy)
    return ""


FROM = "the folder "  # of a fact about a path that is not there from the working folder
