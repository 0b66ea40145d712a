"""Caffe's upgrade_net_proto_binary: a binary net such as a .caffemodel of an old form, written in today's.

    imae upgrade-net-proto-binary old.caffemodel new.caffemodel
    imae upgrade-net-proto-binary --dialect nvidia theirs.caffemodel caffes.caffemodel

With --dialect a fork's file becomes one that Caffe reads (prototxt/dialects.py). What a V0 net says and no
newer form has is reported and left out, and the exit status is 1; the rest is written.

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
    """Write the file; returns 1 where something was left out, else 0."""
    problems = upgrade_net_binary(args.input, args.output, args.dialect)
    return 1 if problems else 0
