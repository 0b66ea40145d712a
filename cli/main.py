"""The command line: `imae COMMAND ...`.

    imae train SOLVER [--snapshot S | --weights W[,W]] [--gpu ID]
    imae test --model NET --weights W [--iterations 50] [--gpu ID]
    imae convert-cifar, corrupt-labels, export, run ...      see `imae --help`, `imae COMMAND --help`

Caffe's spellings work: -solver=X, --solver X, -gpu all; convert_imageset for convert-imageset. The log goes
to stderr. Exit status:

    0    success, also when a signal ended the training early
    1    an upgrade left something out, the compared logs differ, or something stops a project (doctor)
    2    bad input, a loss that is not finite, not enough memory or disk space; one line on stderr says what
    130  Ctrl-C, for commands other than train; a second Ctrl-C during training
    141  broken pipe: the reader of the output has closed it

IMAE_TRACEBACK=1 in the environment prints the traceback of an error, too.
"""

from __future__ import annotations

import argparse
import errno
import gc
import importlib
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise
from typing import NoReturn, Protocol, cast

from imae.cli.waiting_threads import sleep_soon
from imae.files.caffe_log import GlogFormatter, debug_logger
from imae.files.caffe_log import logger as caffe_logger
from imae.files.errors import ImaeError
from imae.files.nearest import did_you_mean
from imae.net.user_code import TRACEBACK, UserCode
from imae.prototxt.leftovers import strict_fields
from imae.prototxt.python_layers import no_python_layers
from imae.train.progress import StderrHandler

# What each command does. Its module, cli/command_NAME.py, is imported only when the command runs. So a
# command loads only its own libraries, and `imae --help` loads none.
COMMANDS = {
    "train": "train a solver: from scratch, from weights, or on from a snapshot",
    "test": "score a model: the mean outputs of its TEST net over some batches",
    "time": "measure how long each layer of a net takes, forward and backward",
    "doctor": "look through a Caffe project: what reads, builds, trains and exports, what stops the rest",
    "device-query": "show what GPUs there are",
    "convert-cifar": "CIFAR-10 or CIFAR-100 (binary or Python version, folder or .tar.gz) to LMDBs",
    "convert-imageset": "the images of a list file to an LMDB, as Caffe's convert_imageset",
    "convert-annoset": "images and their boxes (VOC, COCO, text) to an LMDB, as SSD's convert_annoset",
    "convert-folder": "a folder (or .tar archive) of class folders with images to an LMDB",
    "convert-digits": "the UCI handwritten digits, which come with this package, to LMDBs",
    "convert-mars": "the images of the MARS benchmark to an LMDB, labelled by person",
    "corrupt-labels": "an LMDB with wrong labels: symmetric, by a matrix, by the image, from a file ...",
    "correct-labels": "an LMDB without the records whose labels are wrong, or with other labels for them",
    "split-lmdb": "part of an LMDB: a random share or the first of each class; the rest into another",
    "compute-image-mean": "the mean image of an LMDB or LevelDB, for transform_param's mean_file",
    "extract-features": "blobs of a net, for each record of its data layer, to LMDBs",
    "upgrade-net-proto-text": "a net's prototxt of an old form or of a fork, written in today's form",
    "upgrade-net-proto-binary": "a .caffemodel of an old form or of a fork, written in today's form",
    "upgrade-solver-proto-text": "a solver's prototxt of an old form, written in today's",
    "draw-net": "draw a net with Graphviz",
    "parse-log": "the numbers of a training log as CSV files",
    "plot-log": "curves of training logs in one figure",
    "tensorboard": "the numbers of training logs as event files for TensorBoard",
    "compare": "trainings beside each other, by their logs: best and last, mean over seeds, curves",
    "compare-logs": "two training logs side by side: where they part, and by how much",
    "export": "write a net and its weights as an ONNX model, checked in ONNX Runtime; or for PyTorch",
    "to-caffe": "weights that were trained in PyTorch, written as a .caffemodel, checked against them",
    "run": "run an ONNX model on images or an LMDB: classes, boxes or maps, accuracy, confusions",
    "retrieve": "mAP and CMC of a model's features by the rules of the MARS benchmark",
    "quantize": "an ONNX model in fp16 or int8, calibrated on an LMDB, with its accuracy before and after",
    "summary": "a net layer by layer: shapes, parameters, multiply-adds, memory, receptive field",
    "new-plugin": "write a package with a layer type and a loss of your own, which passes its tests",
    "completion": "print the completion of this command line for bash or zsh",
    "demo": "label noise on handwritten digits: CCE, MAE and IMAE trained, tested, drawn, exported to ONNX",
    "out-of-fold": "class probabilities of each record by a net not trained on it, to find wrong labels",
    "sweep": "a net with several losses, noise rates and seeds: trained, compared in one report",
    "paper": "the tables and figures of the IMAE paper: trained, measured, set beside the paper's",
}

# Commands that compute with nets. torch is imported once their arguments are read, not for their help.
COMPUTING = (
    "train", "test", "time", "extract-features", "export", "to-caffe", "run", "retrieve", "quantize",
    "summary",
)  # fmt: skip

