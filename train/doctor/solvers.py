"""A solver's prototxt: whether it reads, which of its files exist, and what of it has no effect."""

from __future__ import annotations

import os
from pathlib import Path

from imae.files.errors import ImaeError, PrototxtError
from imae.prototxt import SolverParameter
from imae.prototxt.text import read_solver
from imae.train.doctor.nets import text_of
from imae.train.doctor.row import FILE, NO, PROJECT, YES, Row, is_there, look_for, place_of
from imae.train.doctor.unknown import unknown_words
from imae.train.lr_policy import learning_rate
from imae.train.solver_check import check_param
from imae.train.update_rules import update_rule


def examine_solver(file: Path, root: Path) -> tuple[Row, list[str]]:
    """The row of a solver, and the file of its train net where it is."""
    row = Row(str(file), "solver")
    try:
        param = read_solver(file)
    except PrototxtError as first:
        row.reads = row.trains = NO
        for error in unknown_words(text_of(file), SolverParameter, str(file)).errors or [first]:
            row.stop_error(error, FILE)
        return row, []
    row.reads = YES
    for check in (
        lambda: check_param(param, "cpu", writes=False, removes=False),
        lambda: update_rule(param),
        lambda: learning_rate(param, 0, 0),
    ):
        try:
            check()
        except ImaeError as error:
            row.stop_error(error, FILE)
    iterations = f"{param.max_iter} iterations" if param.HasField("max_iter") else "no max_iter: 0 iterations"
    row.facts.append(f"{param.type}, lr_policy {param.lr_policy!r}, base_lr {param.base_lr:g}, {iterations}")
    train_nets = [(name, getattr(param, name)) for name in ("net", "train_net") if param.HasField(name)]
    for name, path in [*train_nets, *(("test_net", path) for path in param.test_net)]:
        look_for(row, path, name, file, root)
    for names in param.weights:
        for path in filter(None, map(str.strip, names.split(","))):
            look_for(row, path, "weights", file, root)
    if not train_nets and not (param.HasField("net_param") or param.HasField("train_net_param")):
        row.stop("it names no net", FILE, "give it net: the path of its train_val.prototxt")
    if param.snapshot:
        _look_for_folder(row, param.snapshot_prefix, file, root)
    row.trains = NO if row.stops else YES
    return row, [str(_place(path, file, root)) for _, path in train_nets]


def _look_for_folder(row: Row, prefix: str, file: Path, root: Path) -> None:
    folder = os.path.dirname(prefix) or "."
    if is_there(folder):
        row.facts.append(f"snapshot_prefix {prefix!r}: its folder exists")
    elif place := place_of(folder, file, root):
        row.facts.append(f"snapshot_prefix {prefix!r}: its folder exists from {place}")
    else:
        row.stop(
            f"the folder of snapshot_prefix {prefix!r} is not there", PROJECT,
            "make it, or write another prefix; neither Caffe nor imae makes it",
        )  # fmt: skip


def _place(path: str, file: Path, root: Path) -> Path:
    if is_there(path):
        return Path(path).absolute()
    return Path(place_of(path, file, root) or ".", path)
