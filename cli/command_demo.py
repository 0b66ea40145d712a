"""`imae demo`: label noise on handwritten digits; each step is a command that a user could type.

60 % of the training labels are made wrong. The same net is trained with CCE, with MAE and with IMAE, with
three seeds each. The test digits have right labels. The accuracy on the training digits is measured against
the labels that they are trained with. A net that recognises every digit and has memorised no wrong label
would score 0.40 there. A higher score means that it has memorised wrong labels, a lower score that it has not
fitted the right ones.

The best run of the best loss is exported to ONNX and run in ONNX Runtime. The accuracies of the net and of
the model must agree to four digits. All files are written into data/; prototxts, logs and the plot into
data/demo/.
"""

from __future__ import annotations

import argparse

from imae.paper.demo import demo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = (
        "It takes 3 to 6 minutes on two cores where nothing else computes, downloads nothing and writes into "
        "data/ of the working folder."
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs per loss (3)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time (2)")


def run(args: argparse.Namespace) -> None:
    """Run all steps."""
    demo(args.seeds, args.jobs)
