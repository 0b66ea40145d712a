"""A page for each command, from its parser and the docstring of its module, and an index by task."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator

from docs_site.docstrings import escape, fence, prose, to_markdown
from imae.cli.main import COMMANDS, command_module, make_parser

TASKS = {
    "Train and test": ("train", "test", "time", "summary", "draw-net", "device-query"),
    "Look through a Caffe project, bring files up to date": (
        "doctor", "upgrade-net-proto-text", "upgrade-net-proto-binary", "upgrade-solver-proto-text",
    ),
    "Make databases": (
        "convert-imageset", "convert-folder", "convert-annoset", "convert-cifar", "convert-digits",
        "convert-mars", "split-lmdb", "compute-image-mean", "extract-features",
    ),
    "Read logs": ("parse-log", "plot-log", "compare", "compare-logs"),
    "Deploy": ("export", "run", "quantize", "to-caffe"),
    "Study label noise": (
        "demo", "corrupt-labels", "out-of-fold", "correct-labels", "sweep", "paper", "retrieve",
    ),
    "Extend": ("new-plugin", "completion"),
}  # fmt: skip
OTHERS = "Others"


def path(name: str) -> str:
    """Where the page of a command is, from docs/."""
    return f"commands/{name}.md"


def by_task() -> dict[str, list[str]]:
    """The commands of each task; one that TASKS does not have is among the others."""
    tasks = {task: [name for name in names if name in COMMANDS] for task, names in TASKS.items()}
    known = {name for names in tasks.values() for name in names}
    if others := [name for name in COMMANDS if name not in known]:
        tasks[OTHERS] = others
    return tasks


def index_page() -> str:
    """All commands by task, a line each; and what holds for all of them."""
    text = ["# Commands", "`imae COMMAND --help` shows what stands on these pages."]
    for task, names in by_task().items():
        rows = ["| command | |", "| --- | --- |"]
        rows += [f"| [`{name}`]({name}.md) | {prose(COMMANDS[name])} |" for name in names]
        text += [f"## {task}", "\n".join(rows)]
    docstring = inspect.cleandoc(sys.modules[make_parser.__module__].__doc__ or "")
    text += ["## Spellings and exit status", to_markdown(docstring[docstring.index("Caffe's spellings") :])]
    return "\n\n".join(text) + "\n"


def page_text(name: str) -> str:
    """The page of a command."""
    parser = make_parser(name)
    docstring = inspect.cleandoc(command_module(name).__doc__ or "")
    body, _, source = docstring.partition("\n\nCaffe: ")
    text = [
        f"# imae {name}",
        prose(_sentence(COMMANDS[name])),
        fence(_usage(parser), "text"),
        "## What it does",
    ]
    text.append(to_markdown(body, "sh"))
    if source:
        text.append(to_markdown(f"Caffe: {source}"))
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        if actions:
            text.append(f"## {escape(_sentence(group.title or '').rstrip('.'))}")
            text += [_entry(parser, action) for action in actions]
    return "\n\n".join(text) + "\n"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _usage(parser: argparse.ArgumentParser) -> str:
    """The arguments that are needed, and [OPTION ...] for all others."""
    if parser.usage:
        return parser.usage
    needed = "".join(f" {word}" for word in _needed(parser))
    return f"{parser.prog}{needed} [OPTION ...]"


def _needed(parser: argparse.ArgumentParser) -> Iterator[str]:
    formatter = parser._get_formatter()
    for action in parser._actions:
        if action.option_strings and action.required:
            metavar = formatter._format_args(action, action.dest.upper())
            yield f"{action.option_strings[0]} {metavar}"
    for action in parser._actions:
        if not action.option_strings and action.help != argparse.SUPPRESS:
            yield _positional(parser, action)


def _positional(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    # A long list of choices is shown where the argument is explained.
    name = str(action.metavar or action.dest).upper() if not isinstance(action.metavar, tuple) else ""
    return parser._get_formatter()._format_args(action, name) if not action.choices else name


def _entry(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An argument and its help, as an entry of a list."""
    formatter = parser._get_formatter()
    if action.option_strings:
        default = action.dest.upper()
        value = "" if action.nargs == 0 else f" {formatter._format_args(action, default)}"
        # The dashes of Caffe's spelling are the same option.
        names = ", ".join(f"`{name}{value}`" for name in action.option_strings)
    else:
        names = f"`{_positional(parser, action)}`"
    text = prose(formatter._expand_help(action)) if action.help else ""
    if action.choices and not action.option_strings:
        text += "; one of " + ", ".join(f"`{choice}`" for choice in action.choices)
    if action.required and action.option_strings and not re.search(r"\brequired\b", text):
        text += " (required)"
    return f"{names}\n:   {text or '&nbsp;'}"
