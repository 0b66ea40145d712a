"""Caffe's upgrade_net_proto_binary: a binary net such as a .caffemodel of an old form, written in today's.

    imae upgrade-net-proto-binary old.caffemodel new.caffemodel
    imae upgrade-net-proto-binary --dialect nvidia theirs.caffemodel caffes.caffemodel

With --dialect a fork's file becomes one that Caffe reads (prototxt/dialects.py). What a V0 net says and no
newer form has is reported and left out, and the exit status is 1; the rest is written.

Caffe: tools/upgrade_net_proto_binary.cpp.
"""

from __future__ import annotations

import argparse

from imae.cli.options import add_dialect_option
from imae.converters.upgrade_proto import add_file_arguments, write_upgraded
from imae.prototxt import NetParameter
from imae.prototxt.dialects import read_net_dialect
from imae.prototxt.text import read_binary
from imae.prototxt.upgrade import upgrade_net

COMMAND = "upgrade-net-proto-binary"
HELP = "a .caffemodel of an old form or of a fork, written in today's form"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_file_arguments(parser, "a .caffemodel, or another binary net,")
    add_dialect_option(parser)


def run(args: argparse.Namespace) -> int:
    if args.dialect:
        old = read_net_dialect(args.input, args.dialect)
    else:
        old = read_binary(args.input, NetParameter)
    problems: list[str] = []
    new = upgrade_net(old, args.input, problems)
    changed = new is not old or bool(args.dialect)
    return write_upgraded(COMMAND, args, new, changed=changed, problems=problems, binary=True)
