"""`imae demo`: label noise on handwritten digits, each step as the command that a user would type.

60 % of the training labels are made wrong. The same net is trained with CCE, with MAE and with IMAE, with
three seeds each. The test digits have right labels. The training digits are tested with the labels that they
are trained with: a net that knew every digit, and none of the wrong labels, would have 0.40 there. More means
that it has memorised wrong labels, less that it has not fitted the right ones.

The best run of the best loss is exported to ONNX and run in ONNX Runtime; the net's accuracy and the model's
must agree to four digits. All files are written into data/; prototxts, logs and the picture into data/demo/.
"""

from __future__ import annotations

import argparse

from imae.paper.demo import demo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each loss (3)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time (2)")


def run(args: argparse.Namespace) -> None:
    """Run all steps."""
    demo(args.seeds, args.jobs)
