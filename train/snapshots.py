"""Write, find, remove and restore the snapshots of a training.

A snapshot is a model and a solver state (solverstate.py): PREFIX_iter_N.caffemodel and
PREFIX_iter_N.solverstate, in HDF5 with the suffix .h5. The state is written last: if both exist, both are
whole.

Caffe: solver.cpp, Snapshot, Restore.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from imae.files.caffe_log import log_line
from imae.files.errors import CaffemodelError, FileError, SnapshotError
from imae.layers.blob import shape_string
from imae.layers.ranks import Ranks
from imae.net.net import Net
from imae.net.not_finite import all_finite
from imae.net.weights import load_caffemodel, save_caffemodel
from imae.prototxt import SolverParameter
from imae.train.from_device import host_array
from imae.train.lr_policy import Plateau, f32
from imae.train.options import Options
from imae.train.run_position import RunPosition
from imae.train.solverstate import State, file_checksum, read_state, write_state
from imae.train.update import Update

logger = logging.getLogger(__name__)


@dataclass
class Marks:
    """The special snapshots of a run, by the paths of their states; "" where there is none.

    last_finite   the last snapshot, written or restored, whose weights are finite
    last_good     the last snapshot after which a finite loss was displayed
    spared        last_good; before there is one, the snapshot from which this run was restored
    exact_from    the snapshot from which this run was restored exactly, as a real path
    """

    last_finite: str = ""
    last_good: str = ""
    spared: str = ""
    exact_from: str = ""

    def written(self, path: str, finite: bool) -> None:
        """Note that a snapshot was written."""
        if finite:
            self.last_finite = path

    def restored(self, path: str, finite: bool) -> None:
        """Note that the run was restored from a snapshot, perhaps not exactly."""
        self.exact_from = ""
        if finite:
            self.last_finite = self.spared = path

    def finite_loss(self) -> bool:
        """Note that a finite loss was displayed; returns whether last_good is now another snapshot."""
        if self.last_good == self.last_finite:
            return False
        self.last_good = self.spared = self.last_finite
        return True


class Restored(NamedTuple):
    """A snapshot from which a run was restored.

    exact   whether data, random numbers and smoothed loss were restored, too
    """

    path: str
    iteration: int
    current_step: int
    exact: bool


class Snapshots:
    """The snapshots of one solver.

    options    `keep` and `on_nan` are used
    ranks      all ranks call `save`, `is_current`, `restore` and `restore_newest`; rank 0 writes
    net, update, position, plateau   what is saved and restored, besides iteration and current_step
    """

    def __init__(
        self,
        param: SolverParameter,
        options: Options,
        ranks: Ranks,
        net: Net,
        update: Update,
        position: RunPosition,
        plateau: Plateau,
    ) -> None:
        self.param = param
        self.keep, self.on_nan = options.keep, options.on_nan
        self.marks = Marks()
        self._ranks, self._net, self._update, self._position = ranks, net, update, position
        self._plateau = plateau

    # Read when they are needed: a script may set them between two steps.

    @property
    def prefix(self) -> str:
        """snapshot_prefix."""
        return self.param.snapshot_prefix

    @property
    def hdf5(self) -> bool:
        """Whether snapshot_format is HDF5."""
        return self.param.snapshot_format == SolverParameter.HDF5

    def paths(self, iteration: int) -> tuple[str, str]:
        """The model and the solver state of an iteration's snapshot."""
        stem, end = f"{self.prefix}_iter_{iteration}", ".h5" if self.hdf5 else ""
        return f"{stem}.caffemodel{end}", f"{stem}.solverstate{end}"

    def is_current(self, iteration: int) -> bool:
        """Whether the run was restored exactly from the snapshot that it would write; Caffe rewrites it."""
        model, path = self.paths(iteration)
        is_restored = os.path.realpath(path) == self.marks.exact_from
        exists = is_restored and os.path.isfile(path) and os.path.isfile(model)
        return bool(self._ranks.broadcast_int(int(exists)))

    # -- writing --------------------------------------------------------------------------------------------

    def save(self, iteration: int, current_step: int, run: dict[str, Any]) -> str:
        """Write the model, then the solver state; remove snapshots beyond `keep`; returns the state's path.

        run   this rank's RunPosition.get_state
        """
        model, path = self.paths(iteration)
        finite = all_finite([*(p.detach() for p in self._net.learnable), *self._update.history])
        run = self._position.of_all_ranks(run, path)
        if self._ranks.rank == 0:
            kind = "HDF5 file" if self.hdf5 else "binary proto file"
            log_line("solver.cpp:474" if self.hdf5 else "solver.cpp:464", f"Snapshotting to {kind} {model}")
            # Not from reading the file again: another program may have removed or replaced it.
            checksum = save_caffemodel(self._net, model, hdf5=self.hdf5, diff=self.param.snapshot_diff)
            place = "sgd_solver.cpp:296" if self.hdf5 else "sgd_solver.cpp:284"
            log_line(place, f"Snapshotting solver state to {kind} {path}")
            history = [host_array(blob) for blob in self._update.history]
            run = {**run, "model": checksum, "finite": finite}
            state = State(iteration, model, current_step, history, run)
            if self.param.lr_policy == "plateau":
                state.minimum_loss = float(self._plateau.minimum_loss)
                state.last_event = self._plateau.last_event
            write_state(state, path)
        self.marks.written(path, finite)
        self._remove_older(iteration)
        return path

    def finite_loss(self, iteration: int) -> None:
        """Note that a finite loss was displayed: the last snapshot with finite weights is a good one."""
        if self.marks.finite_loss():
            self._remove_older(iteration)

    def _remove_older(self, iteration: int) -> None:
        """Remove snapshots beyond `keep`, except those from which a diverged run can be resumed."""
        if self.keep and self._ranks.rank == 0:
            remove_older(self.prefix, iteration, self.keep, (self.marks.spared, self.marks.last_finite))

    # -- restoring ------------------------------------------------------------------------------------------

    def restore(self, path: str, *, as_caffe: bool, dialect: str | None) -> Restored:
        """Continue from a solver state; see Solver.restore."""
        return self._continue_from(path, self._load(path, as_caffe=as_caffe, dialect=dialect), as_caffe)

    def restore_newest(self, *, as_caffe: bool) -> Restored | None:
        """Continue from the newest whole snapshot; see Solver.restore_newest."""
        if self._ranks.rank:
            path, _, model = self._ranks.broadcast_str("").partition("\0")
            return (
                self._continue_from(path, self._load(path, model, as_caffe=as_caffe), as_caffe)
                if path
                else None
            )
        snapshots, failed = find_snapshots(self.prefix), None
        for snapshot in snapshots:
            try:
                if not snapshot.state or not snapshot.model:
                    present, absent = ("model", "state") if snapshot.model else ("state", "model")
                    raise SnapshotError(f"{snapshot.model or snapshot.state}: a {present} without a {absent}")
                state = self._load(snapshot.state, snapshot.model, as_caffe=as_caffe)
            except SnapshotError as error:
                logger.warning("Passing over a snapshot: %s", error)
                continue
            log_line("caffe.cpp:235", f"Resuming from {snapshot.state}")
            self._ranks.broadcast_str(f"{snapshot.state}\0{snapshot.model}")
            try:
                return self._continue_from(snapshot.state, state, as_caffe)
            except SnapshotError as error:
                if state.sealed or self._ranks.size > 1:
                    raise
                logger.warning("Passing over a snapshot: %s", error)
                failed = error
        if failed is not None:  # it is partly restored, so the training cannot start from scratch
            raise failed
        self._ranks.broadcast_str("")
        which = "whole snapshot" if snapshots else "snapshot"
        logger.info("There is no %s %s_iter_*: the training starts from scratch", which, self.prefix)
        return None

    def _load(self, path: str, model: str = "", *, as_caffe: bool, dialect: str | None = None) -> State:
        """Read a state and load its model, `model` or the one that it names, into the net.

        SnapshotError if one of them is missing, damaged or foreign; the solver is then unchanged.
        """
        state = read_state(path, dialect)
        self._check_history(path, state)
        if self.on_nan == "stop" and not state.run.get("finite", True):
            raise SnapshotError(
                f"{path}: its weights are not finite; take an earlier one, or --on-nan continue"
            )
        if model := model or state.learned_net:
            self._load_model(path, model, None if as_caffe else state.run.get("model"), dialect)
        return state

    def _check_history(self, path: str, state: State) -> None:
        """SnapshotError for the history of another net or solver type."""
        history = self._update.history
        if len(state.history) != len(history):
            raise SnapshotError(
                f"{path}: Incorrect length of history blobs: it has {len(state.history)}, a solver of type "
                f"{self.param.type} has {len(history)} for this net; it was written by another type of "
                f"solver or for another net"
            )
        for index, (values, blob) in enumerate(zip(state.history, history, strict=True)):
            if not _same_shape(values.shape, tuple(blob.shape)):
                raise SnapshotError(
                    f"{path}: history blob {index} has shape {shape_string(values.shape)}, this net needs "
                    f"{shape_string(blob.shape)}: it was written for another net"
                )

    def _load_model(self, path: str, model: str, checksum: int | None, dialect: str | None) -> None:
        """Load the model of the state at `path`; `checksum`: of the model file that was written with it."""
        if not os.path.isfile(model):
            raise SnapshotError(
                f"{path}: File not found: {model}, the model that belongs to it; its path is relative to "
                f"the working directory: start in the folder where the snapshot was taken"
            )
        try:
            damaged = checksum not in (None, file_checksum(model))
        except OSError as error:
            raise SnapshotError(f"{path}: {model}: cannot be read: {error.strerror}") from None
        if damaged:
            raise SnapshotError(
                f"{path}: {model} is damaged, or another model than the one written with it "
                f"(--resume-as-caffe loads it nevertheless)"
            )
        try:
            load_caffemodel(self._net, model, dialect)
        except CaffemodelError as error:
            raise SnapshotError(f"{path}: {error}") from None

    def _continue_from(self, path: str, state: State, as_caffe: bool) -> Restored:
        """Restore the history and the run's position from a state whose model is loaded."""
        if not path.endswith(".h5"):  # Caffe: silent there
            log_line("sgd_solver.cpp:336", "SGDSolver: restoring history")
        for values, blob in zip(state.history, self._update.history, strict=True):
            blob.copy_(torch.from_numpy(values).view(blob.shape))
        self._plateau.minimum_loss, self._plateau.last_event = f32(state.minimum_loss), state.last_event
        self.marks.restored(path, state.run.get("finite", True))
        exact = bool(state.run) and not as_caffe
        if exact:
            try:
                self._position.set_state(state.run)
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
                raise SnapshotError(
                    f"{path}: the run cannot go on exactly: {error} (--resume-as-caffe starts the data anew)"
                ) from error
            self.marks.exact_from = os.path.realpath(path)
        return Restored(path, state.iteration, state.current_step, exact)


