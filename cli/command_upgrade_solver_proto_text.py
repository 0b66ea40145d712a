"""Caffe's upgrade_solver_proto_text: a solver's prototxt of an old form, written in today's.

    imae upgrade-solver-proto-text old.prototxt new.prototxt

Caffe: tools/upgrade_solver_proto_text.cpp. Differs: nets inside the solver are upgraded as well.
"""

from __future__ import annotations

import argparse

from imae.converters.upgrade_proto import add_file_arguments, write_upgraded
from imae.prototxt import SolverParameter
from imae.prototxt.text import read_text
from imae.prototxt.upgrade import upgrade_solver

COMMAND = "upgrade-solver-proto-text"
HELP = "a solver's prototxt of an old form, written in today's"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_file_arguments(parser, "a solver's prototxt")


def run(args: argparse.Namespace) -> int:
    old = read_text(args.input, SolverParameter)
    new = upgrade_solver(old, args.input)
    return write_upgraded(COMMAND, args, new, changed=new != old)
