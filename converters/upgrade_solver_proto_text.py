"""Caffe's upgrade_solver_proto_text: a solver's prototxt of an old form, written in today's.

    imae upgrade-solver-proto-text old.prototxt new.prototxt

Caffe: tools/upgrade_solver_proto_text.cpp. Differs: nets inside the solver are upgraded as well.
"""

from __future__ import annotations

import argparse
import logging

from imae.converters.upgrade_proto import add_file_arguments, log_outcome
from imae.prototxt import SolverParameter
from imae.prototxt.text import read_text, write_text
from imae.prototxt.upgrade import upgrade_solver

COMMAND = "upgrade-solver-proto-text"
HELP = "a solver's prototxt of an old form, written in today's"

TOOL = "upgrade_solver_proto_text"

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_file_arguments(parser, "a solver's prototxt")


def run(args: argparse.Namespace) -> None:
    old = read_text(args.input, SolverParameter)
    new = upgrade_solver(old, args.input)
    log_outcome(TOOL, args.input, new != old, [])
    write_text(new, args.output)
    message = f"Wrote upgraded SolverParameter text proto to {args.output}"
    logger.info("%s", message, extra={"caffe": f"{TOOL}.cpp:49"})
