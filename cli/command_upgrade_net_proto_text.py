"""Caffe's upgrade_net_proto_text: a net's prototxt of an old form, written in today's.

    imae upgrade-net-proto-text old.prototxt new.prototxt
    imae upgrade-net-proto-text --dialect nvidia theirs.prototxt caffes.prototxt

With --dialect a fork's prototxt becomes one that Caffe reads (prototxt/dialects.py). What a V0 net says and
no newer form has is reported and left out, and the exit status is 1; the rest is written.

Caffe: tools/upgrade_net_proto_text.cpp.
"""

from __future__ import annotations

import argparse

from imae.cli.options import add_dialect_option
from imae.converters.upgrade_proto import add_file_arguments, write_upgraded
from imae.prototxt.dialects import TEXT_DIALECTS, read_net_text_dialect
from imae.prototxt.upgrade import upgrade_net

COMMAND = "upgrade-net-proto-text"
HELP = "a net's prototxt of an old form or of a fork, written in today's form"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_file_arguments(parser, "a net's prototxt")
    add_dialect_option(parser, TEXT_DIALECTS)


def run(args: argparse.Namespace) -> int:
    old = read_net_text_dialect(args.input, args.dialect)
    problems: list[str] = []
    new = upgrade_net(old, args.input, problems)
    changed = new is not old or bool(args.dialect)
    return write_upgraded(COMMAND, args, new, changed=changed, problems=problems)
