"""`imae plot-log`: plot curves of several training logs, Caffe's and ours, in one figure.

    imae plot-log 6 loss.png caffe.log imae.log
    imae plot-log test:accuracy accuracy.svg caffe.log imae.log --seconds

The chart is given by a number, as for Caffe's plot_training_log.py, or by a name:

    0, 1  test accuracy     the test outputs with "accuracy" in their names
    2, 3  test loss         the test outputs with "loss" in their names
    4, 5  learning rate
    6, 7  train loss        the smoothed loss that the log shows after `Iteration N`
    loss, lr, test_loss, train, test, train:NAME, test:NAME
                            numbers of that kind; of the net's outputs all, or one

Each log has a colour; outputs with "accuracy" and with "loss" in their names have axes of their own.
Odd numbers, and --seconds, plot over the seconds since the training began, the others over the iterations.
The ending of the output's name gives its format.

Caffe: tools/extra/plot_training_log.py.example.
"""

from __future__ import annotations

import argparse

from imae.train.plot_log import plot_logs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "chart",
        metavar="WHAT",
        help="as in Caffe 0 (test accuracy), 2 (test loss), 4 (learning rate), 6 (train loss), over "
        "iterations; 1, 3, 5, 7: the same over seconds; or loss, lr, test_loss, train[:NAME], test[:NAME]",
    )
    parser.add_argument("output", metavar="OUTPUT", help="the figure to write: .png, .svg, .pdf ...")
    parser.add_argument("logs", metavar="LOG", nargs="+", help="logs, Caffe's or ours")
    parser.add_argument("--seconds", action="store_true", help="plot over seconds, not over iterations")


def run(args: argparse.Namespace) -> None:
    """Write the figure."""
    plot_logs(args.chart, args.output, args.logs, args.seconds)
