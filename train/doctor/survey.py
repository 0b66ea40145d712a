"""Walk a project, let the examiner look at each file, and match weights with nets and solvers with nets.

    survey = examine_project("path/to/project")

This process opens files only to recognise them, and writes nothing. Symbolic links are not followed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from imae.files.errors import DataError
from imae.files.file_kinds import FileKind, file_kind
from imae.files.limits import (
    DEEPEST_FOLDER,
    EXAMINATION_SECONDS,
    LARGEST_TEXT,
    MOST_PROJECT_FILES,
    bytes_text,
)
from imae.files.read import AnyPath, open_to_read
from imae.train.doctor.row import FILE, FROM, IMAE, NO, UNKNOWN, YES, Row, Stop

SKIPPED_FOLDERS = {
    ".git",
    ".hg",
    ".svn",
    ".venv",
    "venv",
    "node_modules",
    "__pycache__",
    ".ipynb_checkpoints",
}
HEAD = 1 << 16  # bytes of a file that are looked at to recognise it
PROTOTXT = re.compile(r"\.(prototxt|prototext|ptxt|pt)(\.txt|\.template|\.bak)?$", re.IGNORECASE)
BY_NAME = (
    (re.compile(r"\.caffemodel(\.h5)?$", re.IGNORECASE), "weights"),
    (re.compile(r"\.solverstate(\.h5)?$", re.IGNORECASE), "solver state"),
    (re.compile(r"\.binaryproto$", re.IGNORECASE), "mean"),
    (re.compile(r"\.(h5|hdf5)$", re.IGNORECASE), "HDF5"),
)
LIST = re.compile(r"\.(txt|lst|list)$", re.IGNORECASE)
# A path of an image, HDF5 file or video, and perhaps words after it: labels, or another path.
LISTED = re.compile(r"\S.*\.(jpe?g|png|bmp|ppm|tiff?|gif|h5|hdf5|avi|mp4)(\s.*)?", re.IGNORECASE | re.DOTALL)
LABEL_MAP = re.compile(r"(^|\s)item\s*\{")
COMMENT = re.compile(r"#[^\n]*")
LABEL_MAP_HEAD = 4096
MOST_LISTED = 5
GRACE = 10  # seconds for the examiner to end after an error


@dataclass
class Survey:
    """The rows of a project, in the order of their paths.

    notes         what was left out, and what concerns several files
    differences   how the layer types that the nets have differ from Caffe's, by type
    """

    root: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    differences: dict[str, str] = field(default_factory=dict)

    @property
    def all_well(self) -> bool:
        """Whether nothing stops anything."""
        return not any(row.stops for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The survey for JSON."""
        rows = [row.to_dict() for row in self.rows]
        return {
            "imae": version("imae"), "project": self.root, "all_well": self.all_well, "notes": self.notes,
            "files": rows, "differences": self.differences,
        }  # fmt: skip


@dataclass
class _Examined:
    """What the examiner answered about a file: the row, and what is matched with other files.

    blobs   of a net or a weight file, by layer: shapes, with a flag: assumed in a net, padded in a file
    """

    row: Row
    blobs: dict[str, list[tuple[tuple[int, ...], bool]]] = field(default_factory=dict)
    nets: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    differences: dict[str, str] = field(default_factory=dict)


def examine_project(path: AnyPath, seconds: float = EXAMINATION_SECONDS) -> Survey:
    """Examine the files below a folder, or one file; DataError where there is neither.

    seconds   for one file
    """
    start = Path(os.path.abspath(path))
    if "\0" in str(path) or not start.exists():
        raise DataError(f"no such file or folder: '{path}'")
    root = start if start.is_dir() else start.parent
    survey = Survey(str(root))
    entries = list(_walk(root, survey.notes)) if start.is_dir() else [start]
    examined: list[_Examined] = []
    with Examiner(seconds) as examiner:
        for file in entries:
            kind, row = _recognise(file, root)
            if row is not None:
                examined.append(_Examined(row))
            elif kind:
                examined.append(examiner.ask(kind, file, root))
    _match_weights(examined)
    _match_solvers(examined, root)
    survey.rows = [entry.row for entry in examined]
    for entry in examined:
        survey.differences.update(entry.differences)
    folders = {fact.partition(FROM)[2] for row in survey.rows for fact in row.facts if FROM in fact}
    if folders:
        survey.notes.append(
            "relative paths start at the working folder, as in Caffe: start imae in the folder from which "
            f"they are there ({', '.join(sorted(folders)[:MOST_LISTED])})"
        )
    return survey


