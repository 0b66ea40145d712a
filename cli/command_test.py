"""`imae test`: score a model as `caffe test` does.

    imae test --model train_val.prototxt --weights w.caffemodel --iterations 100

The rows of a DetectionEvaluate layer (SSD's) have no mean; their mean average precision is logged, as by a
solver that has eval_type: "detection".

    imae test --model train_val.prototxt --stage train --weights w.caffemodel \\
        --clean-labels train_noisy40_lmdb.clean_labels.npz

With --clean-labels, of a net whose Data layer reads an LMDB of `imae corrupt-labels`, the accuracy is also
printed for the intact and for the corrupted records, against the given and against the true labels.

Caffe: tools/caffe.cpp, test().
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from typing import Any

from imae.cli.device_options import (
    add_data_cache_option,
    add_double_option,
    add_gpu_option,
    add_threads_option,
    chosen_data_resources,
    chosen_dtype,
    requested_gpu,
)
from imae.cli.options import add_net_options, chosen_net
from imae.files.atomic import write_atomically
from imae.files.caffe_log import log_line
from imae.files.errors import ImaeError
from imae.files.file_kinds import FileKind, mistaken_file
from imae.net.device_log import TEST_DEVICE_LOG
from imae.prototxt.dialects import read_solver_dialect
from imae.train.detection_evaluation import AP_VERSIONS, DetectionEvaluation, log_precisions

BATCHES = 50  # that are run if nothing is said, as by Caffe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--model", metavar="NET", help="the net's prototxt")
    parser.add_argument("file", nargs="?", metavar="NET", help="the net, without --model")
    parser.add_argument("--weights", metavar="W", help="its .caffemodel")
    parser.add_argument("--solver", help="refused, as a test needs a net; the error says which")
    parser.add_argument(
        "--iterations",
        type=int,
        metavar="N",
        help="batches to run (50; with --clean-labels as many as have all records)",
    )
    add_gpu_option(parser)
    add_net_options(parser, "TEST")
    add_double_option(parser)
    add_data_cache_option(parser)
    add_threads_option(parser, "threads to compute with on the CPU, and to decode images with")
    parser.add_argument(
        "--ap-version",
        choices=AP_VERSIONS,
        default=AP_VERSIONS[-1],
        help=f"average precision of detections: as the solver's field ap_version ({AP_VERSIONS[-1]})",
    )
    parser.add_argument("--per-class", action="store_true", help="log the average precision of each class")
    parser.add_argument(
        "--clean-labels",
        metavar="FILE",
        help="the .npz that imae corrupt-labels wrote beside the LMDB that the net reads: print the accuracy "
        "on intact and on corrupted records, against given and true labels",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the means, and that table, as JSON; - for the standard output"
    )


def run(args: argparse.Namespace) -> None:
    """Log the outputs of each batch, then their means."""
    from imae.converters.net_on_noisy_labels import NetOnNoisyLabels
    from imae.layers.run import Run
    from imae.net.device import choose_device, keep_freed_memory, set_threads
    from imae.net.net import Net
    from imae.net.score import score
    from imae.net.weights import load_to_use

    if args.model and args.file:
        raise ImaeError(f"two nets are given: {args.file} and --model {args.model}; give one")
    model = args.model or args.file
    if args.solver or (model and mistaken_file(model).endswith(FileKind.SOLVER_TEXT.value)):
        raise ImaeError(_not_a_solver(args.solver or model, args.dialect))
    if not model:
        raise ImaeError("Need a model definition to score: --model NET")
    if not args.weights:
        raise ImaeError("Need model weights to score: --weights W")
    if args.iterations is not None and args.iterations < 1:
        raise ImaeError(f"--iterations must be at least 1, got {args.iterations}")
    set_threads(args.threads)
    keep_freed_memory()
    device = choose_device(requested_gpu(args.gpu), TEST_DEVICE_LOG)
    resources = chosen_data_resources(args)
    net = Net(chosen_net(model, args), Run(data_resources=resources, dtype=chosen_dtype(args)))
    load_to_use(net, args.weights, args.dialect)
    rows = [top for step in net.steps if step.layer.type == "DetectionEvaluate" for top in step.tops]
    detections = DetectionEvaluation()
    noisy = NetOnNoisyLabels(net, args.clean_labels) if args.clean_labels else None
    iterations = args.iterations or (BATCHES if noisy is None else noisy.batches)
    means = score(
        net,
        device,
        iterations,
        detections,
        [top for top in rows if top in net.outputs],
        keep=() if noisy is None else noisy.keep,
        on_batch=None if noisy is None else noisy.add,
    )
    log_precisions(_log_precision, detections, args.ap_version, args.per_class)
    if noisy is not None:
        for line in noisy.accuracy.lines():
            # What programs read on the standard output has nothing beside it.
            print(line, file=sys.stderr if args.json == "-" else sys.stdout)
    if args.json:
        outputs = {name: _finite(values.tolist()) for name, values in means.items()}
        result = {"iterations": iterations, "outputs": outputs}
        if noisy is not None:
            result |= noisy.accuracy.json()
        text = json.dumps(result, indent=1) + "\n"
        if args.json == "-":
            print(text, end="")
        else:
            write_atomically(args.json, text.encode())


def _finite(values: Any) -> Any:
    """Nested lists of numbers with None, JSON's null, for those that JSON lacks."""
    if isinstance(values, list):
        return list(map(_finite, values))
    return values if math.isfinite(values) else None


def _log_precision(place: str, message: str) -> None:
    """Log a line of a solver's test as one of `caffe test`."""
    log_line("caffe.cpp:321", re.sub(r"^ *Test net output #\d+: ", "", message))


def _not_a_solver(path: str, dialect: str | None) -> str:
    """What to give in place of a solver."""
    param = read_solver_dialect(path, dialect)
    net = next(iter((*param.test_net, param.net, param.train_net)), "") or "NET"
    return f"{path} is a solver; a test needs its net: imae test --model {net} --weights W"
