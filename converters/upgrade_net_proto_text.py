"""Caffe's upgrade_net_proto_text: a net's prototxt of an old form, written in today's.

    imae upgrade-net-proto-text old.prototxt new.prototxt

What a V0 net says and no newer form has is reported and left out, and the exit status is 1; the rest is
written.

Caffe: tools/upgrade_net_proto_text.cpp.
"""

from __future__ import annotations

import argparse
import logging

from imae.converters.upgrade_proto import add_file_arguments, log_outcome
from imae.prototxt import NetParameter
from imae.prototxt.text import read_text, write_text
from imae.prototxt.upgrade import upgrade_net

COMMAND = "upgrade-net-proto-text"
HELP = "a net's prototxt of an old form, written in today's"

TOOL = "upgrade_net_proto_text"

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_file_arguments(parser, "a net's prototxt")


def run(args: argparse.Namespace) -> int:
    old = read_text(args.input, NetParameter)
    problems: list[str] = []
    new = upgrade_net(old, args.input, problems)
    log_outcome(TOOL, args.input, new is not old, problems)
    write_text(new, args.output)
    message = f"Wrote upgraded NetParameter text proto to {args.output}"
    logger.info("%s", message, extra={"caffe": f"{TOOL}.cpp:49"})
    return 1 if problems else 0