# Commands that print results. Their log has warnings and errors alone, and what comes from the source file of
# Caffe's tool whose results it has; the rest, such as the net's own log, is for --verbose.
QUIET = {
    "test": "caffe.cpp",
    "extract-features": "extract_features.cpp",
    **dict.fromkeys(("draw-net", "summary", "export", "to-caffe", "run", "retrieve", "quantize"), ""),
    "out-of-fold": "",
}
# Caffe's warnings of what its next releases would no longer read. None came, and all forms are read here.
FUTURE_CAFFE = "Note that future Caffe releases will "
# Flags that have no value in Caffe's tools, and may have a number here.
BARE_IN_CAFFE = ("--shuffle",)
OPTIONS_OF_FILES = {".prototxt": "--model", ".caffemodel": "--weights"}
# Caffe's programs that have no command of their name here, and what does their work.
OTHER_PROGRAMS = {
    "classify": "imae export, then imae run; or imae.pycaffe.Classifier",
    "classification": "imae export, then imae run",
    "detect": "imae export, then imae run; or imae.pycaffe.Detector",
    "plot-training-log": "imae plot-log",
    "resize-and-crop-images": "imae convert-imageset --resize_height H --resize_width W",
    "finetune-net": "imae train SOLVER --weights W",
    "train-net": "imae train SOLVER",
    "test-net": "imae test --model NET --weights W",
    "net-speed-benchmark": "imae time --model NET",
}


class Command(Protocol):
    """The interface of a command's module."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, args: argparse.Namespace) -> object:
        """Run the command. An int is the exit status. Bad input raises an ImaeError."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ImaeErrors and accepts flags as gflags writes them.

    intermixed   positional arguments may stand on both sides of an option, even where there may be none
    """

    intermixed = False
    given: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        if found := re.fullmatch(r"argument (?:.*/)?(--[\w-]+): expected one argument", message):
            if choices := self._option_string_actions[found[1]].choices:
                message += f", one of {', '.join(map(str, choices))}"
        elif re.fullmatch(r"unrecognized arguments:( [-+.\d]+)+", message):
            message += "; several numbers of an option are written with commas, without spaces: 104,117,123"
        elif found := re.fullmatch(r"argument .*: invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += did_you_mean(found[1], re.findall(r"[\w-]+", found[2]), "'")
        elif re.match("unrecognized arguments|the following arguments are required", message):
            message += self._choices_of_required(message) + self._files_as_options()
        raise ImaeError(f"{self.prog.removeprefix('imae ')}: {message}")

    def _choices_of_required(self, message: str) -> str:
        """What may be written for the options that are required and have choices."""
        required = re.findall(r"--[\w-]+", message) if message.startswith("the following") else []
        actions = [(name, self._option_string_actions[name]) for name in required]
        words = [f"{name} is one of {', '.join(map(str, a.choices))}" for name, a in actions if a.choices]
        return f"; {'; '.join(words)}" if words else ""

    def _files_as_options(self) -> str:
        """How the nets and weights that stand without an option are given."""
        words = [
            f"{option} {shlex.quote(argument)}"
            for before, argument in pairwise(["", *self.given])
            if (option := self._option_of(argument)) in self._option_string_actions
            and option not in self.given
            and not before.startswith("--")
        ]
        return f"; write {' '.join(words)}" if words else ""

    def _option_of(self, argument: str) -> str | None:
        """The option for a file, by its name: a solver or a net, or weights."""
        if "solver" in os.path.basename(argument) and "--solver" in self._option_string_actions:
            return "--solver"
        return OPTIONS_OF_FILES.get(os.path.splitext(argument)[1])

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse a command line; `-gpu` is read as `--gpu`."""
        arguments = [re.sub(r"^-(?=[A-Za-z]\w)", "--", argument) for argument in arguments]
        for place, (flag, value) in enumerate(pairwise([*arguments, ""])):
            if flag in BARE_IN_CAFFE and not re.fullmatch(r"-?\d+", value):
                arguments[place] = f"{flag}=true"
        self.given = arguments
        flags = set(re.findall(r"(?<![\w-])--[\w-]+", self.format_help()))
        for argument in arguments:
            flag = argument.partition("=")[0]
            if re.match(r"--[A-Za-z]", flag) and flag not in flags:
                self.error(f"unknown flag {flag}{did_you_mean(flag, flags)}")
        return self.parse_intermixed_args(arguments) if self.intermixed else self.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    _open_closed_streams()
    try:
        return _exit_status(sys.argv[1:] if arguments is None else arguments)
    finally:
        _discard_unwritable_output()


