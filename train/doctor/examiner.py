"""The process that reads the files of a project: one request a line in, one answer a line out, both JSON.

survey.py starts it, and starts it again when a file takes too long or too much memory.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imae.files.errors import ImaeError
from imae.layers.registry import layer_types
from imae.prototxt.python_layers import VARIABLE
from imae.train.doctor import files, sandbox
from imae.train.doctor.nets import examine_net
from imae.train.doctor.row import NO, Row
from imae.train.doctor.solvers import examine_solver

Answer = tuple[Row, dict[str, Any]]


def _net(file: Path, root: Path) -> Answer:
    row, blobs, differences = examine_net(file, root)
    return row, {"blobs": blobs, "differences": differences}


def _solver(file: Path, root: Path) -> Answer:
    row, nets = examine_solver(file, root)
    return row, {"nets": nets}


def _weights(file: Path, root: Path) -> Answer:
    row, blobs = files.examine_weights(file)
    return row, {"blobs": blobs}


EXAMINERS: dict[str, Callable[[Path, Path], Answer]] = {
    "net": _net,
    "solver": _solver,
    "weights": _weights,
    "solver state": lambda file, root: (files.examine_state(file, root), {}),
    "mean": lambda file, root: (files.examine_mean(file), {}),
    "HDF5": lambda file, root: (files.examine_hdf5(file), {}),
    "LMDB": lambda file, root: (files.examine_lmdb(file), {}),
    "LevelDB": lambda file, root: (files.examine_leveldb(file), {}),
    "label map": lambda file, root: (files.examine_label_map(file), {}),
    "list": lambda file, root: (files.examine_list(file, root), {}),
}


class Warnings(logging.Handler):
    """Collects what the package warns of, without Caffe's own lines, which are the same there."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, "caffe"):
            self.lines.append(record.getMessage())


def examine(kind: str, file: Path, root: Path) -> dict[str, Any]:
    """The answer about one file."""
    handler = Warnings()
    logger = logging.getLogger("imae")
    logger.addHandler(handler)
    try:
        row, more = EXAMINERS[kind](file, root)
    except (ImaeError, OSError) as error:
        row, more = Row(str(file), kind, reads=NO), {}
        row.stop_error(error)
    except (MemoryError, RecursionError) as error:
        row, more = Row(str(file), kind, reads=NO), {}
        row.stop(f"reading it takes too much memory ({type(error).__name__})", "imae", "examine it alone")
    finally:
        logger.removeHandler(handler)
    row.path = os.path.relpath(file, root)
    for stop in row.stops:
        stop.what = re.sub(rf"{re.escape(str(file))}:(?=\d)", "line ", stop.what)
        stop.what = stop.what.replace(f"{file}: ", "").replace(f"{root}{os.sep}", "")
    row.warnings = list(dict.fromkeys([*row.warnings, *handler.lines]))
    row.facts = list(dict.fromkeys(row.facts))
    return {"row": row.to_dict(), **more}


def main() -> None:
    """Answer requests until there are no more."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    warnings.simplefilter("ignore")
    logging.getLogger("imae").setLevel(logging.WARNING)
    logging.getLogger("imae").propagate = False
    os.environ.pop(VARIABLE, None)  # nets with Python layers are examined, and these are left out
    layer_types()  # import all, before importing is forbidden
    sandbox.enter()
    for line in sys.stdin:
        request = json.loads(line)
        answer = examine(request["kind"], Path(request["file"]), Path(request["root"]))
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