def _walk(root: Path, notes: list[str]) -> Iterator[Path]:
    """The files below a folder, and the folders of databases, sorted; links are left out."""
    links: list[str] = []
    waiting, seen = [(root, 0)], 0
    while waiting:
        folder, depth = waiting.pop()
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            notes.append(f"{os.path.relpath(folder, root)}: cannot be read: {error.strerror}")
            continue
        names = {entry.name for entry in entries}
        if "data.mdb" in names or (
            "CURRENT" in names and any(name.startswith("MANIFEST-") for name in names)
        ):
            yield folder
            continue
        below = []
        for entry in entries:
            seen += 1
            if seen > MOST_PROJECT_FILES:
                notes.append(f"only the first {MOST_PROJECT_FILES} files and folders were looked at")
                return
            if entry.is_symlink():
                links.append(os.path.relpath(entry.path, root))
            elif entry.is_dir(follow_symlinks=False):
                if entry.name in SKIPPED_FOLDERS:
                    continue
                if depth == DEEPEST_FOLDER:
                    notes.append(f"{os.path.relpath(entry.path, root)}: nested too deeply, not looked at")
                else:
                    below.append((Path(entry.path), depth + 1))
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path)
        waiting += reversed(below)
    if links:
        more = " ..." if len(links) > MOST_LISTED else ""
        notes.append(f"{len(links)} symbolic links were not followed: {', '.join(links[:MOST_LISTED])}{more}")


def _recognise(file: Path, root: Path) -> tuple[str, Row | None]:
    """The kind of a file, "" for one of no interest; or its row, where it need not be examined."""
    # os.path's functions: those of Path raise an error where a folder may be listed and not entered.
    if os.path.isdir(file):
        return ("LMDB" if _lists(file, "data.mdb") else "LevelDB"), None
    kind = next((kind for pattern, kind in BY_NAME if pattern.search(file.name)), "")
    is_text = PROTOTXT.search(file.name) is not None
    if not (kind or is_text or LIST.search(file.name)):
        return "", None
    row = Row(os.path.relpath(file, root), kind or "prototxt", reads=NO)
    try:
        with open_to_read(file) as opened:
            head = opened.read(HEAD)
        size = file.stat().st_size
    except OSError as error:
        remedy = "make it readable" if isinstance(error, PermissionError) else ""
        row.stop(f"cannot be read: {error.strerror}", FILE, remedy)
        return kind, row
    content = file_kind(head)
    if content in (FileKind.LFS, FileKind.HTML) and (kind or is_text):
        text, _, remedy = content.value.partition(": ")
        row.stop(text, FILE, remedy)
        return kind, row
    if kind:
        return kind, None
    if is_text:
        kind = _kind_of_text(head, content)
        if kind and size > LARGEST_TEXT:
            row.stop(
                f"it has {bytes_text(size)}; at most {bytes_text(LARGEST_TEXT)} of a prototxt are read", IMAE
            )
            return kind, row
        if not head.strip():
            row.stop("the file is empty", FILE, "fetch it again")
            return kind, row
        return kind, None
    lines = [
        line
        for line in head[: head.rfind(b"\n") + 1 or HEAD].decode(errors="replace").split("\n")
        if line.strip()
    ]
    return ("list" if lines and all(map(LISTED.fullmatch, lines[:50])) else ""), None


def _lists(folder: Path, name: str) -> bool:
    try:
        return name in os.listdir(folder)
    except OSError:  # it was just listed: the project is being changed
        return False


def _kind_of_text(head: bytes, content: FileKind | None) -> str:
    """The kind of a prototxt by its content; "" for what only bears the name, as a PyTorch file (.pt)."""
    if content is FileKind.NET_TEXT:
        return "net"
    if content is FileKind.SOLVER_TEXT:
        return "solver"
    if content is not None:
        return ""
    text = COMMENT.sub("", head.decode(errors="replace"))
    if LABEL_MAP.search(text[:LABEL_MAP_HEAD]):
        return "label map"
    words = ("net", "train_net", "test_net", "net_param")
    if re.search(rf"(^|\s)({'|'.join(words)})\s*:", text):
        return "solver"
    return "net"


