"""Solver states: .solverstate (a binary SolverState) and .solverstate.h5.

Both hold iter, learned_net (the model file's path as it was written), current_step and the history blobs in
Caffe's order, and Caffe reads them. In addition, `run` holds what an exact resume needs and Caffe does not
save: data positions, random generators, the window of the smoothed loss. Caffe ignores it. With lr_policy
"plateau" they also hold minimum_loss and iter_last_event, as SSD's, Intel's and NVIDIA's forks write them.

Files are written under a temporary name, synced, then renamed, so that no reader sees a partial file. A disk
or a copy can still damage them, so a file with a `run` ends with a seal: the CRC-32 of all bytes before it.
In a binary file the seal is a field that Caffe ignores; in HDF5 it comes after the bytes that the library
reads. `run` records that the file must have a seal. Earlier versions had a checksum of all other values in
`run` instead. Their files are read, with a warning, since damage in `run` is noticed only if it makes `run`
unreadable.

A snapshot is a model and a state: PREFIX_iter_N.caffemodel and PREFIX_iter_N.solverstate, in HDF5 with the
suffix .h5. The state is written last: if both exist, both are whole. h5py is imported only for such a file.

Caffe: sgd_solver.cpp, SnapshotSolverStateTo..., RestoreSolverStateFrom...
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import re
import zlib
from dataclasses import dataclass, field
from operator import index
from typing import Any

import numpy as np

from imae.files.atomic import write_atomically
from imae.files.errors import CaffemodelError, PrototxtError, SnapshotError
from imae.files.read import AnyPath, open_to_read
from imae.layers.blob import blob_from_array, exact_array_from_blob, single_or_double
from imae.prototxt import SolverState
from imae.prototxt.dialects import fork_hint, read_state_dialect
from imae.prototxt.text import parse_binary, read_content
from imae.train.from_device import Array

logger = logging.getLogger(__name__)

RUN = "imae_run"  # the dataset of `run`
SEALED = "sealed"  # in `run`: the file has a seal
CHECKSUM = "checksum"  # in `run`, by earlier versions: the CRC-32 of all other values
# Field 1001 of SolverState (see caffe.proto), 21 bytes long.
SEAL = re.compile(rb"\xca\x3e\x15imae, CRC-32 ([0-9a-f]{8})")
SEAL_SIZE = 24
LARGEST_LOSS = SolverState().minimum_loss  # where a state has none


@dataclass
class State:
    """The content of a solver state file.

    history   float32 or float64 arrays, one or two per learnable parameter
    minimum_loss, last_event   of lr_policy: "plateau" (lr_policy.py); where a file lacks them, SSD's defaults
    run       for an exact resume: nested dicts and lists of numbers, strings, bytes and arrays; empty where
              Caffe wrote the file
    sealed    whether the file had a seal
    """

    iteration: int
    learned_net: str
    current_step: int
    history: list[Array]
    run: dict[str, Any] = field(default_factory=dict)
    sealed: bool = False
    minimum_loss: float = LARGEST_LOSS
    last_event: int = 0


def write_state(state: State, path: AnyPath) -> None:
    """Write a state, as HDF5 if the path ends in .h5; FileError where it cannot be written."""
    data = _to_hdf5(state) if _is_hdf5(path) else _to_binary(state)
    write_atomically(path, seal(data) if state.run else data)


def read_state(path: AnyPath, dialect: str | None = None) -> State:
    """Read a state; SnapshotError where the file is missing, damaged or no solver state.

    dialect   the fork that wrote it, one of prototxt.dialects.DIALECTS; None: Caffe, or this program
    """
    if dialect and _is_hdf5(path):
        raise SnapshotError(f"{path}: dialects are of binary files, this is HDF5; leave out --dialect")
    try:
        data = read_content(path)
    except PrototxtError as error:
        raise SnapshotError(str(error)) from None
    checksum = SEAL.fullmatch(data[-SEAL_SIZE:])
    whole = checksum is not None and int(checksum[1], 16) == zlib.crc32(memoryview(data)[:-SEAL_SIZE])
    if checksum and not whole:
        raise SnapshotError(f"{path}: damaged: its checksum is not that of its content")
    content = data[:-SEAL_SIZE] if whole else data
    state = _from_hdf5(path) if _is_hdf5(path) else _from_binary(path, content, dialect)
    state.sealed = whole
    if not state.run or whole:
        state.run.pop(SEALED, None)
    elif SEALED in state.run:
        raise SnapshotError(f"{path}: damaged: its checksum is gone: it was cut, or another program wrote it")
    elif state.run.pop(CHECKSUM, None) != _checksum(state):
        raise SnapshotError(f"{path}: damaged: its checksum is not that of its content")
    else:
        logger.warning("%s is of an earlier version, whose checksum leaves out how the run stood", path)
    return state


def seal(data: bytes) -> bytes:
    """The bytes of a solver state, followed by their seal."""
    return data + b"\xca\x3e\x15imae, CRC-32 %08x" % zlib.crc32(data)


def file_checksum(path: AnyPath) -> int:
    """The CRC-32 of a file's content; OSError where it cannot be read."""
    checksum = 0
    with open_to_read(path) as file:
        while chunk := file.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _is_hdf5(path: AnyPath) -> bool:
    return os.fspath(path).endswith(".h5")


