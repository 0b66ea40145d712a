"""`imae tensorboard`: the numbers of training logs, Caffe's and ours, as event files for TensorBoard.

    imae tensorboard caffe.log imae.log --output runs
    tensorboard --logdir runs

Each log is a run, in a folder of its name. Its curves are train/smoothed loss, train/learning rate, and each
output of the nets by its name: train/loss, test/accuracy ... A log is read once: run the command again to see
what a training has added. TensorBoard itself is not needed to write the files.
"""

from __future__ import annotations

import argparse

from imae.train.tensorboard_log import write_tensorboard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("logs", metavar="LOG", nargs="+", help="logs, Caffe's or ours")
    parser.add_argument(
        "--output",
        metavar="DIR",
        required=True,
        help="the folder for `tensorboard --logdir`; a run for each log",
    )


def run(args: argparse.Namespace) -> None:
    """Write the event files, and print their names."""
    for path in write_tensorboard(args.logs, args.output):
        print(path)
    print(f"to look at them: pip install tensorboard; tensorboard --logdir {args.output}")
