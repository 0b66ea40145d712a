"""Which test runs the commands of a page, which commands no test runs, and why; and a check of any command.

The check reads a command as its own program would, with all options, and runs nothing.
"""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from functools import cache

import pages
import pytest
from torch.distributed.run import get_args_parser

import benchmarks.__main__ as benchmarks_main
from imae.cli.main import COMMANDS, make_parser
from imae.files.errors import ImaeError

# The test that runs the commands in the fences of a page, but for those of NOT_RUN.
RUN_BY = {
    "README.md": "docs/test_pages_run.py::test_readme",
    "docs/bring-your-project.md": "docs/test_pages_run.py::test_bring_your_project",
    "docs/forks.md": "docs/test_pages_run.py::test_forks",
    "docs/from-caffe-to-onnx.md": "converters/test_guide.py::test_the_commands_print_what_is_shown",
    "docs/html-page.md": "converters/test_model_pages.py::test_html_page",
    "docs/label-noise.md": "paper/test_label_noise_page.py::test_the_page",
    "docs/onnx-runtime.md": "converters/test_model_pages.py::test_onnx_runtime",
    "docs/paper.md": "docs/test_pages_run.py::test_paper",
    "docs/plugins.md": "docs/test_plugins_page.py::test_the_page",
    "docs/pytorch.md": "converters/test_pytorch_page.py::test_the_page",
    "docs/run.md": "converters/test_model_pages.py::test_run",
}

INSTALLS = "installs this project: .ci/run and .ci/wheel do it in fresh environments"
GPU = "needs a GPU"
CIFAR = "needs CIFAR-10, and minutes to days"
SSD = "needs an SSD: train/test_small_ssd.py trains, tests and exports one"
# The beginnings of commands that are not run on any page, without .venv/bin/, and why.
ON_ANY_PAGE = {
    "python3 -m venv .venv": INSTALLS,
    "pip install -c constraints.txt": INSTALLS,
    "pip install -q -c constraints.txt": INSTALLS,
    "python -m pytest -q -n 2 tests": "these are the tests: .ci/run runs them",
    "imae demo": "takes minutes: paper/test_demo.py runs it with fewer iterations",
    "npm install": "needs the network",
}
# Of each page the beginnings of further commands that are not run, and why.
NOT_RUN: dict[str, dict[str, str]] = {
    "README.md": {
        "cd imae-xyz": "layers/test_plugin_package.py installs and tests the plugin",
        "pip install -e": "layers/test_plugin_package.py installs the plugin",
        "python -m pytest": "layers/test_plugin_package.py runs the plugin's tests",
    },
    "CONTRIBUTING.md": {".venv/bin/python -m pytest -n 2 -m": "these are the tests: .ci/run runs all"},
    "docs/bring-your-project.md": {
        "python train/solve.py": "cli/test_main.py::test_the_script_runs_from_anywhere runs the script",
        "imae convert-cifar": "needs CIFAR-10: converters/test_converters.py makes files like it",
        "imae train solver.prototxt --gpu": GPU,
        "torchrun": "needs GPUs: train/test_ranks.py::test_torchrun runs it on the CPU",
    },
    "docs/forks.md": {
        "imae train solver.prototxt": SSD,
        "imae test": SSD,
        "imae export": SSD,
    },
    "docs/measured.md": {"python -m benchmarks": "takes minutes: benchmarks/test_benchmarks.py runs parts"},
    "docs/paper.md": {
        f"imae paper {what} --cifar10": CIFAR for what in ("table2", "human-noise", "suspects", "arithmetic")
    }
    | {"imae paper cifar100": "needs CIFAR-100, and days"},
    "docs/runtimes.md": {
        "python -m benchmarks": "takes minutes: benchmarks/test_runtime_matrix.py has small models",
        "ovc": "needs OpenVINO",
        "python -c": "needs OpenVINO",
        "trtexec": GPU,
    },
    "docs/zoo.md": {"python -m benchmarks": "needs the nets of others, and minutes"},
}
# Programs whose options nothing here can read: their commands are run, or have a reason above.
UNREAD = {"cd", "cut", "mkdir", "npm", "ovc", "sed", "trtexec"}
PYTEST_WORDS = {"-q", "-n", "2", "-m", "not slow", "tests"}


