"""Look through a Caffe project: what of it reads, builds, trains and exports, what stops it, and what to do.

    imae doctor path/to/project [--all] [--json] [--html report.html]

First how the nets stand and what to do first; then what stops files, each reason once; --all: every file.
Nothing of the project is run, and nothing is written into it. Exit status: 0 where nothing stops anything, 1
otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from imae.files.atomic import write_atomically
from imae.files.errors import DataError
from imae.files.limits import EXAMINATION_SECONDS
from imae.train.doctor.report import as_html, as_text
from imae.train.doctor.survey import examine_project


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "path",
        metavar="PATH",
        help="the project's folder, or one file; the exit status is 1 where something stops a file",
    )
    parser.add_argument("--all", action="store_true", help="list every file, also where there are many")
    parser.add_argument("--json", action="store_true", help="print JSON, which has every file, instead")
    parser.add_argument("--html", metavar="FILE", help="write a page, too; not into the project")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=EXAMINATION_SECONDS,
        help=f"the most time for one file ({EXAMINATION_SECONDS})",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.html is not None and _lies_in(args.html, args.path):
        raise DataError(
            f"--html {args.html} lies in the project, where nothing is written; choose another place"
        )
    survey = examine_project(args.path, args.seconds)
    if args.html is not None:
        write_atomically(args.html, as_html(survey).encode(errors="replace"))
    if args.json:
        print(json.dumps(survey.to_dict(), indent=2))
    else:
        colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        print(as_text(survey, colours, args.all), end="")
    return 0 if survey.all_well else 1


def _lies_in(path: str, folder: str) -> bool:
    """Whether a file would lie below a folder, or is the examined file itself; its links resolved."""
    folder = os.path.realpath(folder)
    return os.path.commonpath([os.path.realpath(path), folder]) == folder


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"must be greater than 0 and less than a million, got {text}")
    return number