def _exit_status(arguments: Sequence[str]) -> int:
    try:
        with _log_on_stderr():  # closed before an error is printed, so that the error is the last line
            with UserCode(REMEDIES):
                status = _run(arguments)
            sys.stdout.flush()
            return status
    except ImaeError as error:
        if os.environ.get(TRACEBACK, "0") not in ("", "0"):
            traceback.print_exception(error)
        return _print_error(" ".join(str(error).splitlines()), 2)
    except KeyboardInterrupt:
        return _print_error("interrupted", 130)
    except BrokenPipeError:  # the reader of the output has closed the pipe, as `head` does
        return 141
    except OSError as error:
        if error.errno not in NO_SPACE or error.filename is not None:
            raise
        return _print_error(f"the output cannot be written: {error.strerror}", 2)
    except MemoryError:
        return _print_error(NO_MEMORY, 2)
    except RuntimeError as error:
        remedy = next((text for words, text in REMEDIES.items() if words in str(error)), None)
        if remedy is None:
            raise
        return _print_error(remedy, 2)


NO_MEMORY = "there is not enough memory; choose smaller sizes, or raise the limit (ulimit -v)"
NO_THREAD = "no further thread can be started; end other processes, or raise the limit (ulimit -u)"
# Parts of the messages that Python and torch raise when the system refuses a resource, and the remedies.
REMEDIES = {"can't start new thread": NO_THREAD, "DefaultCPUAllocator: ": NO_MEMORY}
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _print_error(line: str, status: int) -> int:
    with suppress(OSError):  # stderr may be a file on a full disk
        print("imae:", line, file=sys.stderr)
    return status


def _open_closed_streams() -> None:
    """Replace each closed standard stream (`>&-`) with the null device.

    Otherwise the next opened file gets the stream's descriptor, and libraries write their output into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for the rest of the process


def _discard_unwritable_output() -> None:
    """Discard output that cannot be written. Python would try again at exit and change the exit status."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            null_device = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null_device, stream.fileno())
            os.close(null_device)


def _run(arguments: Sequence[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name == "caffe":  # `caffe train` is Caffe's command
        return _run(arguments[1:])
    name = name.replace("_", "-")  # Caffe's tools are spelt with underscores
    if name in ("--help", "-help", "-h", "help"):
        print("usage: imae COMMAND ...    (imae COMMAND --help shows its options)\n\ncommands:")
        for known, description in COMMANDS.items():
            print(f"  {known:27}{description}")
    elif name in ("--version", "-version"):
        from importlib.metadata import version  # with all that it imports, slower than all else here

        print(f"imae {version('imae')}")
    elif name not in COMMANDS:
        if program := OTHER_PROGRAMS.get(name.removesuffix(".py")):
            raise ImaeError(f"Unknown action: {name}; what Caffe's program of this name did: {program}")
        raise ImaeError(
            f"Unknown action: {name}{did_you_mean(name, COMMANDS)} (known: {', '.join(COMMANDS)})"
        )
    else:
        sleep_soon()  # before a command imports torch
        command = command_module(name)
        args = make_parser(name).parse(arguments[1:])
        if name in COMPUTING:
            with _no_garbage_collection():
                importlib.import_module("torch")
        args.command_line = list(arguments)
        strict = bool(getattr(args, "strict", False))  # only commands that build nets have these two
        refuses_python = bool(getattr(args, "no_python_layers", False))
        quiet = name in QUIET and not args.verbose
        with (
            _quiet_log(QUIET[name]) if quiet else nullcontext(),
            no_python_layers() if refuses_python else nullcontext(),
            strict_fields(strict),
        ):
            status = command.run(args)
        return status if isinstance(status, int) else 0
    return 0


def make_parser(name: str) -> Parser:
    """The parser of one of COMMANDS, with all of its options."""
    parser = Parser(prog=f"imae {name}", description=COMMANDS[name], allow_abbrev=False)
    command_module(name).add_arguments(parser)
    parser.set_defaults(verbose=False)
    if name in QUIET:
        parser.add_argument(
            "-v", "--verbose", action="store_true", help="write the whole log, not only warnings and errors"
        )
    return parser


def command_module(name: str) -> Command:
    """Import the module of one of COMMANDS."""
    return cast(Command, importlib.import_module(f"imae.cli.command_{name.replace('-', '_')}"))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect no garbage while modules are imported; of a first import of torch, none later either.

    torch makes a quarter of a million objects that stay. Each full collection would look at all of them
    again, which is a tenth of the time that the import takes, and again as much before the first iteration.
    """
    enabled, first = gc.isenabled(), "torch" not in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if first and "torch" in sys.modules:
            gc.freeze()
        if enabled:
            gc.enable()


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


@contextmanager
def _quiet_log(source: str) -> Iterator[None]:
    """Log only warnings and errors while the block runs, and the lines of one of Caffe's source files."""

    def is_kept(record: logging.LogRecord) -> bool:
        place: str = getattr(record, "caffe", "")
        if place and record.getMessage().startswith(FUTURE_CAFFE):
            return False
        return record.levelno >= logging.WARNING or place.partition(":")[0] == source

    loggers = {
        logging.getLogger("imae"): logging.WARNING,
        caffe_logger: logging.INFO if source else logging.NOTSET,
        debug_logger: logging.INFO,  # whoever writes debug_info into a net wants to see it
    }
    levels = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(level)
    caffe_logger.addFilter(is_kept)
    try:
        yield
    finally:
        caffe_logger.removeFilter(is_kept)
        for logger, level in levels.items():
            logger.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
