"""Nets and solvers of an old form, or of a fork, written in today's form, as Caffe's three upgrade tools do.

V0 fields that no newer form has are logged and left out; the functions for nets return these lines.
PrototxtError for a file that cannot be read.

Caffe: tools/upgrade_net_proto_text.cpp, upgrade_net_proto_binary.cpp, upgrade_solver_proto_text.cpp. Differs:
nets inside a solver are upgraded as well.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from google.protobuf.message import Message

from imae.files.atomic import write_atomically
from imae.files.caffe_log import log_line
from imae.files.read import AnyPath
from imae.prototxt import NetParameter
from imae.prototxt.dialects import (
    check_numbers,
    read_net_dialect,
    read_net_text_dialect,
    read_solver_text_dialect,
)
from imae.prototxt.text import read_binary, write_text
from imae.prototxt.upgrade import upgrade_net, upgrade_solver


def upgrade_net_text(source: AnyPath, output: AnyPath, dialect: str | None = None) -> list[str]:
    """Write a net's prototxt in today's form; `dialect` is the fork of the file, one of TEXT_DIALECTS."""
    old = read_net_text_dialect(source, dialect)
    problems: list[str] = []
    new = upgrade_net(old, os.fspath(source), problems)
    changed = new is not old or bool(dialect)
    _write("upgrade_net_proto_text", source, output, new, changed=changed, problems=problems)
    return problems


def upgrade_net_binary(source: AnyPath, output: AnyPath, dialect: str | None = None) -> list[str]:
    """Write a .caffemodel, or another binary net, in today's form; `dialect` is the fork of the file."""
    if dialect:
        old = read_net_dialect(source, dialect)
    else:
        old = check_numbers(read_binary(source, NetParameter), source)
    problems: list[str] = []
    new = upgrade_net(old, os.fspath(source), problems)
    changed = new is not old or bool(dialect)
    _write("upgrade_net_proto_binary", source, output, new, changed=changed, problems=problems, binary=True)
    return problems


def upgrade_solver_text(source: AnyPath, output: AnyPath, dialect: str | None = None) -> None:
    """Write a solver's prototxt in today's form; `dialect` is the fork of the file, one of TEXT_DIALECTS."""
    old = read_solver_text_dialect(source, dialect)
    new = upgrade_solver(old, os.fspath(source))
    _write("upgrade_solver_proto_text", source, output, new, changed=new != old or bool(dialect))


def _write(
    tool: str,
    source: AnyPath,
    output: AnyPath,
    new: Message,
    *,
    changed: bool,
    problems: Sequence[str] = (),
    binary: bool = False,
) -> None:
    """Write the new message, as text unless it is to be `binary`, and log what Caffe's tool logs.

    changed    whether it differs from the old message
    problems   what was left out; upgrade_net has logged each
    """
    if problems:
        log_line(
            f"{tool}.cpp:39",
            "Encountered error(s) while upgrading prototxt; see details above.",
            logging.ERROR,
        )
    elif not changed:
        log_line(f"{tool}.cpp:43", f"File already in latest proto format: {source}", logging.ERROR)
    if binary:
        write_atomically(output, new.SerializeToString())
    else:
        write_text(new, output)
    line, form = (48, "binary") if binary else (49, "text")
    log_line(f"{tool}.cpp:{line}", f"Wrote upgraded {new.DESCRIPTOR.name} {form} proto to {output}")
