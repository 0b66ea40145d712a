"""`imae sweep`: one net trained with several losses, noise rates and seeds, and a report.

    imae sweep digits.toml --jobs 2 --threads 1

imae.paper.sweep has the form of the file, docs/label-noise.md an example. What has a record is not run again,
and a run that was stopped goes on from its last snapshot: after Ctrl-C the same command goes on.
"""

from __future__ import annotations

import argparse

from imae.cli.device_options import add_gpu_option, add_threads_option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "sweep", metavar="SWEEP", help="NAME.toml; the runs and the report are written into NAME"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time (1)")
    add_gpu_option(parser)
    add_threads_option(parser, "threads of each training (all cores, shared by the trainings: give 1 or 2)")


def run(args: argparse.Namespace) -> None:
    """Train what is missing; print the tables; write the report."""
    from imae.paper.sweep import run_sweep

    options = [] if args.threads is None else ["--threads", str(args.threads)]
    if args.gpu is not None:
        options += ["--gpu", args.gpu]
    elif args.cpu:
        options.append("--cpu")
    print(f"\nwrote {run_sweep(args.sweep, args.jobs, options)}")