def reason(page: str, command: str) -> str | None:
    """Why no test runs a command of a page; None if one does."""
    for start, why in NOT_RUN.get(page, {}).items():
        if command.startswith(start):
            return why
    plain = command.removeprefix(".venv/bin/")
    return next((why for start, why in ON_ANY_PAGE.items() if plain.startswith(start)), None)


def commands_to_run(page: str) -> list[str]:
    """The commands in the fences of a page that its test is to run."""
    fenced = [command.text for command in pages.commands(pages.page(page)) if command.fenced]
    return [text for text in fenced if reason(page, text) is None]


def check(command: str) -> None:
    """AssertionError, ImaeError or SystemExit if the command's program would not accept its arguments."""
    program, *words = shlex.split(command)
    program = program.removeprefix(".venv/bin/")
    for sign in ("2>", ">"):
        if sign in words:
            del words[words.index(sign) : words.index(sign) + 2]
    if program == "imae":
        _check_imae(words)
    elif program == "pip":
        _check_pip(words)
    elif program in ("python", "python3"):
        _check_python(words)
    elif program == "torchrun":
        arguments = get_args_parser().parse_args(words)
        _check_python([arguments.training_script, *arguments.training_script_args])
    else:
        assert program in UNREAD, f"nothing is known of {program}"


def _check_imae(words: Sequence[str]) -> None:
    if words[0] == "caffe":
        words = words[1:]
    name = words[0].replace("_", "-")
    assert name in COMMANDS, f"imae has no command {name}"
    make_parser(name).parse(words[1:])


# Prints what pip's own parser reads of its command line: constraints, editables, other arguments.
PARSE = """import json, sys
from pip._internal.commands import create_command
options, arguments = create_command("install").parser.parse_args(sys.argv[1:])
print(json.dumps([options.constraints, options.editables, arguments]))"""


@cache
def _pip_arguments(words: tuple[str, ...]) -> list[list[str]]:
    """In a process of its own: where pip is imported, setuptools warns of distutils when torch imports it."""
    done = subprocess.run([sys.executable, "-c", PARSE, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parsed: list[list[str]] = json.loads(done.stdout)
    return parsed


def _check_pip(words: Sequence[str]) -> None:
    """Also that the constraints and the extras are there."""
    assert words[0] == "install", words
    constraints, editables, arguments = _pip_arguments(tuple(words[1:]))
    project = tomllib.loads((pages.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for file in constraints:
        assert (pages.ROOT / file).is_file(), file
    for target in [*editables, *arguments]:
        folder, _, extras = target.partition("[")
        assert (pages.ROOT / folder).is_dir(), target
        if extras:
            assert set(extras.removesuffix("]").split(",")) <= set(project["optional-dependencies"]), target


def _check_python(words: Sequence[str]) -> None:
    if words[0] == "-c":
        compile(words[1], "the command", "exec")
    elif words[0] == "-m" and words[1] == "venv":
        assert words[2:] == [".venv"], words
    elif words[0] == "-m" and words[1] == "pytest":
        assert set(words[2:]) <= PYTEST_WORDS, words
    elif words[0] == "-m":
        assert words[1] == "benchmarks", words
        _check_benchmarks(words[2:])
    else:
        assert words[0] == "train/solve.py", words
        make_parser("train").parse(words[1:])


def _check_benchmarks(words: Sequence[str]) -> None:
    """Read the arguments by the benchmarks' own parser, with nothing to run after it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (*benchmarks_main.NAMES, *benchmarks_main.BY_NAME):
            module = importlib.import_module(f"benchmarks.{name}")
            patch.setattr(module, "main", lambda arguments: None)
        patch.setattr(sys, "argv", ["benchmarks", *words])
        benchmarks_main.main()


def options_of(command: str) -> set[str]:
    """All options of one of imae's commands."""
    return set(make_parser(command)._option_string_actions)


REFUSALS = (AssertionError, ImaeError, SyntaxError, SystemExit)
