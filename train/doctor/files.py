"""Files that are no prototxts: weights, solver states, means, HDF5, databases, lists."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path

import h5py

from imae.files.errors import ImaeError
from imae.files.file_kinds import FileKind, mistaken_file
from imae.files.hdf5_file import HDF5_ERRORS, hdf5_content, is_hdf5, open_hdf5
from imae.files.limits import LARGEST_TEXT, bytes_text
from imae.files.read import open_to_read
from imae.layers.data.lmdb_source import open_lmdb
from imae.prototxt import TEST  # noqa: F401  # the schema, before its messages
from imae.prototxt.caffe_pb2 import LabelMap
from imae.prototxt.outline import BlobOutline, StateOutline, blob_outline, net_outline, state_outline
from imae.prototxt.text import read_text
from imae.train.doctor.row import FILE, NO, PROJECT, YES, Row, is_there, place_of

MOST_LOOKED_FOR = 100  # files of a list


# Layer name -> shapes of its blobs; True where they are padded with leading 1s.
Blobs = dict[str, list[tuple[tuple[int, ...], bool]]]


def examine_weights(file: Path) -> tuple[Row, Blobs]:
    """The row of a caffemodel, binary or HDF5, and the shapes in it."""
    row = Row(str(file), "weights")
    try:
        if is_hdf5(file):
            blobs = _hdf5_blobs(file)
        else:
            if mistaken := mistaken_file(file, FileKind.NET):
                return _mistaken(row, mistaken), {}
            blobs = _binary_blobs(file, row)
    except (ImaeError, *HDF5_ERRORS) as error:
        return _mistaken(row, hdf5_content(file, "weights") or f"; {error}"), {}
    if not blobs:
        return _mistaken(row, "; it has no blobs"), {}
    row.reads = NO if row.stops else YES
    count = sum(math.prod(shape) for shapes in blobs.values() for shape, _ in shapes)
    row.facts.append(f"{count:,} numbers in {len(blobs)} layers, {bytes_text(file.stat().st_size)}")
    return row, blobs


def _mistaken(row: Row, reason: str) -> Row:
    text, _, remedy = reason.removeprefix("; ").partition(": ")
    row.reads = NO
    if reason.startswith("; it is ") and remedy:
        row.stop(text, FILE, remedy)
    else:
        row.stop(reason.removeprefix("; "), FILE, "fetch it again")
    return row


def _binary_blobs(file: Path, row: Row) -> Blobs:
    outline = net_outline(file)
    blobs: Blobs = {}
    raw = False
    for layer in outline.layers:
        for index, blob in enumerate(layer.blobs):
            raw |= blob.raw
            if not blob.is_whole:
                row.stop(
                    f"layer {layer.name!r}, blob {index}: {blob.count} numbers for the shape {blob.shape}",
                    FILE,
                    "fetch it again; if a fork wrote it, see --dialect",
                )
        if layer.blobs:
            blobs.setdefault(layer.name, [(blob.shape, blob.legacy) for blob in layer.blobs])
    if raw:
        row.facts.append("its numbers are in NVIDIA Caffe's fields, or OpenCV's: give --dialect nvidia")
    return blobs


def _hdf5_blobs(file: Path) -> Blobs:
    with open_hdf5(file) as sets:
        return {
            name: [
                (tuple(sets.find(f"data/{name}/{index}").shape), False) for index in sorted(indices, key=int)
            ]
            for name, indices in sets.walk("data")
            if indices
        }


def examine_state(file: Path, root: Path) -> Row:
    """The row of a solver state."""
    row = Row(str(file), "solver state")
    try:
        if is_hdf5(file):
            with open_hdf5(file) as sets:
                iteration, history = int(sets.read("iter")[0]), len(sets.names("history"))
                learned_net = ""
        else:
            if mistaken := mistaken_file(file, FileKind.STATE):
                return _mistaken(row, mistaken)
            outline = state_outline(file)
            iteration, history, learned_net = outline.iteration, len(outline.history), outline.learned_net
            if outline == StateOutline():
                return _mistaken(row, "; nothing of a solver state is in it")
            if not all(blob.is_whole for blob in outline.history):
                return _mistaken(row, "; a history blob has not as many numbers as its shape")
    except (ImaeError, *HDF5_ERRORS) as error:
        return _mistaken(row, hdf5_content(file, "a solver state") or f"; {error}")
    row.reads = YES
    row.facts.append(f"iteration {iteration}, {history} history blobs")
    if learned_net:
        beside = file.parent / os.path.basename(learned_net)
        if not (is_there(learned_net) or place_of(learned_net, file, root) or beside.exists()):
            row.stop(
                f"its model {learned_net!r} is not there", PROJECT, "fetch it, to resume from this state"
            )
    return row


def examine_mean(file: Path) -> Row:
    """The row of a binaryproto."""
    row = Row(str(file), "mean")
    try:
        if mistaken := mistaken_file(file, FileKind.BLOB):
            return _mistaken(row, mistaken)
        blob: BlobOutline = blob_outline(file)
    except (ImaeError, OSError) as error:
        return _mistaken(row, f"; {error}")
    shape = "x".join(map(str, blob.shape))
    if not blob.is_whole:
        return _mistaken(row, f"; {blob.count} numbers for the shape {shape}")
    row.reads = YES
    row.facts.append(f"a blob of {shape}")
    if len(blob.shape) != 4 or blob.shape[0] != 1:
        row.stop(
            f"a mean has the shape 1xCxHxW, this is {shape}",
            FILE,
            "compute it again: imae compute-image-mean",
        )
    return row


def examine_hdf5(file: Path) -> Row:
    """The row of an HDF5 file that is not named as weights."""
    row = Row(str(file), "HDF5")
    try:
        if not is_hdf5(file):
            return _mistaken(row, mistaken_file(file, FileKind.HDF5) or "; it is not HDF5")
        with open_hdf5(file) as sets:
            names = sets.names("")
            shapes = []
            for name in names[:8]:
                node = sets.find(name)
                if isinstance(node, h5py.Dataset):
                    shapes.append(f"{name} {'x'.join(map(str, node.shape or ()))}")
    except HDF5_ERRORS as error:
        return _mistaken(row, f"; {error}")
    row.reads = YES
    row.facts.append(f"data sets {', '.join(shapes)}" if shapes else f"groups {', '.join(names[:8])}")
    return row


def examine_lmdb(folder: Path) -> Row:
    """The row of an LMDB."""
    row = Row(str(folder), "LMDB")
    try:
        with open_lmdb(folder) as source:
            row.facts.append(f"{len(source)} records")
            datum = source.datum(0)
    except ImaeError as error:
        row.reads = NO
        row.stop_error(error, FILE, "make or copy it again")
        return row
    row.reads = YES
    encoded = ", encoded images" if datum.encoded else ""
    row.facts.append(
        f"the first is {datum.channels}x{datum.height}x{datum.width}{encoded}, label {datum.label}"
    )
    return row


def examine_leveldb(folder: Path) -> Row:
    """The row of a LevelDB, which is not opened, as LevelDB would write into it."""
    row = Row(str(folder), "LevelDB")
    if importlib.util.find_spec("plyvel") is None:
        row.reads = NO
        row.stop("reading it needs the package plyvel", "imae", "pip install 'imae[leveldb]'")
    try:
        with open_to_read(folder / "CURRENT") as opened:
            current = opened.read(100).decode(errors="replace").strip()
    except OSError as error:
        row.reads = NO
        row.stop(f"its file CURRENT cannot be read: {error.strerror}", FILE, "make or copy it again")
        return row
    if "/" in current or "\0" in current or not os.path.isfile(folder / current):
        row.reads = NO
        row.stop(f"its list of files, {current!r}, is not there", FILE, "make or copy it again")
    row.facts.append("not opened: LevelDB writes into a database that it opens")
    return row


def examine_label_map(file: Path) -> Row:
    """The row of SSD's label map."""
    row = Row(str(file), "label map")
    try:
        labels = read_text(file, LabelMap)
    except ImaeError as error:
        row.reads = NO
        row.stop_error(error)
        return row
    row.reads = YES
    row.facts.append(f"{len(labels.item)} labels")
    return row


def examine_list(file: Path, root: Path) -> Row:
    """The row of a list of images or HDF5 files: how many lines, and whether the first files are there."""
    row = Row(str(file), "list")
    with open_to_read(file) as opened:
        text = opened.read(LARGEST_TEXT)
        whole = not opened.read(1)
    lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
    paths = [_path_of(line) for line in lines[:MOST_LOOKED_FOR]]
    there = sum(is_there(path) or bool(place_of(path, file, root)) for path in paths)
    row.reads = YES
    row.facts.append(f"{len(lines)}{'' if whole else ' or more'} lines")
    row.facts.append(
        f"{there} of the first {len(paths)} files are there (a layer's root_folder may come before them)"
    )
    return row


def _path_of(line: str) -> str:
    """The path of a line: all but the label after it, if there is one."""
    path, _, label = line.strip().rpartition(" ")
    return path if path and label.lstrip("-").isdigit() else line.strip()
