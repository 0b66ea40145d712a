"""What Caffe's three upgrade tools have in common: their arguments, and what they write and log.

imae upgrade-net-proto-text     old.prototxt    new.prototxt
imae upgrade-net-proto-binary   old.caffemodel  new.caffemodel
imae upgrade-solver-proto-text  old.prototxt    new.prototxt
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from google.protobuf.message import Message

from imae.files.atomic import write_atomically
from imae.files.caffe_log import log_line
from imae.prototxt.text import write_text


def add_file_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """The file to read and the one to write."""
    parser.add_argument("input", metavar="IN", help=f"{what} of an old form")
    parser.add_argument("output", metavar="OUT", help="the file to write, in today's form")


def write_upgraded(
    command: str,
    args: argparse.Namespace,
    new: Message,
    *,
    changed: bool,
    problems: Sequence[str] = (),
    binary: bool = False,
) -> int:
    """Write the new message, as text unless it is to be `binary`; the exit status: 1 where problems are.

    changed    whether it is another than the old one
    problems   what was left out; upgrade_net has logged each
    """
    source = f"{command.replace('-', '_')}.cpp"
    if problems:
        log_line(
            f"{source}:39", "Encountered error(s) while upgrading prototxt; see details above.", logging.ERROR
        )
    elif not changed:
        log_line(f"{source}:43", f"File already in latest proto format: {args.input}", logging.ERROR)
    if binary:
        write_atomically(args.output, new.SerializeToString())
    else:
        write_text(new, args.output)
    line, form = (48, "binary") if binary else (49, "text")
    log_line(f"{source}:{line}", f"Wrote upgraded {new.DESCRIPTOR.name} {form} proto to {args.output}")
    return 1 if problems else 0
