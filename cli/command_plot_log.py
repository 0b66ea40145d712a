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

from imae.files.caffe_log import read_log
from imae.files.errors import DataError
from imae.train.plot_log import chart_of, draw_curves, log_names, write_picture


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
    chart, seconds = chart_of(args.chart)
    logs = list(zip(log_names(args.logs), map(read_log, args.logs), strict=True))
    if not any(chart.shows(number) for _, numbers in logs for number in numbers):
        known = {
            n.what if n.what not in ("train", "test") else f"{n.what}:{n.name}"
            for _, log in logs
            for n in log
        }
        raise DataError(f"there is no {chart} in these logs; there is {', '.join(sorted(known))}")
    write_picture(
        args.output, lambda figure: draw_curves(figure.subplots(), logs, chart, seconds or args.seconds)
    )
