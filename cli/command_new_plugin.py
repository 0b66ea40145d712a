"""`imae new-plugin`: a package with a layer type and a loss of your own.

    imae new-plugin MyShift
    cd imae-my-shift && pip install -e '.[test]' && python -m pytest

It has the layer MyShift and the loss MyShiftLoss, each with its own parameter, the layer's ONNX form, and
tests that pass: change what they compute.
"""

from __future__ import annotations

import argparse

from imae.converters.new_plugin import write_plugin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("name", metavar="NAME", help="the layer type, such as MyShift")
    parser.add_argument("--folder", metavar="DIR", help="the new folder (imae-NAME, here)")


def run(args: argparse.Namespace) -> None:
    """Write the plugin."""
    folder = write_plugin(args.name, args.folder)
    print(f"wrote {folder}: the layer {args.name} and the loss {args.name}Loss")
    print("install and test it there: pip install -e '.[test]' && python -m pytest")
