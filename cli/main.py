"""The command line: `imae COMMAND ...`.

    imae train SOLVER [--snapshot S | --weights W[,W]] [--gpu ID]
    imae test --model NET --weights W [--iterations 50] [--gpu ID]
    imae convert-cifar, corrupt-labels, export, run ...      see `imae --help`, `imae COMMAND --help`

Caffe's spellings work: -solver=X, --solver X, -gpu all; convert_imageset for convert-imageset. The log goes
to stderr. Exit status: 0, also where a signal ended the training early; 1 where an upgrade left something out
or compared logs differ; 2 for bad input, a loss that is not finite, or memory or room on a disk that there
is not, which one line on stderr describes;
130 where Ctrl-C ended another command, or a second one the training; 141 where nobody reads the output any
more.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from difflib import get_close_matches
from importlib.metadata import version
from typing import NoReturn, Protocol, cast

from imae.files.caffe_log import GlogFormatter
from imae.files.errors import ImaeError
from imae.prototxt.leftovers import strict_fields
from imae.prototxt.python_layers import no_python_layers
from imae.train.progress import StderrHandler

# A module is imported when its command is used, so that no command waits for another's libraries.
COMMANDS = {
    "train": "imae.cli.command_train",
    "test": "imae.cli.command_test",
    "time": "imae.cli.command_time",
    "device-query": "imae.cli.command_device_query",
    "convert-cifar": "imae.cli.command_convert_cifar",
    "convert-imageset": "imae.cli.command_convert_imageset",
    "convert-folder": "imae.cli.command_convert_folder",
    "convert-digits": "imae.cli.command_convert_digits",
    "convert-mars": "imae.cli.command_convert_mars",
    "corrupt-labels": "imae.cli.command_corrupt_labels",
    "split-lmdb": "imae.cli.command_split_lmdb",
    "compute-image-mean": "imae.cli.command_compute_image_mean",
    "extract-features": "imae.cli.command_extract_features",
    "upgrade-net-proto-text": "imae.cli.command_upgrade_net_proto_text",
    "upgrade-net-proto-binary": "imae.cli.command_upgrade_net_proto_binary",
    "upgrade-solver-proto-text": "imae.cli.command_upgrade_solver_proto_text",
    "draw-net": "imae.cli.command_draw_net",
    "parse-log": "imae.cli.command_parse_log",
    "plot-log": "imae.cli.command_plot_log",
    "compare-logs": "imae.cli.command_compare_logs",
    "export": "imae.cli.command_export",
    "run": "imae.cli.command_run",
    "retrieve": "imae.cli.command_retrieve",
    "quantize": "imae.cli.command_quantize",
    "demo": "imae.cli.command_demo",
    "paper": "imae.cli.command_paper",
}


class Command(Protocol):
    """What the module of a command offers."""

    COMMAND: str
    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, args: argparse.Namespace) -> object:
        """Do it; an int is the exit status. An ImaeError says what is wrong with the input."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ImaeErrors, and which knows gflags' way to write a flag."""

    def error(self, message: str) -> NoReturn:
        raise ImaeError(f"{self.prog.removeprefix('imae ')}: {message}")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The arguments of a command line; `-gpu` is read as `--gpu`."""
        arguments = [re.sub(r"^-(?=[A-Za-z]\w)", "--", argument) for argument in arguments]
        flags = set(re.findall(r"(?<![\w-])--[\w-]+", self.format_help()))
        for argument in arguments:
            flag = argument.partition("=")[0]
            if re.match(r"--[A-Za-z]", flag) and flag not in flags:
                self.error(f"unknown flag {flag}{_hint(flag, flags)}")
        return self.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    _open_what_is_closed()
    try:
        return _status(sys.argv[1:] if arguments is None else arguments)
    finally:
        _drop_what_cannot_be_written()


def _status(arguments: Sequence[str]) -> int:
    try:
        with _log_on_stderr():  # which ends before an error's line: that is the last
            status = _run(arguments)
            sys.stdout.flush()
            return status
    except ImaeError as error:
        return _say(" ".join(str(error).splitlines()), 2)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except BrokenPipeError:  # whoever read our output has stopped reading, as `head` does
        return 141
    except OSError as error:
        if error.errno not in NO_ROOM or error.filename is not None:
            raise
        return _say(f"the output cannot be written: {error.strerror}", 2)
    except MemoryError:
        return _say(NO_MEMORY, 2)
    except RuntimeError as error:
        remedy = next((text for words, text in REFUSED.items() if words in str(error)), None)
        if remedy is None:
            raise
        return _say(remedy, 2)


NO_MEMORY = "there is not enough memory; choose smaller sizes, or raise the limit (ulimit -v)"
NO_THREAD = "no further thread can be started; end other processes, or raise the limit (ulimit -u)"
# What Python and torch raise where the system refuses them something.
REFUSED = {"can't start new thread": NO_THREAD, "DefaultCPUAllocator: ": NO_MEMORY}
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _say(line: str, status: int) -> int:
    with suppress(OSError):  # the disk of the log can be full, too
        print("imae:", line, file=sys.stderr)
    return status


def _open_what_is_closed() -> None:
    """Put the null device in the place of a standard stream that is closed (`>&-`).

    Else the next file that is opened takes its number, and gets what libraries write there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the least number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for the rest of the process


def _drop_what_cannot_be_written() -> None:
    """Let Python not try once more, at its end, to write what was refused: that changes the status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _run(arguments: Sequence[str]) -> int:
    name = arguments[0] if arguments else "--help"
    name = name.replace("_", "-")  # Caffe's tools
    if name in ("--help", "-help", "-h", "help"):
        print("usage: imae COMMAND ...    (imae COMMAND --help says more)\n\ncommands:")
        for known in _available():
            print(f"  {known:27}{_command(known).HELP}")
    elif name in ("--version", "-version"):
        print(f"imae {version('imae')}")
    elif name not in _available():
        raise ImaeError(
            f"Unknown action: {name}{_hint(name, _available())} (known: {', '.join(_available())})"
        )
    else:
        command = _command(name)
        parser = Parser(prog=f"imae {name}", description=command.HELP, allow_abbrev=False)
        command.add_arguments(parser)
        parser.add_argument(
            "--no-python-layers",
            action="store_true",
            help='refuse a net with a layer of type "Python", which would import and run code',
        )
        args = parser.parse(arguments[1:])
        args.command_line = list(arguments)
        strict = bool(getattr(args, "strict", False))  # of the commands that build nets
        with no_python_layers() if args.no_python_layers else nullcontext(), strict_fields(strict):
            status = command.run(args)
        return status if isinstance(status, int) else 0
    return 0


def _available() -> list[str]:
    return [name for name, module in COMMANDS.items() if importlib.util.find_spec(module) is not None]


def _command(name: str) -> Command:
    return cast(Command, importlib.import_module(COMMANDS[name]))


def _hint(word: str, known: Sequence[str] | set[str]) -> str:
    near = get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """Write what the package logs to stderr, in Caffe's form, while the block runs."""
    logger, handler = logging.getLogger("imae"), StderrHandler()
    handler.setFormatter(GlogFormatter())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