def _same_shape(values: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether the shapes agree; old files pad a shape with leading 1s to 4 axes."""
    return values in (wanted, (1,) * (4 - len(wanted)) + wanted)


# -- files ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """The files of one snapshot in one format; "" for a missing file."""

    iteration: int
    model: str
    state: str


def find_snapshots(prefix: str) -> list[Snapshot]:
    """The snapshots under a snapshot_prefix, whole or not, in both formats, newest first."""
    folder, base = os.path.split(prefix)
    pattern = re.compile(re.escape(base) + r"_iter_(0|[1-9]\d*)\.(caffemodel|solverstate)(\.h5)?", re.ASCII)
    files_of: dict[tuple[int, str], dict[str, str]] = {}
    try:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                match = pattern.fullmatch(entry.name)
                if match and entry.is_file():
                    iteration, kind, end = match.groups()
                    files = files_of.setdefault((int(iteration), end or ""), {})
                    files[kind] = os.path.join(folder, entry.name)
    except OSError as error:
        raise FileError(f"cannot look for snapshots of '{prefix}': {error.strerror}") from None
    return [
        Snapshot(iteration, files.get("caffemodel", ""), files.get("solverstate", ""))
        for (iteration, _), files in sorted(files_of.items(), reverse=True)
    ]


def remove_older(prefix: str, iteration: int, keep: int, spared: Collection[str] = ()) -> None:
    """Remove snapshots older than the newest `keep` up to `iteration`, except the `spared` states.

    Later snapshots, which belong to another run, stay; so do links. A file that cannot be removed is logged.
    """
    check_removable(prefix)
    spared_paths = {os.path.realpath(path) for path in spared if path}
    snapshots = [s for s in find_snapshots(prefix) if s.iteration <= iteration]
    whole = sorted({s.iteration for s in snapshots if s.model and s.state}, reverse=True)
    if len(whole) <= keep:
        return
    for snapshot in reversed(snapshots):
        if os.path.realpath(snapshot.state) in spared_paths:
            continue
        # The state first: a run cannot be resumed from a model alone.
        for path in (snapshot.state, snapshot.model):
            if path and snapshot.iteration < whole[keep - 1] and not os.path.islink(path):
                try:
                    os.unlink(path)
                except OSError as error:
                    logger.warning("cannot remove '%s': %s", path, error.strerror)


def check_removable(prefix: str) -> None:
    """FileError for a prefix outside the working directory, where no file may be removed.

    A prototxt can come from a stranger; it must not choose files elsewhere to be removed.
    """
    folder, here = (os.path.realpath(path) for path in (os.path.dirname(prefix) or ".", "."))
    if os.path.commonpath([folder, here]) != here:
        raise FileError(
            f"--keep removes snapshots in the working directory only, and snapshot_prefix '{prefix}' leads "
            f"to '{folder}'; start in a folder above that, or leave --keep out"
        )


def check_writable(prefix: str) -> None:
    """FileError where snapshots cannot be written under a prefix."""
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(prefix) or "."):
            pass
    except OSError as error:
        raise FileError(
            f"Cannot write to snapshot prefix '{prefix}'.  Make sure that the directory exists and is "
            f"writable. ({error.strerror})"
        ) from None
