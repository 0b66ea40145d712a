"""`imae train`: train a solver as `caffe train` does.

    imae train solver.prototxt
    imae train solver.prototxt --weights pretrained.caffemodel
    imae train solver.prototxt --resume auto --keep 3

Relative paths of a prototxt begin in the working directory, as in Caffe. The log on stderr has Caffe's form.
Snapshots are Caffe's: NAME_iter_N.caffemodel and NAME_iter_N.solverstate. Ctrl-C writes a snapshot and stops;
a run that is resumed ends with the bits of one that was not stopped.

Caffe: tools/caffe.cpp, train().
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from imae.cli.device_options import (
    add_data_cache_option,
    add_double_option,
    add_launch_options,
    add_precision_option,
    add_threads_option,
    chosen_compiled,
    chosen_data_resources,
    chosen_dtype,
    chosen_recorder,
    requested_gpu,
)
from imae.cli.options import add_dialect_option, add_strict_option, level
from imae.files.caffe_log import log_line
from imae.files.errors import CaffemodelError, ImaeError, PrototxtError, SnapshotError, check_utf8
from imae.net.device_log import DeviceLog, GpuRequest
from imae.prototxt import SolverParameter
from imae.prototxt.dialects import read_solver_dialect
from imae.prototxt.leftovers import report_leftovers
from imae.train.progress import training_bar
from imae.train.signals import SignalRequests, action
from imae.train.snapshot_lock import writing_alone

if TYPE_CHECKING:
    import torch

    from imae.layers.ranks import Ranks

logger = logging.getLogger(__name__)

DEVICE_LOG = DeviceLog(
    cpu=("caffe.cpp:197", "Use CPU."),
    gpus=[("caffe.cpp:204", "Using GPUs {ids}")],
    gpu=[("caffe.cpp:209", "GPU {id}: {name}")],
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("file", nargs="?", metavar="SOLVER", help="the solver's prototxt")
    parser.add_argument("--solver", metavar="SOLVER", help="the same, as Caffe spells it")
    parser.add_argument("--snapshot", metavar="STATE", help="the .solverstate to resume from")
    parser.add_argument(
        "--resume-as-caffe",
        action="store_true",
        help="when resuming: start with the first record and the first random number, as Caffe does, "
        "instead of continuing exactly where the snapshot was taken",
    )
    parser.add_argument(
        "--resume",
        choices=["auto"],
        help="auto: resume from the newest whole snapshot under snapshot_prefix; if there is none, start "
        "from scratch or from --weights",
    )
    parser.add_argument(
        "--keep",
        type=int,
        default=0,
        metavar="N",
        help="remove all but the newest N snapshots, and the last one after which a finite loss was shown "
        "(keep all)",
    )
    parser.add_argument(
        "--on-nan",
        choices=["stop", "continue"],
        default="stop",
        help="what to do about a loss that is NaN or infinite: stop (default), or continue as Caffe does",
    )
    parser.add_argument("--weights", metavar="W[,W]", help="the .caffemodel(s) to start from")
    add_dialect_option(parser)
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument(
        "--gpu",
        nargs="?",
        const="0",
        metavar="ID[,ID]",
        help="compute on this GPU, or on several or `all`: one process per GPU, each with batches of its "
        "own; under torchrun each rank uses its own GPU",
    )
    devices.add_argument(
        "--cpu", action="store_true", help="compute on the CPU, also where the solver says solver_mode: GPU"
    )
    parser.add_argument("--level", type=level, help="the train net's level (0)")
    parser.add_argument("--stage", default="", metavar="S[,S]", help="the train net's stages")
    for name, default in (("sigint", "stop"), ("sighup", "snapshot")):
        parser.add_argument(
            f"--{name}_effect", default=default, metavar="EFFECT", help=f"stop, snapshot or none ({default})"
        )
    parser.add_argument(
        "--plain", action="store_true", help="run the layers one by one, none of them fused, as a reference"
    )
    parser.add_argument(
        "--gpu-dropout",
        choices=["caffe", "device"],
        default="device",
        help="on a GPU: draw dropout masks (and the pixels of stochastic pooling) from Caffe's random "
        "stream, or let the device draw its own, which is faster (device)",
    )
    parser.add_argument(
        "--no-progress",
        action="store_true",
        help="on a terminal: no line below the log with iterations, loss and time left",
    )
    add_strict_option(parser)
    add_double_option(parser)
    add_precision_option(parser)
    add_launch_options(parser)
    add_data_cache_option(parser)
    add_threads_option(
        parser,
        "threads to compute with on the CPU (all cores, shared by the ranks), and to decode images with",
    )


def run(args: argparse.Namespace) -> int:
    """Train to the end, or until a signal stops it; the exit status, on several GPUs that of the ranks."""
    from imae.net.device import gpus
    from imae.train.launched_ranks import is_launched, join_ranks, spawn

    request = requested_gpu(args.gpu)
    if not is_launched() and request is not None and ("," in request.wanted or request.wanted == "all"):
        count = len(gpus(*request))
        if count > 1:
            return spawn(count, args.command_line)
    with join_ranks() as ranks:
        try:
            _train(args, ranks)
        except (CaffemodelError, SnapshotError) as error:
            if other := _other_option(args):
                raise type(error)(f"{error}; {other}") from error
            raise
    return 0


def _other_option(args: argparse.Namespace) -> str:
    """The remedy where --snapshot names weights, or --weights a solver state; "" otherwise."""
    from imae.files.file_kinds import FileKind
    from imae.files.hdf5_file import hdf5_content

    weights = (f"; it is {FileKind.NET.value}", "; it holds weights")
    states = (f"; it is {FileKind.STATE.value}", "; it holds a solver state")
    if args.snapshot and hdf5_content(args.snapshot, expected="a solver state") in weights:
        return f"to start from these weights: --weights {shlex.quote(args.snapshot)}"
    for path in filter(None, (args.weights or "").split(",")):
        if hdf5_content(path, expected="weights") in states:
            return f"to go on from this state: --snapshot {shlex.quote(path)}"
    return ""


def _train(args: argparse.Namespace, ranks: Ranks) -> None:
    import torch

    from imae.net import kernels
    from imae.net.device import keep_freed_memory, set_precision, set_threads
    from imae.train.next_steps import next_steps
    from imae.train.options import Options
    from imae.train.solver import Solver

    if args.file and args.solver and args.file != args.solver:
        raise ImaeError(f"Two solvers are given: {args.file} and --solver {args.solver}; give one")
    path = args.file or args.solver
    if not path:
        raise ImaeError("Need a solver definition to train: imae train SOLVER")
    if args.snapshot and args.weights:
        raise ImaeError("Give a snapshot to resume training or weights to finetune but not both.")
    if args.snapshot and args.resume:
        raise ImaeError("--snapshot names the state to resume from, --resume auto looks for it; give one")
    if args.keep < 0:
        raise ImaeError(f"--keep must be at least 0 (keep all), got {args.keep}")
    set_threads(args.threads, ranks.local_size)
    keep_freed_memory()
    check_utf8(args.weights or "", "--weights cannot be put into the solver; rename the file or folder")
    check_utf8(args.stage, "--stage names a stage of a prototxt")
    param = read_solver_dialect(path, args.dialect)
    _set_train_state(param, args, path)
    _check_working_folder(param, path)
    device = _device(param, args, ranks)
    kernels.chosen()  # raises if IMAE_KERNELS asks for kernels that are missing, even if none is used
    if device.type == "cpu" and not args.plain:
        blobs = torch.bfloat16 if args.precision == "bf16" else chosen_dtype(args)
        logger.info(kernels.description(kernels.product_type(blobs)))
    ranks.connect(device)
    if ranks.size > 1:
        logger.info("%d ranks train together, each on batches of its own", ranks.size)
    writes = (param.snapshot or param.snapshot_after_train) and ranks.rank == 0
    with (
        writing_alone(param.snapshot_prefix) if writes else nullcontext(),
        SignalRequests(action(args.sigint_effect), action(args.sighup_effect)) as requests,
    ):
        if args.snapshot:
            del param.weights[:]
        elif args.weights:
            param.weights[:] = [args.weights]
        if args.double and args.precision != "fp32":
            raise ImaeError(f"--double and --precision {args.precision} contradict each other; give one")
        solver = Solver(
            param,
            Options(
                device=device,
                fast=not args.plain,
                on_nan=args.on_nan,
                keep=args.keep,
                gpu_dropout=args.gpu_dropout,
                reduced=set_precision(args.precision, device),
                compiled=chosen_compiled(args, device, args.plain),
                recorder=chosen_recorder(args, device, args.plain),
                dialect=args.dialect,
            ),
            dtype=chosen_dtype(args),
            ranks=ranks,
            data_resources=chosen_data_resources(args, ranks.local_size),
        )
        solver.request = requests
        if args.snapshot:
            log_line("caffe.cpp:235", f"Resuming from {args.snapshot}")
            solver.restore(args.snapshot, as_caffe=args.resume_as_caffe, dialect=args.dialect)
        elif args.resume:
            solver.restore_newest(as_caffe=args.resume_as_caffe)
        log_line("caffe.cpp:239", "Starting Optimization")
        with training_bar(solver, ranks.rank == 0 and not args.no_progress):
            solver.solve()
        for line in next_steps(solver, path, args.dialect) if ranks.rank == 0 else ():
            logger.info("%s", line)
    log_line("caffe.cpp:250", "Optimization Done.")


def _check_working_folder(param: SolverParameter, path: str) -> None:
    """PrototxtError where a net is not there, but would be from a folder above the solver's file."""
    for name in filter(None, (param.net, param.train_net, *param.test_net)):
        if os.path.isabs(name) or "\0" in name or os.path.exists(name):
            continue
        for folder in Path(path).absolute().parents:
            if (folder / name).is_file():
                raise PrototxtError(
                    f"{name}: no such file; a relative path starts at the working folder: start imae "
                    f"in {folder}"
                )


def _set_train_state(param: SolverParameter, args: argparse.Namespace, path: str) -> None:
    """Set train_state's level and stages from the command line."""
    if args.level is None and param.train_state.level:
        # Caffe: the flag's default, 0, silently replaces it.
        leftover = f"train_state.level (write --level {param.train_state.level})"
        report_leftovers(logger, path, [leftover], PrototxtError)
    param.train_state.level = args.level or 0
    param.train_state.stage.extend(args.stage.split(","))  # Caffe: without --stage this adds the stage ""


def _device(param: SolverParameter, args: argparse.Namespace, ranks: Ranks) -> torch.device:
    """The device of --gpu or --cpu, or of solver_mode where the file sets it; its default does not count."""
    from imae.net.device import choose_device

    request = requested_gpu(args.gpu)
    asks_for_gpu = param.HasField("solver_mode") and param.solver_mode == SolverParameter.GPU
    if request is None and asks_for_gpu and not args.cpu:
        request = GpuRequest(str(param.device_id), "solver_mode: GPU", "give --cpu or write solver_mode: CPU")
    local = None if ranks.size == 1 else (ranks.local_rank, ranks.local_size)
    device = choose_device(request, DEVICE_LOG, local)
    if request is not None:
        param.device_id = device.index
    return device