def _to_binary(state: State) -> bytes:
    message = SolverState(
        iter=state.iteration,
        learned_net=state.learned_net,
        current_step=state.current_step,
        history=[blob_from_array(values) for values in state.history],
    )
    if (state.minimum_loss, state.last_event) != (LARGEST_LOSS, 0):
        message.minimum_loss, message.iter_last_event = state.minimum_loss, state.last_event
    # `run` first: a truncated file still has it, so that the missing seal is noticed.
    run = SolverState(imae_run=_pack_run(state)).SerializeToString() if state.run else b""
    return run + message.SerializeToString()


def _from_binary(path: AnyPath, data: bytes, dialect: str | None) -> State:
    try:
        message = (
            read_state_dialect(path, dialect, data) if dialect else parse_binary(data, SolverState, path)
        )
        history = [exact_array_from_blob(blob) for blob in message.history]
    except PrototxtError as error:
        raise SnapshotError(str(error)) from None
    except CaffemodelError as error:
        raise SnapshotError(f"{path}: history: {error}{fork_hint(message.history)}") from None
    run = unpack(message.imae_run, path)
    return State(
        message.iter, message.learned_net, message.current_step, history, run,
        minimum_loss=message.minimum_loss, last_event=message.iter_last_event,
    )  # fmt: skip


def _to_hdf5(state: State) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["iter"] = np.array([state.iteration], np.int32)
        name = state.learned_net.encode()
        file["learned_net"] = np.array(name, f"S{len(name) + 1}")  # Caffe reads up to the zero byte
        file["current_step"] = np.array([state.current_step], np.int32)
        if (state.minimum_loss, state.last_event) != (LARGEST_LOSS, 0):
            file["minimum_loss"] = np.array([state.minimum_loss], np.float32)
            file["iter_last_event"] = np.array([state.last_event], np.int32)
        history = file.create_group("history")
        for index, values in enumerate(state.history):
            history[str(index)] = values
        if state.run:
            file[RUN] = np.frombuffer(_pack_run(state), np.uint8)
    return buffer.getvalue()


def _from_hdf5(path: AnyPath) -> State:
    from imae.files.hdf5_file import HDF5_ERRORS, TEXT, hdf5_content, open_hdf5

    try:
        with open_hdf5(path) as data_sets:
            read, names, count = data_sets.read, data_sets.names(""), len(data_sets.names("history"))
            name = bytes(read("learned_net", TEXT)[()]) if "learned_net" in names else b""
            return State(
                index(read("iter")[0]),
                name.rstrip(b"\0").decode(),
                index(read("current_step")[0]),
                [single_or_double(read(f"history/{place}")) for place in range(count)],
                unpack(read(RUN).tobytes(), path) if RUN in names else {},
                minimum_loss=float(read("minimum_loss")[0]) if "minimum_loss" in names else LARGEST_LOSS,
                last_event=index(read("iter_last_event")[0]) if "iter_last_event" in names else 0,
            )
    except HDF5_ERRORS as error:
        if not os.path.isfile(path):
            raise SnapshotError(f"{path}: no such file") from None
        holds = hdf5_content(path, expected="a solver state")
        raise SnapshotError(
            f"{path}: not a solver state in HDF5{holds or f', or damaged: {error}'}"
        ) from None


def _checksum(state: State) -> int:
    """The CRC-32 of all values except `run`, as earlier versions computed it."""
    checksum = zlib.crc32(f"{state.iteration} {state.current_step} {state.learned_net}".encode())
    for values in state.history:
        checksum = zlib.crc32(single_or_double(values).tobytes(), checksum)
    return checksum


def _pack_run(state: State) -> bytes:
    return pack({SEALED: True, **state.run})


def pack(tree: dict[str, Any]) -> bytes:
    """Nested dicts and lists of numbers, strings, bytes and arrays as JSON."""
    return json.dumps(tree, default=_pack_leaf).encode()


def _pack_leaf(leaf: Any) -> dict[str, Any]:
    if isinstance(leaf, bytes):
        return {"bytes": base64.b64encode(leaf).decode()}
    if isinstance(leaf, np.generic):
        leaf = np.asarray(leaf)
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf":
        values = base64.b64encode(np.ascontiguousarray(leaf).tobytes()).decode()
        return {"array": values, "dtype": leaf.dtype.str, "shape": leaf.shape}
    raise TypeError(f"a run's state is made of numbers, strings, bytes and arrays; got {type(leaf).__name__}")


def unpack(data: bytes, path: AnyPath) -> dict[str, Any]:
    """Undo `pack`; a SnapshotError for damaged data names `path`."""
    if not data:
        return {}
    try:
        tree = json.loads(data, object_hook=_unpack_leaf)
    except (ValueError, TypeError, RecursionError) as error:
        raise SnapshotError(f"{path}: the state of the run in it is damaged: {error}") from None
    if not isinstance(tree, dict):
        raise SnapshotError(f"{path}: the state of the run in it is damaged: it is not a JSON object")
    for name in ("finite", "model", CHECKSUM):
        if not isinstance(tree.get(name, 0), int):
            raise SnapshotError(f"{path}: the state of the run in it is damaged: {name} is {tree[name]!r}")
    return tree


def _unpack_leaf(leaf: dict[str, Any]) -> Any:
    if leaf.keys() == {"bytes"}:
        return base64.b64decode(leaf["bytes"])
    if leaf.keys() == {"array", "dtype", "shape"}:
        if not re.fullmatch(r"[<>|][biuf]\d{1,2}", str(leaf["dtype"])):
            raise ValueError(f"an array of type {leaf['dtype']!r}")
        values = np.frombuffer(base64.b64decode(leaf["array"]), np.dtype(leaf["dtype"]))
        return values.reshape(leaf["shape"]).copy()
    return leaf
