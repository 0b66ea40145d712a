"""README and docs: their blocks of code, and the commands in them.

A block is fenced, with its language, or indented by four spaces or more after an empty line ("indented"); in
a list by four more than the text of its item. A command is a line of a shell block, with its continuation
lines; `a && b` is two.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from imae.cli.main import main

ROOT = Path(__file__).parents[2]
# The first words of commands. An indented block whose first line begins with one is a shell block.
PROGRAMS = {
    "cd",
    "cut",
    "imae",
    "mkdir",
    "npm",
    "ovc",
    "pip",
    "printf",
    "python",
    "python3",
    "sed",
    "source",
    "torchrun",
    "trtexec",
}
SHELL = "sh"
FENCE = re.compile(r"^( *)```(.*)$")
ITEM = re.compile(r"^ *([-*]|\d+\.) +")


class Block(NamedTuple):
    """A block of code.

    line      number of its first line in the page
    language  of a fence; "indented" without one
    before    the line of text above it
    """

    line: int
    language: str
    text: str
    before: str


class Command(NamedTuple):
    """A command of a page; `fenced` tells whether it is in a fence of language sh."""

    line: int
    text: str
    fenced: bool


def pages() -> dict[str, str]:
    """The text of each page by its path: README, CONTRIBUTING and what is below docs/."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def page(path: str) -> str:
    """The text of one page."""
    return (ROOT / path).read_text(encoding="utf-8")


def blocks(text: str) -> list[Block]:
    """All blocks of a page, in their order."""
    result: list[Block] = []
    lines = text.splitlines()
    index, before, margin = 0, "", 4
    while index < len(lines):
        item = ITEM.match(lines[index])
        if item or re.match(r"\S", lines[index]):
            margin = 4 + (len(item[0]) if item else 0)
        fence = FENCE.match(lines[index])
        indented = lines[index].startswith(" " * margin) and (index == 0 or not lines[index - 1].strip())
        start = index
        if fence:
            start = index = index + 1
            while lines[index].strip() != "```":
                index += 1
            body = [line.removeprefix(fence[1]) for line in lines[start:index]]
            result.append(Block(start + 1, fence[2], "\n".join(body) + "\n", before))
        elif indented:
            while index + 1 < len(lines) and (
                lines[index + 1].startswith(" " * margin) or not lines[index + 1]
            ):
                index += 1
            body = lines[start : index + 1]
            depth = min(len(line) - len(line.lstrip()) for line in body if line)
            text_of = "\n".join(line[depth:] for line in body).rstrip() + "\n"
            result.append(Block(start + 1, "indented", text_of, before))
        elif lines[index].strip():
            before = lines[index]
        index += 1
    return result


def is_shell(block: Block) -> bool:
    """Whether the block holds commands."""
    return block.language == SHELL or (block.language == "indented" and _program(block.text) in PROGRAMS)


def commands(text: str) -> list[Command]:
    """The commands of a page's shell blocks, without comments."""
    result = []
    for block in filter(is_shell, blocks(text)):
        line = block.line
        for whole in re.findall(r"(?:.*\\\n)*.*\n", block.text):
            joined = re.sub(r"\s*\\\n\s*", " ", whole).strip()
            for part in _split(joined):
                result.append(Command(line, part, block.language == SHELL))
            line += whole.count("\n")
    return result


def inline_code(text: str) -> Iterator[str]:
    """The code in the sentences of a page, which may go over the end of a line."""
    without = re.sub(r"(?ms)^ *```.*?^ *```$", "", text)
    for found in re.finditer(r"(?<!`)`([^`]+?)`(?!`)", without):
        yield " ".join(found[1].split())


def _split(line: str) -> list[str]:
    """The commands of a line, which `&&` joins, each without its comment."""
    lexer = shlex.shlex(line, posix=False, punctuation_chars="&")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    parts: list[list[str]] = [[]]
    for word in lexer:
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return [" ".join(words) for words in parts if words]


def _program(text: str) -> str:
    words = text.split()
    return words[0].removeprefix(".venv/bin/") if words else ""


def run_lines(lines: Iterable[str], edit: Callable[[str], str] = str) -> dict[str, str]:
    """Run commands in this process, `2> FILE` too; what each prints on the standard output, by its line.

    edit   changes a line before it is run
    """
    printed = {}
    for line in lines:
        command, _, log = edit(line).partition(" 2> ")
        words = shlex.split(command)
        assert words[0] == "imae", line
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = main(words[1:])
        assert status == 0, f"{line}\n{out.getvalue()}{err.getvalue()}"
        if log:
            Path(log).write_text(err.getvalue(), encoding="utf-8")
        printed[line] = out.getvalue()
    return printed
