"""What Caffe's three upgrade tools have in common: their arguments, and what they log.

imae upgrade-net-proto-text     old.prototxt    new.prototxt
imae upgrade-net-proto-binary   old.caffemodel  new.caffemodel
imae upgrade-solver-proto-text  old.prototxt    new.prototxt
"""

from __future__ import annotations

import argparse
import logging

logger = logging.getLogger(__name__)


def add_file_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """The file to read and the one to write."""
    parser.add_argument("input", metavar="IN", help=f"{what} of an old form")
    parser.add_argument("output", metavar="OUT", help="the file to write, in today's form")


def log_outcome(tool: str, path: str, upgraded: bool, problems: list[str]) -> None:
    """Log that something was left out (upgrade_net has said what), or that there was nothing to do."""
    if problems:
        _log(f"{tool}.cpp:39", "Encountered error(s) while upgrading prototxt; see details above.")
    elif not upgraded:
        _log(f"{tool}.cpp:43", f"File already in latest proto format: {path}")


def _log(place: str, message: str) -> None:
    logger.error("%s", message, extra={"caffe": place})
