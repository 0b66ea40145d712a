"""Caffe's upgrade_solver_proto_text: write a solver's prototxt of an old form in today's form.

    imae upgrade-solver-proto-text old.prototxt new.prototxt
    imae upgrade-solver-proto-text --dialect nvidia theirs.prototxt caffes.prototxt

With --dialect a fork's solver becomes one that Caffe reads, except for fields that imae has of forks.

Caffe: tools/upgrade_solver_proto_text.cpp. Differs: nets inside the solver are upgraded as well.
"""

from __future__ import annotations

import argparse

from imae.cli.options import add_dialect_option, add_file_arguments
from imae.converters.upgrade_proto import upgrade_solver_text
from imae.prototxt.dialects import TEXT_DIALECTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_file_arguments(parser, "a solver's prototxt")
    add_dialect_option(parser, TEXT_DIALECTS)


def run(args: argparse.Namespace) -> None:
    """Write the file."""
    upgrade_solver_text(args.input, args.output, args.dialect)