class Examiner:
    """The process that reads the files; a context manager that ends it. See examiner.py.

    seconds   for one file; then the process is killed, and the next file gets a new one
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[bytes] | None = None

    def __enter__(self) -> Examiner:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def ask(self, kind: str, file: Path, root: Path) -> _Examined:
        """The answer about a file, which is always one, whatever happens to the process."""
        process, errors = self._running()
        request = json.dumps({"kind": kind, "file": str(file), "root": str(root)})
        late = threading.Event()

        def kill() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self.seconds, kill)
        timer.start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if line.endswith("\n"):
            return _examined(json.loads(line))
        row = Row(os.path.relpath(file, root), kind, reads=NO)
        try:
            status = process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:  # it has closed its output, and goes on
            process.kill()
            status = process.wait()
        if late.is_set():
            row.stop(
                f"examining it takes more than {self.seconds:g} seconds", IMAE, "examine it alone: --seconds"
            )
        else:
            errors.seek(0)
            last = (errors.read()[-2000:].decode(errors="replace").strip().splitlines() or [""])[-1]
            row.stop(
                f"the examination ended with status {status}: {last}",
                IMAE,
                "a fault of imae's: please report it",
            )
        self._end()
        return _Examined(row)

    def _running(self) -> tuple[subprocess.Popen[str], IO[bytes]]:
        if self._process is None or self._errors is None:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process
            self._process = subprocess.Popen(
                # -P: modules in the working folder do not shadow installed ones.
                [sys.executable, "-P", "-m", "imae.train.doctor.examiner"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            )
        return self._process, self._errors

    def _end(self) -> None:
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    try:
                        stream.close()
                    except BrokenPipeError:
                        continue
            self._process.kill()
            self._process.wait()
        if self._errors is not None:
            self._errors.close()
        self._process = self._errors = None


def _examined(answer: dict[str, Any]) -> _Examined:
    """What the examiner wrote about a file."""
    blobs = {
        name: [(tuple(shape), padded) for shape, padded in shapes]
        for name, shapes in answer.get("blobs", {}).items()
    }
    row = Row.from_dict(answer["row"])
    return _Examined(row, blobs, answer.get("nets", []), differences=answer.get("differences", {}))


def _match_weights(examined: list[_Examined]) -> None:
    """Note for each weight file which nets it fits, those in its own folder first."""
    nets = [entry for entry in examined if entry.row.kind == "net" and entry.blobs]
    for weights in examined:
        if weights.row.kind != "weights" or not weights.blobs:
            continue
        here = os.path.dirname(weights.row.path)
        ordered = sorted(nets, key=lambda net: (os.path.dirname(net.row.path) != here, net.row.path))
        fits = [(net, *_fit(net, weights)) for net in ordered]
        whole = [net for net, fitting, total, _ in fits if fitting == total]
        for net in whole[:MOST_LISTED]:
            more = len(weights.blobs.keys() - net.blobs.keys())
            ignored = f"; {more} more of the file are not in the net" if more else ""
            weights.row.facts.append(
                f"fits {net.row.path}: {len(net.blobs)} of {len(net.blobs)} layers{ignored}"
            )
            net.weights.append(weights.row.path)
        if len(whole) > MOST_LISTED:
            weights.row.facts.append(f"fits {len(whole) - MOST_LISTED} more nets")
        if not whole:
            best = max(fits, key=lambda fit: fit[1] / fit[2], default=None)
            if best is None:
                weights.row.facts.append("no net was built to compare it with; look at the folder of both")
            elif not best[1]:
                weights.row.facts.append("fits no net of the project that builds")
            else:
                net, fitting, total, reason = best
                weights.row.facts.append(
                    f"fits {net.row.path} in part: {fitting} of {total} layers; {reason}"
                )
    _note_weights(nets)


def _note_weights(nets: list[_Examined]) -> None:
    for net in nets:
        if net.weights:
            more = f" and {len(net.weights) - MOST_LISTED} more" if len(net.weights) > MOST_LISTED else ""
            net.row.facts.append(f"its weights: {', '.join(net.weights[:MOST_LISTED])}{more}")


def _fit(net: _Examined, weights: _Examined) -> tuple[int, int, str]:
    """How many of the net's layers with blobs the weights fit, of how many; why not the first other one."""
    fitting, reason = 0, ""
    for name, shapes in net.blobs.items():
        theirs = weights.blobs.get(name)
        if theirs is not None and len(theirs) == len(shapes) and all(map(_same, shapes, theirs)):
            fitting += 1
        elif not reason and theirs is None:
            reason = f"it has no layer {name!r}"
        elif not reason:
            want = " ".join("x".join(map(str, shape)) for shape, _ in shapes)
            have = " ".join("x".join(map(str, shape)) for shape, _ in theirs or [])
            assumed = " for data of an assumed shape" if any(flag for _, flag in shapes) else ""
            reason = f"layer {name!r} has {have}, the net needs {want}{assumed}"
    return fitting, len(net.blobs), reason


def _same(net: tuple[tuple[int, ...], bool], file: tuple[tuple[int, ...], bool]) -> bool:
    """Whether a blob of a file fits one of a net; old files pad shapes with leading 1s."""
    shape, theirs = net[0], file[0]
    return theirs == ((1,) * (4 - len(shape)) + shape if file[1] else shape)


def _match_solvers(examined: list[_Examined], root: Path) -> None:
    """A solver whose net does not train does not train either."""
    nets = {entry.row.path: entry.row for entry in examined if entry.row.kind == "net"}
    for solver in examined:
        for path in solver.nets:
            net = nets.get(os.path.relpath(path, root))
            if net is None:
                if solver.row.trains == YES:
                    solver.row.trains = UNKNOWN
                    solver.row.facts.append(f"its net {path} was not looked at; look at the folder of both")
                continue
            solver.row.facts.append(f"its net is {net.path}")
            if solver.row.trains != YES or net.trains == YES:
                continue
            solver.row.trains = net.trains or NO
            if net.trains == UNKNOWN:
                solver.row.facts.append(
                    "whether its net trains depends on Python layers, which are not run here"
                )
            else:
                reason = (
                    net.stops[0] if net.stops else Stop("it has no loss, or nothing in it learns", FILE, "")
                )
                solver.row.stop(f"its net {net.path} does not train: {reason.what}", reason.owner)
