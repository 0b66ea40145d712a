"""Caffe's extract_features: write blobs of a net, batch after batch, as records of LMDBs.

    imae extract-features w.caffemodel net.prototxt fc7,prob fc7_lmdb,prob_lmdb 100 lmdb

The net runs in phase TEST. Each item of a batch becomes a Datum without a label whose float_data holds the
item's values. Its key is its index, as a number of ten digits.

Caffe: tools/extract_features.cpp. Differs: the LMDBs appear only when all batches are done; a net with an
input that no layer fills is refused.
"""

from __future__ import annotations

import argparse
import logging
import re

from imae.cli.options import add_dialect_option, add_strict_option
from imae.files.errors import DataError, DeviceError
from imae.net.device_log import DeviceLog, GpuRequest
from imae.prototxt import TEST, NetState
from imae.prototxt.dialects import read_net_text
from imae.prototxt.state import in_state

DEVICE_LOG = DeviceLog(
    cpu=("extract_features.cpp:62", "Using CPU"),
    gpus=[("extract_features.cpp:52", "Using GPU"), ("extract_features.cpp:58", "Using Device_id={ids}")],
    level=logging.ERROR,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
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
    """Load the net and write the LMDBs."""
    from imae.converters.extract_features import extract_features
    from imae.net.device import choose_device, keep_freed_memory
    from imae.net.net import Net
    from imae.net.weights import load_to_use

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
    found = re.fullmatch(r"(?:DEVICE_ID=)?(\d{1,9})", args.device)
    if not found:
        raise DeviceError(f"DEVICE_ID must be the number of a GPU, got '{args.device}'")
    request = GpuRequest(found[1], f"GPU {found[1]}", "say CPU") if args.mode == "GPU" else None
    device = choose_device(request, DEVICE_LOG)
    keep_freed_memory()
    text = read_net_text(args.net, args.dialect, [args.weights])
    net = Net(in_state(text, TEST, NetState(phase=TEST)))
    load_to_use(net, args.weights, args.dialect)
    extract_features(net, names, paths, args.batches, device)
