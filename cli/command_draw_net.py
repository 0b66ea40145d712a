"""Draw a net with Graphviz: layers as boxes, blobs as octagons.

    imae draw-net train_val.prototxt net.png --rankdir TB --phase TRAIN

Needs the package pydot (`imae[draw]`). A file NAME.dot, NAME.gv or NAME.raw gets Graphviz's own text. Any
other ending is a format such as png, svg or pdf, for which Graphviz's program `dot` must be installed.

Caffe: python/draw_net.py, python/caffe/draw.py. Differs: nets of old forms are upgraded first; a rule without
a phase holds in both phases; names may have any characters; an oblong window is labelled with both its sides.
"""

from __future__ import annotations

import argparse

from imae.converters.draw_net import RANKDIRS, draw_net_to_file
from imae.prototxt import TEST, TRAIN
from imae.prototxt.text import read_net


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("net", metavar="NET", help="the net's prototxt")
    parser.add_argument("output", metavar="OUTPUT", help="the drawing: .png, .svg, .pdf, .dot ...")
    parser.add_argument("--rankdir", choices=RANKDIRS, default="LR", help="direction of the drawing (LR)")
    parser.add_argument(
        "--phase", choices=["TRAIN", "TEST", "ALL"], default="ALL", help="draw the layers of one phase (ALL)"
    )
    parser.add_argument(
        "--display-lrm", "--display_lrm", action="store_true", help="show the lr_mults of learning layers"
    )


def run(args: argparse.Namespace) -> None:
    """Draw the net."""
    print(f"Drawing net to {args.output}")
    phase = {"TRAIN": TRAIN, "TEST": TEST}.get(args.phase)
    draw_net_to_file(read_net(args.net), args.output, args.rankdir, phase, args.display_lrm)
