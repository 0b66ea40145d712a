"""Caffe's upgrade_net_proto_text: write a net's prototxt of an old form in today's form.

    imae upgrade-net-proto-text old.prototxt new.prototxt
    imae upgrade-net-proto-text --dialect nvidia theirs.prototxt caffes.prototxt

With --dialect a fork's prototxt becomes one that Caffe reads (prototxt/dialects.py). Parts of a V0 net that
no newer form has are reported and left out; the rest is written, and the exit status is 1.

Caffe: tools/upgrade_net_proto_text.cpp.
"""

from __future__ import annotations

import argparse

from imae.cli.options import add_dialect_option, add_file_arguments
from imae.converters.upgrade_proto import upgrade_net_text
from imae.prototxt.dialects import TEXT_DIALECTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_file_arguments(parser, "a net's prototxt")
    add_dialect_option(parser, TEXT_DIALECTS)


def run(args: argparse.Namespace) -> int:
    """Write the file. Return 1 if something was left out, else 0."""
    problems = upgrade_net_text(args.input, args.output, args.dialect)
    return 1 if problems else 0
