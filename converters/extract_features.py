"""Caffe's extract_features: blobs of a net, batch after batch, as records of LMDBs.

    imae extract-features w.caffemodel net.prototxt fc7,prob fc7_lmdb,prob_lmdb 100 lmdb

The net runs in phase TEST. Each item of a batch is a Datum without a label whose float_data are the item's
numbers, under its place as a number of ten digits.

Caffe: tools/extract_features.cpp. Differs: the LMDBs appear only when all is done; a net whose input nobody
gives is refused.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from imae.cli.options import add_dialect_option, add_strict_option
from imae.converters.lmdb_writer import BATCH, Record, open_new_lmdb, put_records
from imae.files.atomic import atomic_folder
from imae.files.caffe_log import log_line
from imae.files.errors import DataError, DeviceError
from imae.files.read import AnyPath
from imae.net.net import Net
from imae.net.weights import load_to_use
from imae.prototxt import TEST, Datum, NetState
from imae.prototxt.dialects import read_net_text
from imae.prototxt.state import in_state

COMMAND = "extract-features"
HELP = "blobs of a net, for each record of its data layer, to LMDBs"


def extract_features(
    net: Net, names: Sequence[str], paths: Sequence[AnyPath], batches: int, device: torch.device | None = None
) -> int:
    """Run so many batches, write each blob named to the new LMDB beside it; returns the number of records.

    DataError for a blob that the net lacks or that has more than 4 axes; no LMDB is there then.
    """
    device = device or torch.device("cpu")
    for name in names:
        if name not in net.blob_shapes:
            raise DataError(
                f"Unknown feature blob name {name} in the network {net.name}; known: "
                f"{', '.join(net.blob_shapes)}"
            )
    net.to(device)
    counts = dict.fromkeys(names, 0)
    waiting: dict[str, list[Record]] = {name: [] for name in names}
    with ExitStack() as stack:
        environments = {}
        for name, path in zip(names, paths, strict=True):
            log_line("extract_features.cpp:125", f"Opening dataset {path}")
            environments[name] = stack.enter_context(
                open_new_lmdb(stack.enter_context(atomic_folder(path)), path)
            )
        log_line("extract_features.cpp:133", "Extracting Features", logging.ERROR)
        for _ in tqdm(range(batches), unit=" batches", disable=None):
            with torch.no_grad():
                inputs = {name: blob.to(device) for name, blob in net.next_batch().items()}
                blobs = net.forward(inputs, keep=names)
            for name, path in zip(names, paths, strict=True):
                for datum in blob_datums(blobs[name].cpu().numpy(), name):
                    waiting[name].append((b"%010d" % counts[name], datum))
                    counts[name] += 1
                    if len(waiting[name]) == BATCH:
                        put_records(environments[name], waiting[name], path)
                        waiting[name] = []
                        log_line("extract_features.cpp:165", _progress(name, counts[name]), logging.ERROR)
        for name, path in zip(names, paths, strict=True):
            put_records(environments[name], waiting[name], path)
            log_line("extract_features.cpp:176", _progress(name, counts[name]), logging.ERROR)
    log_line("extract_features.cpp:181", "Successfully extracted the features!", logging.ERROR)
    return max(counts.values())


def blob_datums(blob: NDArray[np.float32], name: str) -> Iterator[Datum]:
    """A Datum for each item of a blob; axes that it lacks have the size 1."""
    if blob.ndim > 4:
        raise DataError(
            f"blob {name}: Cannot use legacy accessors on Blobs with > 4 axes.; a Datum has 3 beside the "
            f"batch's, got shape {blob.shape}"
        )
    items, channels, height, width = [*blob.shape, 1, 1, 1, 1][:4]
    for item in blob.reshape(items, -1):
        yield Datum(channels=channels, height=height, width=width, float_data=item)


def _progress(name: str, count: int) -> str:
    return f"Extracted features of {count} query images for feature blob {name}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help=".caffemodel")
    parser.add_argument("net", metavar="NET", help="prototxt of a net with a data layer")
    parser.add_argument("blobs", metavar="BLOB[,BLOB]", help="names of the blobs to extract")
    parser.add_argument("databases", metavar="DB[,DB]", help="an LMDB to write for each blob")
    parser.add_argument("batches", type=int, metavar="NUM_MINI_BATCHES", help="how many batches to run")
    parser.add_argument("db_type", metavar="DB_TYPE", choices=["lmdb"], help="lmdb")
    parser.add_argument(
        "mode",
        metavar="CPU/GPU",
        nargs="?",
        choices=["CPU", "GPU"],
        default="CPU",
        help="where to compute (CPU)",
    )
    parser.add_argument("device", metavar="DEVICE_ID", nargs="?", default="0", help="the GPU (0)")
    add_dialect_option(parser)
    add_strict_option(parser)


def run(args: argparse.Namespace) -> None:
    names, paths = args.blobs.split(","), args.databases.split(",")
    if len(names) != len(paths):
        raise DataError(
            f"the number of blob names and dataset names must be equal; got {len(names)} and {len(paths)}"
        )
    for what, values in (("blob", names), ("database", paths)):
        if len(set(values)) < len(values):
            raise DataError(f"a {what} is named twice: {','.join(values)}")
    if args.batches < 1:
        raise DataError(f"NUM_MINI_BATCHES must be at least 1, got {args.batches}")
    device = _device(args.mode, args.device)
    text = read_net_text(args.net, args.dialect, [args.weights])
    net = Net(in_state(text, TEST, NetState(phase=TEST)))
    load_to_use(net, args.weights, args.dialect)
    extract_features(net, names, paths, args.batches, device)


def _device(mode: str, given: str) -> torch.device:
    found = re.fullmatch(r"(?:DEVICE_ID=)?(\d{1,9})", given)
    if not found:
        raise DeviceError(f"DEVICE_ID must be the number of a GPU, got '{given}'")
    if mode == "CPU":
        log_line("extract_features.cpp:62", "Using CPU", logging.ERROR)
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(found[1]) >= count:
        raise DeviceError(
            f"GPU {found[1]}: {count} CUDA devices are available here; say CPU to compute there"
        )
    log_line("extract_features.cpp:52", "Using GPU", logging.ERROR)
    log_line("extract_features.cpp:58", f"Using Device_id={found[1]}", logging.ERROR)
    return torch.device("cuda", int(found[1]))
