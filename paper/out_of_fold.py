"""Probabilities of each record by a net that was not trained on it, for programs that find wrong labels.

The records of an LMDB are divided into folds, each with the same share of every class. For each fold a net is
trained on all others, by the solver as it is, but without its tests; then it gives the probabilities of the
records that were left out. OUTPUT.npz has, in the order of the LMDB's keys:

    key         (N,)    bytes
    labels      (N,)    int32, as given
    pred_probs  (N, C)  float32; rows sum to 1
    predicted   (N,)    int32, the class with the largest probability
    fold        (N,)    int32, in which fold the record was left out
    settings            JSON text

OUTPUT.npy has `pred_probs` alone. The folder of the runs has, for each fold, the LMDBs, net, solver, log,
snapshots and pred_probs.npy. A fold that has its probabilities is not trained again; one that was stopped
goes on from its last snapshot.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from imae.converters.label_file import Labels, read_clean_labels
from imae.converters.lmdb_writer import write_lmdb
from imae.converters.net_on_noisy_labels import accuracy_layer
from imae.converters.split_lmdb import chosen_records
from imae.files.atomic import atomic_file, write_atomically
from imae.files.errors import DataError, FileError, ImaeError
from imae.files.read import AnyPath, read_bytes
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.data import Data
from imae.layers.data.lmdb_source import LmdbSource, open_lmdb
from imae.layers.layer import LossLayer
from imae.layers.run import Run
from imae.net.executor import NetExecutor
from imae.net.net import Net
from imae.net.step import Step
from imae.net.weights import load_to_use
from imae.paper.processes import last_snapshot, run_all, start_training
from imae.prototxt import TEST, NetParameter, NetState, SolverParameter
from imae.prototxt.dialects import read_net_text, read_solver_dialect
from imae.prototxt.state import filter_by_state, in_state
from imae.prototxt.text import to_text
from imae.train.snapshot_lock import writing_alone

# Fields of a solver that are about its tests.
TESTS = ("test_iter", "test_interval", "test_state", "test_net", "test_net_param", "test_initialization")

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Folds:
    """A cross-validation.

    solver   the solver's prototxt
    net      the train_val net
    lmdb     the LMDB as the net's Data layers name it
    stages   of the net that gives the probabilities, in phase TEST
    folder   of the runs
    place    the fold of each record
    """

    solver: SolverParameter
    net: NetParameter
    lmdb: str
    stages: tuple[str, ...]
    folder: Path
    place: Labels

    def run_folder(self, fold: int) -> Path:
        """Where a fold has its run."""
        return self.folder / f"fold{fold}"


def folds_of(labels: Labels, folds: int, seed: int) -> Labels:
    """The fold of each record: random, with the same share of every class to within one record."""
    if not 2 <= folds <= len(labels):
        raise DataError(f"--folds must be from 2 to {len(labels)}, the number of records; got {folds}")
    if not 0 <= seed < 2**32:
        raise DataError(f"--seed must be from 0 to 4294967295, got {seed}")
    random = np.random.RandomState(seed)
    order = random.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    place = np.empty(len(labels), np.int64)
    place[order] = np.arange(len(labels)) % folds
    return place


def out_of_fold(
    solver: AnyPath,
    lmdb: AnyPath,
    output: AnyPath,
    *,
    model: AnyPath | None = None,
    folds: int = 5,
    seed: int = 1,
    stages: Sequence[str] | None = None,
    folder: AnyPath | None = None,
    jobs: int = 1,
    options: Sequence[str] = (),
    device: torch.device | None = None,
) -> None:
    """Train a net for each fold, and write the probabilities of the records that it was not trained on.

    model    the net; None: the solver's
    stages   of the net in phase TEST; None: those of the solver's first test net
    folder   of the runs; None: OUTPUT without its ending
    jobs     trainings at a time
    options  of `imae train` for each of them
    device   that computes the probabilities; None: the CPU

    ImaeError names the folds whose training failed, when all have ended.
    """
    target = Path(os.fspath(output))
    if target.suffix not in (".npz", ".npy"):
        raise ImaeError(f"'{target}': the output must be a .npz (all arrays) or a .npy (probabilities alone)")
    if jobs < 1:
        raise ImaeError(f"--jobs must be at least 1, got {jobs}")
    param = read_solver_dialect(solver, None)
    path = model or param.net
    if not path:
        raise DataError(f"'{solver}' has no field net; give --model NET, the train_val prototxt")
    if stages is None:
        stages = param.test_state[0].stage if param.test_state else ()
    with open_lmdb(lmdb) as source:
        keys = source.keys()
        if any(key.endswith(b"\0") for key in keys):
            raise DataError(f"'{lmdb}' has keys that end in a zero byte; an .npz cannot hold them")
        labels = np.array([source.datum(i).label for i in range(len(source))], np.int64)
        clean = read_clean_labels(source.path, keys, labels)
        runs = Folds(
            param,
            read_net_text(path),
            os.fspath(lmdb),
            tuple(stages),
            Path(folder) if folder is not None else target.with_suffix(""),
            folds_of(labels, folds, seed),
        )
        if runs.folder.resolve() == Path(os.fspath(lmdb)).resolve():
            raise DataError(f"the runs would be written into the LMDB '{lmdb}'; name another folder (--work)")
        _check_net(runs, os.fspath(path))
        _make_folder(runs.folder)
        with writing_alone(
            str(runs.folder / "folds"),
            f"another imae out-of-fold writes into '{runs.folder}'; wait for its end",
        ):
            _check_settings(runs, keys, labels, folds, seed)
            waiting = [fold for fold in range(folds) if not _prepare(runs, source, labels, fold)]
            print(f"{folds} folds, {folds - len(waiting)} of them done", flush=True)
            failed = run_all(
                waiting,
                jobs,
                lambda fold: start_training(runs.run_folder(fold), options),
                lambda fold, status: _end(runs, labels, fold, status, device or torch.device("cpu")),
                lambda fold: last_snapshot(runs.run_folder(fold)),
                param.max_iter * len(waiting),
            )
    if failed:
        raise ImaeError(
            f"{len(failed)} of {folds} folds have not ended: {', '.join(map(str, failed))}; their logs are "
            f"{runs.run_folder(failed[0]) / 'log'} and the like; the same command goes on with them"
        )
    probabilities = _gathered(runs, folds)
    predicted = probabilities.argmax(1)
    if target.suffix == ".npy":
        with atomic_file(target) as file:
            np.save(file, probabilities)
    else:
        settings = {"lmdb": runs.lmdb, "solver": os.fspath(solver), "folds": folds, "seed": seed}
        with atomic_file(target) as file:
            np.savez_compressed(
                file,
                key=np.array(keys, np.bytes_),
                labels=labels.astype(np.int32),
                pred_probs=probabilities,
                predicted=predicted.astype(np.int32),
                fold=runs.place.astype(np.int32),
                settings=np.array(json.dumps(settings)),
            )
    against = f"given labels {np.mean(predicted == labels):.4f}"
    if clean is not None:
        against += f", true labels {np.mean(predicted == clean):.4f}"
    print(
        f"wrote {target}: {len(keys)} records, {probabilities.shape[1]} classes; accuracy against {against}"
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder '{folder}': {error.strerror}") from None


def _data_layers(param: NetParameter) -> list[str]:
    return [layer.data_param.source for layer in param.layer if layer.type == "Data"]


def _check_net(runs: Folds, path: str) -> None:
    """DataError where the net does not read the LMDB to train, or has no Data layer to be tested with."""
    sources = _data_layers(runs.net)
    if all(Path(source) != Path(runs.lmdb) for source in sources):
        raise DataError(
            f"'{path}': no Data layer reads '{runs.lmdb}', so that it cannot be divided into folds; there is "
            f"{', '.join(sources) or 'none'}"
        )
    state = in_state(runs.net, TEST, NetState(stage=runs.stages))
    count = len(_data_layers(filter_by_state(state, state.state)))
    if count != 1:
        raise DataError(
            f"'{path}': in phase TEST the net must have one Data layer, which says how records are prepared "
            f"for the probabilities; it has {count} with stages {', '.join(runs.stages) or '(none)'}; see "
            "--stage"
        )


def _check_settings(runs: Folds, keys: Sequence[bytes], labels: Labels, folds: int, seed: int) -> None:
    """DataError where the folder has other folds; the settings are written where it has none."""
    digest = hashlib.sha256(b"\0".join([*keys, labels.astype("<i8").tobytes()])).hexdigest()
    settings = {"lmdb": runs.lmdb, "keys and labels, SHA-256": digest, "folds": folds, "seed": seed}
    text = json.dumps(settings | {"stages": list(runs.stages)}, indent=1) + "\n"
    path = runs.folder / "settings.json"
    if path.exists() and read_bytes(path).decode(errors="replace") != text:
        raise DataError(
            f"'{path}' is of other folds: LMDB, --folds, --seed or --stage have changed since; remove "
            f"'{runs.folder}', or name another one (--work)"
        )
    write_atomically(path, text.encode())


def _prepare(runs: Folds, source: LmdbSource, labels: Labels, fold: int) -> bool:
    """Write what a fold needs; returns whether it is done. DataError if net or solver have changed."""
    own = runs.run_folder(fold)
    _make_folder(own)
    net, solver = NetParameter(), SolverParameter()
    net.CopyFrom(runs.net)
    for layer in net.layer:
        if layer.type == "Data" and Path(layer.data_param.source) == Path(runs.lmdb):
            layer.data_param.source = str(own / "others_lmdb")
    solver.CopyFrom(runs.solver)
    for field in (*TESTS, "train_net", "net_param", "train_net_param"):
        solver.ClearField(field)
    solver.net, solver.snapshot_prefix = str(own / "net.prototxt"), str(own / "run")
    solver.snapshot = solver.snapshot or max(1, solver.max_iter // 10)
    solver.snapshot_after_train = True
    for path, text in ((own / "net.prototxt", to_text(net)), (own / "solver.prototxt", to_text(solver))):
        if path.exists() and read_bytes(path).decode(errors="replace") != text:
            raise DataError(
                f"'{path}' is of another run: net or solver have changed since; remove '{runs.folder}', or "
                "name another one (--work)"
            )
        write_atomically(path, text.encode())
    if (own / "pred_probs.npy").exists():
        return True
    for name, rows in (
        ("others_lmdb", np.flatnonzero(runs.place != fold)),
        ("left_out_lmdb", np.flatnonzero(runs.place == fold)),
    ):
        if not (own / name).exists():
            write_lmdb(own / name, chosen_records(source, rows, labels), len(rows))
    return False


def _end(runs: Folds, labels: Labels, fold: int, status: int, device: torch.device) -> bool:
    """Compute the probabilities of a fold whose training has ended."""
    own = runs.run_folder(fold)
    weights = own / f"run_iter_{runs.solver.max_iter}.caffemodel"
    if status or not weights.exists():
        lines = (own / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        tqdm.write(f"fold {fold}: exit status {status}: {''.join(lines[-1:])}")
        return False
    left_out = runs.place == fold
    probabilities = predict(runs.net, runs.stages, own / "left_out_lmdb", weights, device)
    with atomic_file(own / "pred_probs.npy") as file:
        np.save(file, probabilities)
    right = np.mean(probabilities.argmax(1) == labels[left_out])
    tqdm.write(
        f"fold {fold}: trained on {np.sum(~left_out)} records; accuracy on the other {np.sum(left_out)} "
        f"against the given labels: {right:.4f}"
    )
    return True


def predict(
    net: NetParameter, stages: Sequence[str], lmdb: AnyPath, weights: AnyPath, device: torch.device
) -> Array:
    """The probabilities (N, C) of the records of an LMDB, by a net in phase TEST with one Data layer."""
    param = in_state(net, TEST, NetState(stage=stages))
    param = filter_by_state(param, param.state)
    for layer in param.layer:
        if layer.type == "Data":
            layer.data_param.source = os.fspath(lmdb)
    built = Net(param, Run(CaffeRandom(0)))
    load_to_use(built, weights)
    scores, is_probability = _scores(built.steps)
    (data,) = (step.layer for step in built.steps if isinstance(step.layer, Data))
    data.noted_rows = rows = deque[NDArray[np.int64]]()
    execute = NetExecutor(built, device, keep=(scores,))
    probabilities: list[Array | None] = [None] * len(data.source)
    for _ in range(-(-len(probabilities) // data.batch_size)):
        execute.forward()
        blob = execute.kept[scores]
        if blob.dim() < 2 or blob.numel() != blob.shape[0] * blob.shape[1]:
            raise DataError(
                f"probabilities are for nets with one class a record, (N, C) scores; {scores} has the shape "
                f"{tuple(blob.shape)}"
            )
        blob = blob.flatten(1).double()
        values = (blob if is_probability else blob.softmax(1)).float().cpu().numpy()
        for row, value in zip(rows.popleft().tolist(), values, strict=True):
            probabilities[row] = value
    read = [value for value in probabilities if value is not None]
    if len(read) < len(probabilities):
        raise DataError(
            f"layer '{data.name}' has read {len(read)} of {len(probabilities)} records, as its order in "
            "phase TEST is random; leave data_order_param out there"
        )
    return np.stack(read)


def _scores(steps: Sequence[Step]) -> tuple[str, bool]:
    """The blob with the scores of the classes, and whether these are probabilities already."""
    step = accuracy_layer(steps) or next(
        (step for step in steps if isinstance(step.layer, LossLayer) and len(step.bottoms) > 1), None
    )
    if step is None:
        raise DataError(
            "the net has neither an Accuracy nor a loss layer in phase TEST, which say where the scores are; "
            "add an Accuracy layer, or choose the stage that has one (--stage)"
        )
    scores = step.bottoms[0]
    makers = [step.layer.type for step in steps if scores in step.tops and step.layer.type != "Split"]
    return scores, makers[-1:] == ["Softmax"]


def _gathered(runs: Folds, folds: int) -> Array:
    """The probabilities of all records in their order."""
    parts = []
    for fold in range(folds):
        path = runs.run_folder(fold) / "pred_probs.npy"
        try:
            parts.append(np.load(path, allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"cannot read '{path}': {error}; remove it, and run the command again") from None
    shapes = [(int(np.sum(runs.place == fold)), parts[0].shape[-1]) for fold in range(folds)]
    if [part.shape for part in parts] != shapes:
        raise DataError(f"'{runs.folder}' has probabilities of other records; remove it, and run again")
    probabilities = np.empty((len(runs.place), parts[0].shape[1]), np.float32)
    for fold, part in enumerate(parts):
        probabilities[runs.place == fold] = part
    return probabilities
