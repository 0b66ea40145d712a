"""`imae plot-log`: curves of several training logs, Caffe's and ours, in one picture.

    imae plot-log 6 loss.png caffe.log imae.log
    imae plot-log test:accuracy accuracy.svg caffe.log imae.log --seconds

What is drawn is a number, as for Caffe's plot_training_log.py, or a name:

    0, 1  test accuracy     the test outputs with "accuracy" in their names
    2, 3  test loss         those with "loss" in them
    4, 5  learning rate
    6, 7  train loss        the smoothed loss that stands behind `Iteration N`
    loss, lr, test_loss, train, test, train:NAME, test:NAME
                            that kind of numbers; of the net's outputs all, or one

Odd numbers, and --seconds, draw over the seconds since the training began, else it is over the iterations.
The ending of the picture's name is its format.

Caffe: tools/extra/plot_training_log.py.example.
"""

from __future__ import annotations

import argparse

from imae.train.plot_log import plot_logs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "chart", metavar="WHAT", help="0 to 7 as in Caffe, or loss, lr, test_loss, train[:NAME], test[:NAME]"
    )
    parser.add_argument("output", metavar="OUTPUT", help="the picture to write: .png, .svg, .pdf ...")
    parser.add_argument("logs", metavar="LOG", nargs="+", help="logs, Caffe's or ours")
    parser.add_argument("--seconds", action="store_true", help="draw over seconds, not over iterations")


def run(args: argparse.Namespace) -> None:
    """Write the picture."""
    plot_logs(args.chart, args.output, args.logs, args.seconds)
