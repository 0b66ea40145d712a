"""Caffe's upgrade_net_proto_binary: write a binary net (.caffemodel) of an old form in today's form.

    imae upgrade-net-proto-binary old.caffemodel new.caffemodel
    imae upgrade-net-proto-binary --dialect nvidia theirs.caffemodel caffes.caffemodel

With --dialect a fork's file becomes one that Caffe reads (prototxt/dialects.py). Parts of a V0 net that no
newer form has are reported and left out; the rest is written, and the exit status is 1.

Caffe: tools/upgrade_net_proto_binary.cpp.
"""

from __future__ import annotations

import argparse

from imae.cli.options import add_dialect_option, add_file_arguments
from imae.converters.upgrade_proto import upgrade_net_binary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_file_arguments(parser, "a .caffemodel, or another binary net,")
    add_dialect_option(parser)


def run(args: argparse.Namespace) -> int:
    """Write the file. Return 1 if something was left out, else 0."""
    problems = upgrade_net_binary(args.input, args.output, args.dialect)
    return 1 if problems else 0
