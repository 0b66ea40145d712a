"""`imae out-of-fold`: class probabilities of each record, by a net that was not trained on it.

    imae out-of-fold --solver solver.prototxt --lmdb data/train_lmdb --output pred_probs.npz

Programs that find wrong labels want them, cleanlab among them: docs/label-noise.md has an example, and
`imae correct-labels` uses what such a program has found. imae.paper.out_of_fold has the arrays of the file.
After Ctrl-C the same command goes on.
"""

from __future__ import annotations

import argparse

from imae.cli.device_options import add_gpu_option, add_threads_option, requested_gpu
from imae.cli.options import add_strict_option, whole_number
from imae.cli.output_files import check_output_files
from imae.files.errors import ImaeError
from imae.net.device_log import TEST_DEVICE_LOG


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "--solver", metavar="SOLVER", help="the solver that trains each net, without its tests"
    )
    parser.add_argument("--model", metavar="NET", help="the train_val net (the solver's)")
    parser.add_argument("--lmdb", metavar="LMDB", help="the records, as the net's Data layers name them")
    parser.add_argument(
        "--output", metavar="FILE", help="FILE.npz for all arrays, FILE.npy for the probabilities alone"
    )
    parser.add_argument("--folds", type=whole_number, default=5, metavar="K", help="parts of the records (5)")
    parser.add_argument("--seed", type=whole_number, default=1, help="of the division (1)")
    parser.add_argument(
        "--stage",
        metavar="S[,S]",
        help="the net's stages in phase TEST (those of the solver's first test net)",
    )
    parser.add_argument("--work", metavar="FOLDER", help="where the runs are kept (FILE without its ending)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time (1)")
    add_strict_option(parser)
    add_gpu_option(parser)
    add_threads_option(parser, "threads of each training (all cores, shared by the trainings: give 1 or 2)")


def run(args: argparse.Namespace) -> None:
    """Train what is missing; write the probabilities."""
    from imae.net.device import choose_device, set_threads
    from imae.paper.out_of_fold import out_of_fold

    for option in ("solver", "lmdb", "output"):
        if not getattr(args, option):
            raise ImaeError(
                "out-of-fold needs --solver SOLVER, --lmdb LMDB and --output FILE.npz; there is no "
                f"--{option}"
            )
    check_output_files({"--output": args.output}, [args.solver, args.model])
    options = [] if args.threads is None else ["--threads", str(args.threads)]
    if args.gpu is not None:
        options += ["--gpu", args.gpu]
    elif args.cpu:
        options.append("--cpu")
    if args.strict:
        options.append("--strict")
    if args.no_python_layers:
        options.append("--no-python-layers")
    set_threads(args.threads)
    out_of_fold(
        args.solver,
        args.lmdb,
        args.output,
        model=args.model,
        folds=args.folds,
        seed=args.seed,
        stages=None if args.stage is None else args.stage.split(","),
        folder=args.work,
        jobs=args.jobs,
        options=options,
        device=choose_device(requested_gpu(args.gpu), TEST_DEVICE_LOG),
    )
