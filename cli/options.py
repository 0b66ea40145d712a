"""Options of the commands that read nets: --phase, --level, --stage, --dialect, --strict and others."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Literal

from imae.files.errors import ImaeError, check_utf8
from imae.files.read import AnyPath
from imae.prototxt import TEST, TRAIN, NetParameter, NetState
from imae.prototxt.dialects import DIALECTS, read_net_text
from imae.prototxt.state import in_state

Options = argparse.ArgumentParser | argparse._ArgumentGroup  # a parser, or a group of its help


def add_net_options(parser: Options, phase: Literal["TRAIN", "TEST"], changeable: bool = True) -> None:
    """Add all of these options. `phase` is the default; if it is not `changeable`, there is no --phase."""
    if changeable:
        parser.add_argument("--phase", default=phase, help=f"TRAIN or TEST ({phase})")
    else:
        parser.set_defaults(phase=phase)
    parser.add_argument("--level", type=level, default=0, help="the net's level (0)")
    parser.add_argument("--stage", default="", metavar="S[,S]", help="the net's stages")
    add_dialect_option(parser)
    add_strict_option(parser)


def add_dialect_option(parser: Options, known: Sequence[str] = DIALECTS) -> None:
    """--dialect, for commands that read caffemodels, solver states and nets."""
    parser.add_argument(
        "--dialect", choices=known, help="the Caffe fork that wrote the files, if it was not Caffe itself"
    )


def add_strict_option(parser: Options) -> None:
    """--strict and --no-python-layers, which `main` applies to everything that the command does.

    Each command that builds nets has them.
    """
    parser.add_argument(
        "--strict",
        action="store_true",
        help="treat fields of a net that have no effect, such as those of another layer type, as an error; "
        "by default a warning lists them",
    )
    parser.add_argument(
        "--no-python-layers",
        action="store_true",
        help='refuse a net with a layer of type "Python", which would import and run code',
    )


def add_file_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    """The input and output files of a command that upgrades files; `kind` describes the input in the help."""
    parser.add_argument("input", metavar="IN", help=f"{kind} of an old form")
    parser.add_argument("output", metavar="OUT", help="the file to write, in today's form")


def level(text: str) -> int:
    """The level of a NetState, an int32, for argparse."""
    number = int(text)
    if not -(2**31) <= number < 2**31:
        raise argparse.ArgumentTypeError(f"a level must be from {-(2**31)} to {2**31 - 1}, got {text}")
    return number


def whole_number(text: str) -> int:
    """An argument that is 0 or more."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {number}")
    return number


def chosen_net(path: AnyPath, args: argparse.Namespace) -> NetParameter:
    """Read the net of a prototxt in the state that the options give."""
    if args.phase not in ("TRAIN", "TEST"):
        raise ImaeError(f'phase must be "TRAIN" or "TEST"; got {args.phase!r}')
    check_utf8(args.stage, "--stage names a stage of a prototxt")
    phase = TRAIN if args.phase == "TRAIN" else TEST
    # Caffe: without --stage this adds the stage "".
    state = NetState(phase=phase, level=args.level, stage=args.stage.split(","))
    weights = [args.weights] if getattr(args, "weights", None) else []  # not every command has --weights
    return in_state(read_net_text(path, args.dialect, weights), phase, state)
